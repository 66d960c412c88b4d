//! The record in a SQLite file, beside the application's own tables.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, InterruptHandle, OpenFlags, params_from_iter};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::gate::{Change, Record};
use super::rows::{self, Value};
use super::store::{Claim, Store, StoreError, Transaction, Work};
use crate::config::{SCHEMA_CLAIM_RETRY, SCHEMA_DEADLINE};

/// A database in a SQLite file: for services that have no other, on one host.
///
/// Its record is in the tables `handover_schema`, `handover_generations` and `handover_departures`, which are made when
/// they are needed. Each transaction has a connection and a thread of its own, so the application opens its connections as
/// it likes; it needs a busy timeout (`PRAGMA busy_timeout`), as everybody does who shares a file. SQLite has one writer: while
/// a step runs in a transaction nobody else writes, and no generation starts.
///
/// Steps that run outside of a transaction are claimed by a lock (flock(2)) on an empty file beside the database, of its
/// name and `-handover`.
///
/// A program links SQLite once: here by rusqlite, in any version from 0.32 to 0.40 that the rest of the program links it
/// with, sqlx 0.8 and 0.9 and refinery among them.
#[derive(Clone, Debug)]
pub struct Sqlite {
    path: PathBuf,
    /// The record has been seen there. From then on one that is not is lost, and is not made anew: that would be one of a
    /// store that nobody has touched.
    is_known: Arc<AtomicBool>,
}

impl Sqlite {
    /// The database at this path, which is made if it is not there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            is_known: Arc::default(),
        }
    }

    fn is_known(&self) -> bool {
        self.is_known.load(Ordering::Relaxed)
    }

    /// Whether the tables may be found not to be there.
    fn found(&self, has_tables: bool) -> Result<(), StoreError> {
        if has_tables {
            self.is_known.store(true, Ordering::Relaxed);
        }
        match has_tables || !self.is_known() {
            true => Ok(()),
            false => Err(format!("{} has lost its record", self.path.display()).into()),
        }
    }

    async fn open(&self, patience: Duration) -> Result<Session, StoreError> {
        let mut flags = OpenFlags::default();
        flags.set(OpenFlags::SQLITE_OPEN_CREATE, !self.is_known());
        let (path, is_known) = (self.path.clone(), Arc::clone(&self.is_known));
        let connect = move || {
            let connection = Connection::open_with_flags(path, flags)?;
            connection.busy_timeout(patience)?;
            Ok(connection)
        };
        Session::open(connect, is_known).await
    }

    fn claim_path(&self) -> PathBuf {
        let mut name = self.path.as_os_str().as_bytes().to_vec();
        name.extend_from_slice(b"-handover");
        PathBuf::from(std::ffi::OsStr::from_bytes(&name))
    }
}

impl Store for Sqlite {
    fn read(&self) -> Work<'_, Record> {
        Box::pin(async move {
            if !self.is_known() && !fs::exists(&self.path)? {
                return Read::default().into_record();
            }
            let session = self.open(SCHEMA_DEADLINE).await?;
            let found = session.ask(|connection| {
                // The tables are read as they are at one time.
                connection.execute_batch("BEGIN")?;
                match has_tables(connection)? {
                    true => read(connection).map(Some),
                    false => Ok(None),
                }
            });
            let found = found.await?;
            self.found(found.is_some())?;
            found.unwrap_or_default().into_record()
        })
    }

    fn begin(&self, patience: Duration) -> Work<'_, Box<dyn Transaction>> {
        Box::pin(async move {
            let session = self.open(patience).await?;
            let begun = session.ask(|connection| {
                connection.execute_batch("BEGIN IMMEDIATE")?;
                has_tables(connection)
            });
            let has_tables = begun.await?;
            self.found(has_tables)?;
            if !has_tables {
                let make = |connection: &Connection| connection.execute_batch(rows::TABLES);
                session.ask(make).await?;
            }
            let transaction: Box<dyn Transaction> = Box::new(session);
            Ok(transaction)
        })
    }

    fn claim(&self, patience: Duration) -> Work<'_, Box<dyn Claim>> {
        Box::pin(async move {
            let mut options = OpenOptions::new();
            options.create(true).truncate(false).write(true);
            let path = self.claim_path();
            let file = options.open(&path)?;
            let Ok(claimed) = timeout(patience, claimed(file)).await else {
                let path = path.display();
                return Err(format!(
                    "another process is at a step: it has had {path} locked for {patience:?}"
                )
                .into());
            };
            let claim: Box<dyn Claim> = Box::new(claimed?);
            Ok(claim)
        })
    }
}

/// The kernel lets go of it when the process ends.
impl Claim for Flock<File> {}

async fn claimed(mut file: File) -> io::Result<Flock<File>> {
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((unlocked, Errno::EWOULDBLOCK)) => file = unlocked,
            Err((_, errno)) => return Err(errno.into()),
        }
        sleep(SCHEMA_CLAIM_RETRY).await;
    }
}

/// A connection on a thread of its own, where it may block. It ends with this, and what was not committed with it.
struct Session {
    orders: mpsc::Sender<Order>,
    interrupt: InterruptHandle,
    /// For when a record was made.
    is_known: Arc<AtomicBool>,
}

type Order = Box<dyn FnOnce(&Connection) + Send>;

impl Session {
    async fn open(
        connect: impl FnOnce() -> rusqlite::Result<Connection> + Send + 'static,
        is_known: Arc<AtomicBool>,
    ) -> Result<Self, StoreError> {
        let (orders, received) = mpsc::channel::<Order>();
        let (opened, is_open) = oneshot::channel();
        let thread = thread::Builder::new().name("handover-sqlite".to_owned());
        thread.spawn(move || {
            match connect() {
                Ok(connection) => {
                    // Nobody waits any more: there are no orders either.
                    let _ = opened.send(Ok(connection.get_interrupt_handle()));
                    received.iter().for_each(|order| order(&connection));
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                }
            }
        })?;
        let interrupt = is_open.await??;
        Ok(Self {
            orders,
            interrupt,
            is_known,
        })
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let order: Order = Box::new(move |connection| {
            // Whoever asked may have stopped waiting, before or while it was answered.
            if !reply.is_closed() {
                let _ = reply.send(question(connection));
            }
        });
        // Where the thread is gone there is no answer, which is seen below.
        let _ = self.orders.send(order);
        Ok(answer.await??)
    }
}

impl Transaction for Session {
    fn read(&mut self) -> Work<'_, Record> {
        Box::pin(async { self.ask(read).await?.into_record() })
    }

    fn write<'a>(&'a mut self, change: &'a Change) -> Work<'a, ()> {
        let change = change.clone();
        Box::pin(self.ask(move |connection| write(connection, &change)))
    }

    fn claim(&mut self, _: Duration) -> Work<'_, ()> {
        // There is one transaction at a time that writes.
        Box::pin(async { Ok(()) })
    }

    fn execute<'a>(&'a mut self, sql: &'a str, _: Duration) -> Work<'a, ()> {
        let sql = sql.to_owned();
        Box::pin(async move {
            let has_ended = self.ask(move |connection| {
                connection.execute_batch(&sql)?;
                Ok(connection.is_autocommit())
            });
            match has_ended.await? {
                false => Ok(()),
                true => Err("the statements have ended the transaction that they run in".into()),
            }
        })
    }

    fn commit(self: Box<Self>) -> Work<'static, ()> {
        Box::pin(async move {
            self.ask(|connection| connection.execute_batch("COMMIT"))
                .await?;
            self.is_known.store(true, Ordering::Relaxed);
            Ok(())
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A statement that nobody waits for any more would keep everybody else from writing until it is done.
        self.interrupt.interrupt();
    }
}

fn has_tables(connection: &Connection) -> rusqlite::Result<bool> {
    // Not `Connection::table_exists`, which the oldest rusqlite that will do has not got.
    let sql = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'handover_schema')";
    connection.query_row(sql, [], |row| row.get(0))
}

fn read(connection: &Connection) -> rusqlite::Result<Read> {
    Ok(Read {
        schema: all(connection, rows::READ_SCHEMA)?,
        generations: all(connection, rows::READ_GENERATIONS)?,
        departures: all(connection, rows::READ_DEPARTURES)?,
    })
}

/// What the tables hold.
#[derive(Default)]
struct Read {
    schema: Vec<Columns>,
    generations: Vec<Columns>,
    departures: Vec<Columns>,
}

struct Columns(Vec<Sql>);

impl Read {
    fn into_record(self) -> Result<Record, StoreError> {
        match self.schema.first() {
            Some(schema) => rows::record(schema, &self.generations, &self.departures, now_ms()),
            None => Ok(Record {
                now_ms: now_ms(),
                ..Record::default()
            }),
        }
    }
}

impl rows::Columns for Columns {
    fn number(&self, column: usize) -> Result<Option<i64>, StoreError> {
        match self.0.get(column) {
            Some(Sql::Integer(number)) => Ok(Some(*number)),
            Some(Sql::Null) => Ok(None),
            other => Err(format!("column {column} of the record is {other:?}").into()),
        }
    }

    fn text(&self, column: usize) -> Result<String, StoreError> {
        match self.0.get(column) {
            Some(Sql::Text(text)) => Ok(text.clone()),
            other => Err(format!("column {column} of the record is {other:?}").into()),
        }
    }
}

fn all(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<Columns>> {
    let mut statement = connection.prepare(sql)?;
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        let columns = (0..columns).map(|column| row.get(column));
        Ok(Columns(columns.collect::<rusqlite::Result<_>>()?))
    })?;
    rows.collect()
}

fn write(connection: &Connection, change: &Change) -> rusqlite::Result<()> {
    for (sql, values) in rows::statements(change, now_ms()) {
        let values = values.into_iter().map(|value| match value {
            Value::Number(number) => number.map_or(Sql::Null, Sql::Integer),
            Value::Text(text) => Sql::Text(text),
        });
        connection.execute(sql, params_from_iter(values))?;
    }
    Ok(())
}

/// SQLite has no clock but that of the machine, which all who share the file have.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::forms::{Forms, Whole};
    use super::super::gate::{Declared, Generation, State};
    use super::*;

    /// Nothing a test waits for takes longer than this.
    const DEADLINE: Duration = Duration::from_secs(20);

    fn generation() -> Generation {
        Generation {
            host: "here".to_owned(),
            process: "1 2 3".to_owned(),
            generation: 7,
            declared: Declared {
                knows: 3,
                needs: 2,
                forms: Some(Forms {
                    reads: 2,
                    writes_from: 1,
                    writes_to: 2,
                    backfills: true,
                }),
            },
            state: State::Draining,
            awaits: Some(2),
            lease_ms: 1_234,
        }
    }

    fn changes() -> Vec<Change> {
        let other = Generation {
            process: "4 5 6".to_owned(),
            declared: Declared::default(),
            state: State::NotYet,
            ..generation()
        };
        vec![
            Change::Expanding(1),
            Change::Expanded(1),
            Change::Expanding(2),
            Change::Expanded(1),
            Change::Expanded(2),
            Change::Expanding(3),
            Change::Expanded(1),
            Change::Activated(1),
            Change::Whole(Whole { from: 1, to: 2 }),
            Change::Contracting(1),
            Change::Contracted(1),
            Change::Contracting(2),
            Change::Contracted(1),
            Change::Entered(generation()),
            Change::Entered(other.clone()),
            Change::Entered(Generation {
                state: State::Warm,
                awaits: None,
                lease_ms: 5_678,
                ..generation()
            }),
            Change::Left {
                host: other.host,
                process: other.process,
            },
            Change::Unentered(1),
            Change::Unentered(1),
        ]
    }

    #[tokio::test]
    async fn a_record_is_read_as_it_was_written_in_and_behind_the_transaction() {
        let room = tempfile::tempdir().unwrap();
        let store = Sqlite::new(room.path().join("app.db"));
        let mut expected = store.read().await.unwrap();
        assert_eq!(expected.version, 0);
        assert!(!store.path.exists());
        let mut transaction = store.begin(DEADLINE).await.unwrap();
        for change in changes() {
            transaction.write(&change).await.unwrap();
            expected.apply(&change);
            let mut read = transaction.read().await.unwrap();
            (expected.now_ms, read.departures) = (read.now_ms, expected.departures.clone());
            assert_eq!(read, expected, "{change:?}");
        }
        transaction.commit().await.unwrap();
        let mut read = store.read().await.unwrap();
        let departed: Vec<_> = read.departures.iter().map(|it| it.knows).collect();
        assert_eq!(departed, [0, 1]);
        (read.now_ms, read.departures) = (expected.now_ms, expected.departures.clone());
        assert_eq!(read, expected);
    }

    #[tokio::test]
    async fn what_was_not_committed_is_gone_and_others_wait_for_it_until_their_patience_is_over() {
        let room = tempfile::tempdir().unwrap();
        let store = Sqlite::new(room.path().join("app.db"));
        let mut transaction = store.begin(DEADLINE).await.unwrap();
        transaction
            .execute("CREATE TABLE t (x)", DEADLINE)
            .await
            .unwrap();
        transaction.write(&Change::Expanded(1)).await.unwrap();
        let impatient = store.begin(Duration::from_millis(10)).await;
        let error = impatient.err().unwrap();
        assert!(error.to_string().contains("locked"), "{error}");
        assert_eq!(store.read().await.unwrap().version, 0);
        drop(transaction);
        let mut transaction = store.begin(DEADLINE).await.unwrap();
        assert_eq!(transaction.read().await.unwrap().version, 0);
        transaction
            .execute("CREATE TABLE t (x)", DEADLINE)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_record_that_was_there_and_is_gone_is_an_error_and_is_not_made_anew() {
        let room = tempfile::tempdir().unwrap();
        let store = Sqlite::new(room.path().join("app.db"));
        let transaction = store.begin(DEADLINE).await.unwrap();
        transaction.commit().await.unwrap();
        let away = room.path().join("away.db");
        fs::rename(&store.path, &away).unwrap();
        assert!(store.read().await.is_err());
        assert!(store.begin(DEADLINE).await.is_err());
        assert!(!store.path.exists());

        // Somebody else has made an empty one.
        Connection::open(&store.path).unwrap();
        let lost = store.read().await.unwrap_err();
        assert!(lost.to_string().contains("has lost its record"), "{lost}");
        let lost = store.begin(DEADLINE).await.err().unwrap();
        assert!(lost.to_string().contains("has lost its record"), "{lost}");

        fs::rename(&away, &store.path).unwrap();
        store.read().await.unwrap();
        store.begin(DEADLINE).await.unwrap();
    }

    #[tokio::test]
    async fn statements_that_end_their_transaction_are_an_error() {
        let room = tempfile::tempdir().unwrap();
        let store = Sqlite::new(room.path().join("app.db"));
        let mut transaction = store.begin(DEADLINE).await.unwrap();
        let ended = transaction
            .execute("CREATE TABLE t (x); COMMIT", DEADLINE)
            .await;
        assert!(
            ended
                .unwrap_err()
                .to_string()
                .contains("ended the transaction")
        );
    }

    #[tokio::test]
    async fn a_claim_is_one_s_until_it_is_dropped() {
        let room = tempfile::tempdir().unwrap();
        let store = Sqlite::new(room.path().join("app.db"));
        let claim = store.claim(DEADLINE).await.unwrap();
        assert!(store.claim(Duration::from_millis(50)).await.is_err());
        drop(claim);
        store.claim(DEADLINE).await.unwrap();
    }

    #[tokio::test]
    async fn a_statement_that_is_given_up_keeps_nobody_else_from_writing() {
        let room = tempfile::tempdir().unwrap();
        let store = Sqlite::new(room.path().join("app.db"));
        let mut transaction = store.begin(DEADLINE).await.unwrap();
        let endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
             SELECT max(i) FROM n";
        let given_up = timeout(
            Duration::from_millis(50),
            transaction.execute(endless, DEADLINE),
        );
        assert!(given_up.await.is_err());
        drop(transaction);
        store.begin(DEADLINE).await.unwrap();
    }
}
