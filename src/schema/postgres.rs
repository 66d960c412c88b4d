//! The record in a PostgreSQL database, for one host or many.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row};

use super::gate::{Change, Record};
use super::rows::{self, Value};
use super::store::{Claim, Store, StoreError, Transaction, Work};
use crate::config::{SCHEMA_CLAIM_CHECK, SCHEMA_LOCK_DEADLINE};

type Connecting = Pin<Box<dyn Future<Output = Result<Client, StoreError>> + Send>>;

/// A PostgreSQL database, which all hosts share.
///
/// Its record is in the tables `handover_schema`, `handover_generations` and `handover_departures`, which are made when
/// they are needed, where the user's search path leads. Leases are by the clock of the database. Each transaction has a
/// connection of its own. Steps are claimed by an advisory lock, those that run outside of a transaction by one of their
/// session, so a pooler between must not share sessions. A step that takes long keeps nobody from starting.
///
/// An `ALTER TABLE` waits for whoever uses the table, and everybody who comes later waits for it: a step in a transaction
/// gives up after a [while](Self::lock_timeout), with nothing changed.
#[derive(Clone)]
pub struct Postgres {
    connect: Arc<dyn Fn() -> Connecting + Send + Sync>,
    lock_timeout: Duration,
}

impl Postgres {
    /// As a connection string says, without TLS: `host=/run/postgresql dbname=app user=app`, or a `postgres://` URL.
    pub fn new(config: impl Into<String>) -> Self {
        let config: Arc<str> = config.into().into();
        Self::with(move || {
            let config = Arc::clone(&config);
            async move {
                let (client, connection) = tokio_postgres::connect(&config, NoTls).await?;
                // It ends with its client.
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "a connection to the store of the schema has ended");
                    }
                });
                Ok(client)
            }
        })
    }

    /// By connections of the application's own making, for those who use TLS. Each call makes a new one, and takes care
    /// that it is driven.
    ///
    /// It is called for each question, each transaction and each step outside of one. So a connection that is lost costs
    /// what it was at, and what comes next has another one: a transaction is undone, and a step is given up, since another
    /// process may begin it.
    pub fn with<F, C>(connect: F) -> Self
    where
        F: Fn() -> C + Send + Sync + 'static,
        C: Future<Output = Result<Client, StoreError>> + Send + 'static,
    {
        Self {
            connect: Arc::new(move || Box::pin(connect())),
            lock_timeout: SCHEMA_LOCK_DEADLINE,
        }
    }

    /// How long a statement of a step that runs in a transaction waits for each lock, such as that of a table in use
    /// (`lock_timeout`). Default: [`SCHEMA_LOCK_DEADLINE`], 10 s.
    #[must_use]
    pub fn lock_timeout(mut self, limit: Duration) -> Self {
        self.lock_timeout = limit;
        self
    }
}

impl Store for Postgres {
    fn read(&self) -> Work<'_, Record> {
        Box::pin(async move {
            let client = (self.connect)().await?;
            client
                .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                .await?;
            match has_tables(&client).await? {
                true => read(&client).await,
                false => untouched(&client).await,
            }
        })
    }

    fn begin(&self, patience: Duration) -> Work<'_, Box<dyn Transaction>> {
        Box::pin(async move {
            let client = (self.connect)().await?;
            // Whoever has waited for the row sees what was written meanwhile, whatever the database's default is.
            client
                .batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED")
                .await?;
            // Whoever is frozen in the middle of one keeps nobody waiting for long.
            let idle_ms = millis(patience.max(SCHEMA_LOCK_DEADLINE));
            client
                .batch_execute(&format!(
                    "SET LOCAL idle_in_transaction_session_timeout = {idle_ms}"
                ))
                .await?;
            if !has_tables(&client).await? {
                // Of those who come at the same time one makes them, and the others find them. Asked once more, a server
                // may answer from what it remembers.
                wait_for_locks(&client, patience).await?;
                client.execute(LOCK_TRANSACTION, &[&KEY_TABLES]).await?;
                client.batch_execute(rows::TABLES).await?;
            }
            let transaction: Box<dyn Transaction> = Box::new(Session {
                client,
                patience,
                lock_timeout: self.lock_timeout,
            });
            Ok(transaction)
        })
    }

    fn claim(&self, patience: Duration) -> Work<'_, Box<dyn Claim>> {
        Box::pin(async move {
            let client = (self.connect)().await?;
            let millis = millis(patience);
            client
                .batch_execute(&format!("SET lock_timeout = {millis}"))
                .await?;
            client.execute(LOCK_SESSION, &[&KEY_STEPS]).await?;
            let claim: Box<dyn Claim> = Box::new(client);
            Ok(claim)
        })
    }
}

/// The server lets go of it when the connection ends, whoever ends it.
impl Claim for Client {
    fn lost(&mut self) -> Pin<Box<dyn Future<Output = StoreError> + Send + '_>> {
        Box::pin(async {
            loop {
                sleep(SCHEMA_CLAIM_CHECK).await;
                if let Err(error) = self.batch_execute("").await {
                    return error.into();
                }
            }
        })
    }
}

/// A connection in the middle of a transaction, which ends with it.
struct Session {
    client: Client,
    /// With others at the record.
    patience: Duration,
    /// With others at the application's own tables.
    lock_timeout: Duration,
}

impl Transaction for Session {
    fn read(&mut self) -> Work<'_, Record> {
        Box::pin(async {
            wait_for_locks(&self.client, self.patience).await?;
            self.client.execute(LOCK_RECORD, &[]).await?;
            read(&self.client).await
        })
    }

    fn claim(&mut self, patience: Duration) -> Work<'_, ()> {
        Box::pin(async move {
            wait_for_locks(&self.client, patience).await?;
            self.client.execute(LOCK_TRANSACTION, &[&KEY_STEPS]).await?;
            Ok(())
        })
    }

    fn write<'a>(&'a mut self, change: &'a Change) -> Work<'a, ()> {
        Box::pin(async {
            let now_ms = now_ms(&self.client).await?;
            for (sql, values) in rows::statements(change, now_ms) {
                let values: Vec<_> = values.iter().map(parameter).collect();
                self.client.execute(sql, &values).await?;
            }
            Ok(())
        })
    }

    fn execute<'a>(&'a mut self, sql: &'a str, limit: Duration) -> Work<'a, ()> {
        Box::pin(async move {
            let before = self.number().await?;
            wait_for_locks(&self.client, self.lock_timeout).await?;
            self.give_up_after(limit).await?;
            self.client.batch_execute(sql).await?;
            self.client
                .batch_execute("SET LOCAL statement_timeout TO DEFAULT")
                .await?;
            match self.number().await? == before {
                true => Ok(()),
                false => Err("the statements have ended the transaction that they run in".into()),
            }
        })
    }

    fn commit(self: Box<Self>) -> Work<'static, ()> {
        Box::pin(async move { Ok(self.client.batch_execute("COMMIT").await?) })
    }
}

impl Session {
    /// A server goes on with a statement that nobody waits for any more, and so with its locks. It ends it after the limit,
    /// and looks each second whether the process that has asked is still there, where it can (since version 14).
    async fn give_up_after(&self, limit: Duration) -> Result<(), StoreError> {
        let millis = millis(limit);
        let sql = format!(
            "SET LOCAL statement_timeout = {millis};
             SELECT set_config(name, '1s', true) FROM pg_settings
                WHERE name = 'client_connection_check_interval' AND version() LIKE '%linux%'"
        );
        Ok(self.client.batch_execute(&sql).await?)
    }

    /// Which transaction this is.
    async fn number(&self) -> Result<i64, StoreError> {
        let sql = "SELECT CAST(txid_current() AS BIGINT)";
        Ok(self.client.query_one(sql, &[]).await?.try_get(0)?)
    }
}

impl rows::Columns for Row {
    fn number(&self, column: usize) -> Result<Option<i64>, StoreError> {
        Ok(self.try_get(column)?)
    }

    fn text(&self, column: usize) -> Result<String, StoreError> {
        Ok(self.try_get(column)?)
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The connection string may have a password.
        out.debug_struct("Postgres").finish_non_exhaustive()
    }
}

fn parameter(value: &Value) -> &(dyn ToSql + Sync) {
    match value {
        Value::Number(number) => number,
        Value::Text(text) => text,
    }
}

async fn has_tables(client: &Client) -> Result<bool, StoreError> {
    let sql = "SELECT to_regclass('handover_schema') IS NOT NULL";
    Ok(client.query_one(sql, &[]).await?.try_get(0)?)
}

async fn read(client: &Client) -> Result<Record, StoreError> {
    // Tables that were made a moment ago may be there, and what is in them not yet.
    let Some(schema) = client.query_opt(rows::READ_SCHEMA, &[]).await? else {
        return untouched(client).await;
    };
    let generations = client.query(rows::READ_GENERATIONS, &[]).await?;
    let departures = client.query(rows::READ_DEPARTURES, &[]).await?;
    rows::record(&schema, &generations, &departures, now_ms(client).await?)
}

/// A store that nobody has touched.
async fn untouched(client: &Client) -> Result<Record, StoreError> {
    Ok(Record {
        now_ms: now_ms(client).await?,
        ..Record::default()
    })
}

async fn now_ms(client: &Client) -> Result<u64, StoreError> {
    let sql = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";
    let now: i64 = client.query_one(sql, &[]).await?.try_get(0)?;
    Ok(u64::try_from(now)?)
}

async fn wait_for_locks(client: &Client, limit: Duration) -> Result<(), StoreError> {
    let millis = millis(limit);
    let sql = format!("SET LOCAL lock_timeout = {millis}");
    Ok(client.batch_execute(&sql).await?)
}

/// As a setting has it; none is no limit.
fn millis(limit: Duration) -> i32 {
    i32::try_from(limit.as_millis()).unwrap_or(i32::MAX).max(1)
}

const LOCK_RECORD: &str = "SELECT 1 FROM handover_schema WHERE id = 1 FOR UPDATE";
const LOCK_TRANSACTION: &str = "SELECT pg_advisory_xact_lock($1)";
const LOCK_SESSION: &str = "SELECT pg_advisory_lock($1)";

/// Of steps outside of transactions: "handover", as a number.
const KEY_STEPS: i64 = 0x6861_6e64_6f76_6572;
/// Of whoever makes the tables.
const KEY_TABLES: i64 = KEY_STEPS + 1;
