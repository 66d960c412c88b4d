//! A service with a schema in a SQLite file, and what is in that file.

use std::fs;
use std::path::{Path, PathBuf};

use handover::control::{Reply, Request, SchemaState, SchemaWish};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::operated::{Operated, Ran};
use crate::support::{DEADLINE, Setup, eventually};

/// The place of a database that services share.
pub(crate) struct Database {
    room: TempDir,
}

impl Database {
    pub(crate) fn new() -> Self {
        Self {
            room: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.room.path().join("app.db")
    }

    /// A service of this database on a host of this name, whose lease is short.
    pub(crate) fn setup(&self, host: &str) -> Setup {
        on(&self.path().display().to_string(), host)
    }

    pub(crate) async fn start(&self, host: &str) -> Operated {
        Operated::start(self.setup(host)).await
    }

    pub(crate) fn connection(&self) -> Connection {
        Connection::open(self.path()).unwrap()
    }

    pub(crate) fn columns(&self) -> Vec<String> {
        columns(&self.connection())
    }

    /// Until somebody has changed something that is not committed: there is a journal with what was before.
    pub(crate) async fn until_written(&self) {
        let journal = self.path().with_extension("db-journal");
        eventually("a journal", || journal.exists(), true).await;
    }

    /// The version, the floor, and what has been begun.
    pub(crate) fn record(&self) -> (u32, u32, Option<u32>, Option<u32>) {
        let sql = "SELECT version, floor, expanding, contracting FROM handover_schema";
        let row =
            |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
        self.connection().query_one(sql, [], row).unwrap()
    }
}

fn columns(connection: &Connection) -> Vec<String> {
    let mut statement = connection
        .prepare("SELECT name FROM pragma_table_info('thing') ORDER BY name")
        .unwrap();
    let names = statement.query_map([], |row| row.get(0)).unwrap();
    names.map(Result::unwrap).collect()
}

/// A service of this store on a host of this name.
pub(crate) fn on(store: &str, host: &str) -> Setup {
    Setup::new()
        .with("TESTD_SCHEMA", store)
        .with("TESTD_HOST", host)
        .with("TESTD_LEASE_MS", 500)
        .with("TESTD_RENEW_MS", 100)
}

/// The next release knows and needs so much, and commits with its flip.
pub(crate) async fn release(of: &Operated, from: u64, schema: &str) -> u32 {
    of.service.plan(&format!("schema={schema}"));
    of.service.upgrade(from, from + 1).await
}

/// The same, nothing is left of the one before, and the record says so.
pub(crate) async fn replaced(of: &Operated, from: u64, schema: &str) {
    release(of, from, schema).await;
    until_alone(of).await;
}

pub(crate) async fn until_alone(of: &Operated) {
    until(
        of,
        "the generation before has left",
        |state| matches!(&state.generations[..], [only] if only.state == "active"),
    )
    .await;
}

/// A release of this plan never serves, and this is why.
pub(crate) async fn aborts(of: &Operated, plan: &str, sentence: &str) {
    of.service.plan(plan);
    let failed = of.run(&["upgrade"]).await;
    assert_eq!(failed.code, 3, "{failed:?}");
    let told = of.run(&["explain"]).await;
    assert!(told.stdout.contains(sentence), "{told:?}");
}

pub(crate) async fn contract(of: &Operated, version: u32) -> Ran {
    of.run(&["schema", "contract", &version.to_string(), "--confirm"])
        .await
}

pub(crate) async fn state(of: &Operated) -> SchemaState {
    let wish = SchemaWish::Status;
    match of.client().ask(&Request::Schema { wish }).await.unwrap() {
        Reply::Schema { schema } => *schema,
        other => panic!("{other:?}"),
    }
}

/// Until the record says so of the generations in it.
pub(crate) async fn until(of: &Operated, what: &str, wanted: impl Fn(&SchemaState) -> bool) {
    let look = async {
        while !wanted(&state(of).await) {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(DEADLINE, look).await;
    waited.unwrap_or_else(|_| panic!("{what} is not so"));
}

/// Refused with exactly this exit code, and all of these words in the reason.
pub(crate) fn assert_refused(ran: &Ran, words: &[&str]) {
    assert_eq!(ran.code, 2, "{ran:?}");
    for word in words {
        assert!(ran.stderr.contains(word), "no {word:?} in {ran:?}");
    }
}

/// Until a process has the right to write to its file (proc_locks(5)).
pub(crate) async fn until_locked_by(pid: u32) {
    let holder = format!(" WRITE {pid} ");
    let is_locked = || fs::read_to_string("/proc/locks").unwrap().contains(&holder);
    eventually("the lock", is_locked, true).await;
}

pub(crate) fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}
