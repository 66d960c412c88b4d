//! A column is renamed in three releases, while clients write and read: none of them fails, no row is lost, and until the
//! end there is a way back, one release after another.
//!
//! | release | writes | reads | when it starts |
//! |---|---|---|---|
//! | 1 | `name` | `name` | makes the table |
//! | 2 | both | `name` | adds `full_name`; copies back what release 4 has written, if that has run |
//! | 3 | both | `full_name` | copies what release 1 has written, each time that it has run |
//! | 4 | `full_name` | `full_name` | nothing; once nobody else is alive, `name` can be dropped |
//!
//! Here one program is all four: which it is, the file `release` in its directory says when it starts.
//!
//! ```sh
//! cargo run --example migrations --features schema-sqlite,schema-postgres    # or: -- --postgres "host=... dbname=..."
//!
//! # in a second shell
//! cargo install --path . --features cli && export HANDOVER_CONTROL=/tmp/migrations/control.sock
//! curl -d Ada http://127.0.0.1:8080/people                # 1 by 1: the row, and the release that has written it
//! echo 3 > /tmp/migrations/release; handover upgrade      # exit code 3: release 1 does not write what it would read
//! echo 2 > /tmp/migrations/release; handover upgrade
//! echo 3 > /tmp/migrations/release; handover upgrade
//! curl http://127.0.0.1:8080/people/1                     # Ada by 3
//! handover schema contract 4                              # exit code 2, and why
//! echo 4 > /tmp/migrations/release; handover upgrade
//! handover schema contract 4 --confirm; handover schema status
//! handover stop
//! ```

mod people;
mod release;

use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};

use self::people::People;
use self::release::Release;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let setting = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
    let directory = PathBuf::from(setting("DIRECTORY", "/tmp/migrations"));
    std::fs::create_dir_all(&directory)?;
    let release = Release::read(&directory)?;

    // The defaults are ten seconds, and a day; these are for trying this out.
    let bake = Duration::from_secs(setting("BAKE", "2").parse()?);
    let contract_after = Duration::ZERO;
    let builder = handover::builder()
        .control(directory.join("control.sock"))
        .bake(bake);
    let mut starting = builder.start().await?;
    let web = starting
        .listen_tcp("web", setting("LISTEN", "127.0.0.1:8080"))
        .await?;
    println!("listening on {}", web.local_addr());
    let database = people::Database::of_arguments(&directory)?;
    let schema = release.schema(&database).contract_after(contract_after);
    // The host name, unless two of them are tried out on one.
    let schema = match std::env::var("HOST") {
        Ok(host) => schema.host(host),
        Err(_) => schema,
    };
    starting.schema(schema).await?;
    let people = database.open(release).await?;
    let generation = starting.ready().await?;

    let app = Router::new()
        .route("/people", post(add))
        .route("/people/{id}", get(look_up).put(rename))
        .with_state(people);
    handover::http::serve(&generation, web, app).await?;
    Ok(())
}

async fn add(State(people): State<People>, name: String) -> Result<String, Failure> {
    let id = people.add(name).await?;
    Ok(people.signed(id))
}

async fn look_up(State(people): State<People>, Path(id): Path<i64>) -> Result<String, Failure> {
    let name = people.name(id).await?.ok_or(Failure::NobodyThere)?;
    Ok(people.signed(name))
}

async fn rename(
    State(people): State<People>,
    Path(id): Path<i64>,
    name: String,
) -> Result<String, Failure> {
    people.rename(id, name).await?;
    Ok(people.signed(id))
}

enum Failure {
    NobodyThere,
    Database(people::Trouble),
}

impl From<people::Trouble> for Failure {
    fn from(trouble: people::Trouble) -> Self {
        Self::Database(trouble)
    }
}

impl axum::response::IntoResponse for Failure {
    fn into_response(self) -> axum::response::Response {
        match self {
            Self::NobodyThere => StatusCode::NOT_FOUND.into_response(),
            Self::Database(trouble) => {
                (StatusCode::INTERNAL_SERVER_ERROR, trouble.to_string()).into_response()
            }
        }
    }
}
