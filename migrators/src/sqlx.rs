//! sqlx: what adds and what drops are two directories with one history, so neither minds what it does not find in its own;
//! each is run up to the version that the gate has opened.

use handover::schema::{Step, Version};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use tokio_postgres::config::Host;

use crate::{is_postgres, say};

pub(crate) fn expand(store: &str, version: Version) -> Step {
    step("expand", store, version, i64::from(version) * 10)
}

pub(crate) fn contract(store: &str, version: Version) -> Step {
    step("contract", store, version, i64::from(version) * 10 + 5)
}

fn step(what: &'static str, store: &str, version: Version, target: i64) -> Step {
    let store = store.to_owned();
    Step::run(move || {
        let store = store.clone();
        async move {
            say(what, version);
            let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/sqlx");
            let mut migrator = Migrator::new(format!("{directory}/{what}").as_ref()).await?;
            migrator.set_ignore_missing(true);
            match is_postgres(&store) {
                true => {
                    let pool = PgPool::connect_with(postgres(&store)?).await?;
                    migrator.run_to(target, &pool).await?;
                    pool.close().await;
                }
                false => {
                    let options = SqliteConnectOptions::new().filename(&store);
                    let pool = SqlitePool::connect_with(options).await?;
                    migrator.run_to(target, &pool).await?;
                    pool.close().await;
                }
            }
            Ok(())
        }
    })
}

/// sqlx understands URLs only.
fn postgres(store: &str) -> Result<PgConnectOptions, Box<dyn std::error::Error + Send + Sync>> {
    let config: tokio_postgres::Config = store.parse()?;
    let [Host::Unix(socket)] = config.get_hosts() else {
        return Err("no Unix socket".into());
    };
    Ok(PgConnectOptions::new_without_pgpass()
        .socket(socket)
        .username(config.get_user().unwrap_or_default())
        .database(config.get_dbname().unwrap_or_default()))
}
