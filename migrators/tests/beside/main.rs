//! Migrations of refinery, sqlx and psql as the steps of a release: the gate runs each once, and neither minds the other.

#![expect(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

#[allow(dead_code, reason = "the tests of schema gates need more of it")]
#[path = "../../../tests/schema/postgres.rs"]
mod postgres;
mod store;

use std::process::Command;
use std::time::Duration;

use handover_load::{Server, Signal};

use crate::store::Store;

/// What bounds every wait.
const DEADLINE: Duration = Duration::from_secs(60);

/// How many start, and ask, at the same time.
const PROCESSES: usize = 10;

/// What a tool has written down once three versions were expanded to, and one contracted to, and one expanded to then.
struct History {
    rows: &'static str,
    expanded: &'static [&'static str],
    contracted: &'static [&'static str],
    expanded_again: &'static [&'static str],
}

const REFINERY: History = History {
    rows: "SELECT CAST(version AS TEXT) || ' ' || name FROM refinery_schema_history ORDER BY version",
    expanded: &["1 person", "2 full_name", "3 visit"],
    // It has a history of its own.
    contracted: &["1 person", "2 full_name", "3 visit"],
    expanded_again: &["1 person", "2 full_name", "3 visit", "4 reason"],
};

const REFINERY_CONTRACTS: &str =
    "SELECT CAST(version AS TEXT) || ' ' || name FROM refinery_contract_history ORDER BY version";

const SQLX: History = History {
    rows: "SELECT CAST(version AS TEXT) || ' ' || description FROM _sqlx_migrations WHERE success ORDER BY version",
    expanded: &["10 person", "20 full name", "30 visit"],
    contracted: &["10 person", "20 full name", "25 name", "30 visit"],
    expanded_again: &[
        "10 person",
        "20 full name",
        "25 name",
        "30 visit",
        "40 reason",
    ],
};

/// The gates' own record, as far as it does not say who is alive.
const RECORD: &str = "SELECT CAST(version AS TEXT) || ' ' || CAST(floor AS TEXT) || ' ' ||
    COALESCE(CAST(expanding AS TEXT), '-') || ' ' || COALESCE(CAST(contracting AS TEXT), '-') FROM handover_schema";

/// A process of the release that knows so much.
fn start(tool: &str, store: &Store, knows: u32) -> Server {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handover-migrators"));
    command.args([tool, &store.name(), &knows.to_string()]);
    Server::spawn(command).unwrap()
}

async fn line(server: &Server, pattern: &str) -> String {
    server.wait_for_line(pattern, DEADLINE).await.unwrap()
}

/// Of all that was said.
fn count(servers: &[Server], said: &str) -> usize {
    let of = |server: &Server| server.log().lines().filter(|line| *line == said).count();
    servers.iter().map(of).sum()
}

async fn runs_each_step_once(tool: &str, store: &Store, history: Option<&History>) {
    let servers: Vec<_> = (0..PROCESSES).map(|_| start(tool, store, 3)).collect();
    for server in &servers {
        line(server, "ready").await;
    }
    for version in 1..=3 {
        assert_eq!(count(&servers, &format!("ran expand {version}")), 1);
    }
    assert_eq!(store.rows(RECORD).await, ["3 0 - -"]);
    // What drops something has not been run on the way.
    assert_eq!(store.columns("person").await, ["full_name", "id", "name"]);
    if let Some(history) = history {
        assert_eq!(store.rows(history.rows).await, history.expanded);
    }

    store.until(ACTIVE, &[&PROCESSES.to_string()]).await;
    for server in &servers {
        server.signal(Signal::USR1).unwrap();
    }
    for server in &servers {
        let contracted = line(server, "contracted: ").await;
        assert!(contracted.contains("Ok("), "{contracted}");
    }
    assert_eq!(count(&servers, "ran contract 2"), 1);
    assert_eq!(store.rows(RECORD).await, ["3 2 - -"]);
    assert_eq!(store.columns("person").await, ["full_name", "id"]);
    if let Some(history) = history {
        assert_eq!(store.rows(history.rows).await, history.contracted);
    }

    // A later release goes on where the tool has been, past what was contracted in between.
    let next = [start(tool, store, 4)];
    line(&next[0], "ready").await;
    assert_eq!(count(&next, "ran expand 4"), 1);
    let others = ["ran expand 3", "ran contract 2"];
    assert_eq!(others.map(|other| count(&next, other)), [0, 0]);
    assert_eq!(store.rows(RECORD).await, ["4 2 - -"]);
    assert_eq!(store.columns("visit").await, ["at", "person", "reason"]);
    if let Some(history) = history {
        assert_eq!(store.rows(history.rows).await, history.expanded_again);
    }
}

/// How many serve.
const ACTIVE: &str =
    "SELECT CAST(count(*) AS TEXT) FROM handover_generations WHERE state = 'active'";

#[tokio::test]
async fn refinery_is_run_once_for_each_step_though_ten_start_at_once_on_sqlite() {
    let store = Store::sqlite();
    runs_each_step_once("refinery", &store, Some(&REFINERY)).await;
    assert_eq!(store.rows(REFINERY_CONTRACTS).await, ["2 name"]);
}

#[tokio::test]
async fn refinery_is_run_once_for_each_step_though_ten_start_at_once_on_postgresql() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    runs_each_step_once("refinery", &store, Some(&REFINERY)).await;
    assert_eq!(store.rows(REFINERY_CONTRACTS).await, ["2 name"]);
}

#[tokio::test]
async fn sqlx_is_run_once_for_each_step_though_ten_start_at_once_on_sqlite() {
    runs_each_step_once("sqlx", &Store::sqlite(), Some(&SQLX)).await;
}

#[tokio::test]
async fn sqlx_is_run_once_for_each_step_though_ten_start_at_once_on_postgresql() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    runs_each_step_once("sqlx", &store, Some(&SQLX)).await;
}

#[tokio::test]
async fn psql_is_run_once_for_each_step_though_ten_start_at_once() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    runs_each_step_once("psql", &store, None).await;
}
