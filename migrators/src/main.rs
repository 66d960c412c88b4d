//! A service whose migrations are another tool's: `handover-migrators TOOL STORE KNOWS`.
//!
//! `TOOL` is `refinery`, `sqlx` or `psql`; `STORE` a connection string of PostgreSQL or the path of a SQLite file; `KNOWS`
//! the schema of the release. SIGUSR1 contracts to schema 2. Each process is a host of its own.

mod psql;
mod refinery;
mod sqlx;

use std::env::args;
use std::process;
use std::time::Duration;

use handover::schema::{Confirmed, Postgres, Schema, Sqlite, Step, Version};
use tokio::signal::unix::{SignalKind, signal};

/// Makes the step of a version of this store.
type Make = fn(&str, Version) -> Step;
type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Outcome {
    let arguments: Vec<_> = args().skip(1).collect();
    let [tool, store, knows] = &arguments[..] else {
        return Err("handover-migrators TOOL STORE KNOWS".into());
    };
    let mut contract = signal(SignalKind::user_defined1())?;
    let mut starting = handover::start().await?;
    let registration = starting
        .schema(schema(tool, store, knows.parse()?)?)
        .await?;
    let serving = starting.ready().await?;
    println!("ready");
    loop {
        tokio::select! {
            _ = contract.recv() => {
                println!("contracted: {:?}", registration.contract(2, Confirmed::Yes).await);
            }
            () = serving.draining() => break,
        }
    }
    serving.drained().await;
    Ok(())
}

fn schema(tool: &str, store: &str, knows: Version) -> Result<Schema, String> {
    let (expand, contract): (Make, Make) = match tool {
        "refinery" => (refinery::expand, refinery::contract),
        "sqlx" => (sqlx::expand, sqlx::contract),
        "psql" => (psql::expand, psql::contract),
        other => return Err(format!("no tool {other}")),
    };
    let schema = match is_postgres(store) {
        true => Schema::new(Postgres::new(store)),
        false => Schema::new(Sqlite::new(store)),
    };
    let schema = (1..=knows).fold(schema, |schema, version| {
        schema.expand(version, expand(store, version))
    });
    Ok(schema
        .contract(2, contract(store, 2))
        .knows(knows)
        .needs(2)
        .host(format!("host {}", process::id()))
        .contract_after(Duration::ZERO))
}

fn is_postgres(store: &str) -> bool {
    store.starts_with("host=")
}

/// What has run is seen in standard output.
fn say(what: &str, version: Version) {
    println!("ran {what} {version}");
}
