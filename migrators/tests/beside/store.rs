//! A database of the test's own, and what is in it.

use tempfile::TempDir;
use tokio::time::timeout;

use crate::DEADLINE;
use crate::postgres::Server;

pub(crate) enum Store {
    Sqlite(TempDir),
    Postgres { server: Server, name: String },
}

impl Store {
    pub(crate) fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    /// None, which it says, where there is no PostgreSQL.
    pub(crate) async fn postgres() -> Option<Self> {
        let server = Server::start().await?;
        let name = server.database("app").await;
        Some(Self::Postgres { server, name })
    }

    /// What it is opened by.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Sqlite(room) => room.path().join("app.db").display().to_string(),
            Self::Postgres { name, .. } => name.clone(),
        }
    }

    /// Rows of one text.
    pub(crate) async fn rows(&self, sql: &str) -> Vec<String> {
        match self {
            Self::Sqlite(_) => {
                let connection = rusqlite::Connection::open(self.name()).unwrap();
                let mut statement = connection.prepare(sql).unwrap();
                let rows = statement.query_map([], |row| row.get(0)).unwrap();
                rows.map(Result::unwrap).collect()
            }
            Self::Postgres { server, .. } => {
                let rows = server.connect("app").await.query(sql, &[]).await.unwrap();
                rows.iter().map(|row| row.get(0)).collect()
            }
        }
    }

    pub(crate) async fn columns(&self, table: &str) -> Vec<String> {
        let sql = match self {
            Self::Sqlite(_) => format!("SELECT name FROM pragma_table_info('{table}') ORDER BY 1"),
            Self::Postgres { .. } => format!(
                "SELECT CAST(column_name AS TEXT) FROM information_schema.columns WHERE table_name = '{table}' ORDER BY 1"
            ),
        };
        self.rows(&sql).await
    }

    pub(crate) async fn until(&self, sql: &str, wanted: &[&str]) {
        let look = async {
            while self.rows(sql).await != wanted {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, look).await.unwrap();
    }
}
