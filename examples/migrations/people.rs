//! The table of people, in SQLite or PostgreSQL.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use handover::schema::{Postgres, Schema, Sqlite};
use rusqlite::{Connection, OptionalExtension};
use tokio_postgres::NoTls;

use crate::release::Release;

pub(crate) type Trouble = Box<dyn std::error::Error + Send + Sync>;

/// Which database it is.
pub(crate) enum Database {
    Sqlite(PathBuf),
    Postgres(String),
}

/// The people in it, as one release reads and writes them.
#[derive(Clone)]
pub(crate) struct People {
    release: Release,
    client: Client,
}

#[derive(Clone)]
enum Client {
    Sqlite(Arc<Mutex<Connection>>),
    Postgres(Arc<tokio_postgres::Client>),
}

impl Database {
    /// A file in this directory, or what `--postgres` says.
    pub(crate) fn of_arguments(directory: &Path) -> Result<Self, String> {
        let mut arguments = std::env::args().skip(1);
        match (arguments.next().as_deref(), arguments.next()) {
            (None, _) => Ok(Self::Sqlite(directory.join("people.db"))),
            (Some("--postgres"), Some(config)) => Ok(Self::Postgres(config)),
            _ => Err("usage: migrations [--postgres CONFIG]".to_owned()),
        }
    }

    pub(crate) fn schema(&self) -> Schema {
        match self {
            Self::Sqlite(path) => Schema::new(Sqlite::new(path)),
            Self::Postgres(config) => Schema::new(Postgres::new(config)),
        }
    }

    pub(crate) fn table(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT)",
            Self::Postgres(_) => {
                "CREATE TABLE people (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name TEXT)"
            }
        }
    }

    pub(crate) async fn open(
        &self,
        release: Release,
    ) -> Result<People, Box<dyn std::error::Error>> {
        let client = match self {
            Self::Sqlite(path) => {
                let connection = Connection::open(path)?;
                connection.busy_timeout(Duration::from_secs(5))?;
                // Readers do not wait for writers then, be they other generations.
                connection.pragma_update(None, "journal_mode", "WAL")?;
                Client::Sqlite(Arc::new(Mutex::new(connection)))
            }
            Self::Postgres(config) => {
                let (client, connection) = tokio_postgres::connect(config, NoTls).await?;
                tokio::spawn(connection);
                Client::Postgres(Arc::new(client))
            }
        };
        Ok(People { release, client })
    }
}

impl People {
    pub(crate) async fn add(&self, name: String) -> Result<i64, Trouble> {
        let adds = self.release.adds();
        match &self.client {
            Client::Sqlite(connection) => {
                on(connection, move |it| {
                    it.query_one(adds, [name], |row| row.get(0))
                })
                .await
            }
            Client::Postgres(client) => Ok(client.query_one(adds, &[&name]).await?.try_get(0)?),
        }
    }

    pub(crate) async fn name(&self, id: i64) -> Result<Option<String>, Trouble> {
        let reads = self.release.reads();
        match &self.client {
            Client::Sqlite(connection) => {
                let row = move |it: &Connection| it.query_one(reads, [id], |row| row.get(0));
                on(connection, move |it| row(it).optional()).await
            }
            Client::Postgres(client) => {
                let row = client.query_opt(reads, &[&id]).await?;
                Ok(row.map(|row| row.try_get(0)).transpose()?)
            }
        }
    }

    pub(crate) async fn rename(&self, id: i64, name: String) -> Result<(), Trouble> {
        let renames = self.release.renames();
        match &self.client {
            Client::Sqlite(connection) => {
                on(connection, move |it| it.execute(renames, (name, id))).await?;
            }
            Client::Postgres(client) => {
                client.execute(renames, &[&name, &id]).await?;
            }
        }
        Ok(())
    }

    /// An answer, and which release it is from.
    pub(crate) fn signed(&self, answer: impl Display) -> String {
        format!("{answer} by {}\n", self.release.0)
    }
}

/// On a thread where it may block.
async fn on<T: Send + 'static>(
    connection: &Arc<Mutex<Connection>>,
    ask: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, Trouble> {
    let connection = Arc::clone(connection);
    let asking = move || ask(&connection.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(tokio::task::spawn_blocking(asking).await??)
}
