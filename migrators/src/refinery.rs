//! refinery: what adds and what drops are two sets of migrations, each with a history of its own, and each is run up to the
//! version that the gate has opened.

use handover::schema::{Step, Version};
use refinery::{Runner, Target};
use tokio_postgres::NoTls;

use crate::{Outcome, is_postgres, say};

mod expanding {
    refinery::embed_migrations!("migrations/refinery/expand");
}
mod contracting {
    refinery::embed_migrations!("migrations/refinery/contract");
}

pub(crate) fn expand(store: &str, version: Version) -> Step {
    step("expand", store, version, expanding::migrations::runner)
}

pub(crate) fn contract(store: &str, version: Version) -> Step {
    step("contract", store, version, || {
        let mut runner = contracting::migrations::runner();
        runner.set_migration_table_name("refinery_contract_history");
        runner
    })
}

fn step(what: &'static str, store: &str, version: Version, runner: fn() -> Runner) -> Step {
    let store = store.to_owned();
    Step::run(move || {
        let store = store.clone();
        let runner = runner().set_target(Target::Version(version.cast_signed()));
        async move {
            say(what, version);
            match is_postgres(&store) {
                true => on_postgres(&store, runner).await,
                // It blocks there.
                false => tokio::task::spawn_blocking(move || on_sqlite(&store, &runner)).await?,
            }
        }
    })
}

async fn on_postgres(store: &str, runner: Runner) -> Outcome {
    let (mut client, connection) = tokio_postgres::connect(store, NoTls).await?;
    let driven = tokio::spawn(connection);
    runner.run_async(&mut client).await?;
    drop(client);
    Ok(driven.await??)
}

fn on_sqlite(store: &str, runner: &Runner) -> Outcome {
    let mut connection = rusqlite::Connection::open(store)?;
    runner.run(&mut connection)?;
    Ok(())
}
