//! The example that renames a column, under clients who know what every row has to say.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use handover::control::{self, Reply, Request, SchemaState, SchemaWish, Upgrade, Verdict};
use handover::{Error, ErrorKind};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::example::Example;
use crate::load::{Client, DEADLINE, Load, was_not_processed};
use crate::postgres::Server;

/// The rows, as far as it was answered what they say.
type Expected = Arc<Mutex<BTreeMap<i64, Row>>>;

/// What a row has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    name: String,
    /// What its clerk is renaming it to at this moment.
    renaming: Option<String>,
}

impl Row {
    fn of(name: String) -> Self {
        let renaming = None;
        Self { name, renaming }
    }

    fn may_say(&self, name: &str) -> bool {
        self.name == name || self.renaming.as_deref() == Some(name)
    }
}

/// Adds a person every now and then, renames them and looks them up: each by a request that any generation may answer.
struct Clerk {
    address: SocketAddr,
    expected: Expected,
    is_kept: bool,
    open: Option<SendRequest<Full<Bytes>>>,
    number: usize,
    own: Vec<i64>,
}

impl Clerk {
    fn new(address: SocketAddr, expected: &Expected, is_kept: bool) -> Self {
        Self {
            address,
            expected: Arc::clone(expected),
            is_kept,
            open: None,
            number: 0,
            own: Vec::new(),
        }
    }

    /// The answer and the release that it is from.
    async fn request(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<(String, String), String> {
        let failed = |doing: &str, error: &dyn std::fmt::Debug| {
            format!("{method} {path}: {doing}: {error:?}")
        };
        loop {
            let mut sender = match self.open.take() {
                Some(sender) if !sender.is_closed() => sender,
                _ => {
                    let stream = TcpStream::connect(self.address).await;
                    let stream = stream.map_err(|error| failed("connecting", &error))?;
                    let (sender, connection) = handshake(TokioIo::new(stream))
                        .await
                        .map_err(|error| failed("HTTP/1", &error))?;
                    tokio::spawn(connection);
                    sender
                }
            };
            let request = hyper::Request::builder()
                .method(method)
                .uri(path)
                .header("host", "people")
                .body(Full::from(body.to_owned()))
                .unwrap();
            let response = match sender.send_request(request).await {
                Ok(response) => response,
                Err(error) if was_not_processed(&error) => continue,
                Err(error) => return Err(failed("asking", &error)),
            };
            let status = response.status();
            let body = response.into_body().collect().await;
            let body = body.map_err(|error| failed("reading", &error))?.to_bytes();
            let text = String::from_utf8_lossy(&body).trim_end().to_owned();
            if !status.is_success() {
                return Err(failed(status.as_str(), &text));
            }
            if self.is_kept {
                self.open = Some(sender);
            }
            let (answer, release) = text
                .split_once(" by ")
                .ok_or_else(|| failed("what", &text))?;
            return Ok((answer.to_owned(), release.to_owned()));
        }
    }

    async fn look_up(&mut self, id: i64) -> Result<String, String> {
        let path = format!("/people/{id}");
        let (name, release) = self.request("GET", &path, "").await?;
        let expected = self.expected.lock().unwrap()[&id].name.clone();
        match name == expected {
            true => Ok(release),
            false => Err(format!(
                "{id} is {name:?} to release {release}, and {expected:?}"
            )),
        }
    }
}

impl Client for Clerk {
    async fn ask(&mut self) -> Result<String, String> {
        self.number += 1;
        let name = format!("{} of {:p}", self.number, &self.number);
        // Each of them is looked at again and again.
        if self.number % 8 == 1 {
            let (id, _) = self.request("POST", "/people", &name).await?;
            let id: i64 = id.parse().map_err(|_| format!("no number: {id:?}"))?;
            let row = Row::of(name.clone());
            self.expected.lock().unwrap().insert(id, row);
            self.own.push(id);
            self.look_up(id).await?;
        }
        // Somebody whom a release before may have written.
        let other = self.own[self.number / 2 % self.own.len()];
        let renamed = format!("{name}, renamed");
        let path = format!("/people/{other}");
        let expected = Arc::clone(&self.expected);
        let expect = |to: &dyn Fn(&mut Row)| {
            expected.lock().unwrap().entry(other).and_modify(to);
        };
        expect(&|row| row.renaming = Some(renamed.clone()));
        self.request("PUT", &path, &renamed).await?;
        expect(&|row| *row = Row::of(renamed.clone()));
        let release = self.look_up(other).await?;
        Ok(format!("by {release}"))
    }
}

/// The example with its clients.
struct Service {
    example: Example,
    load: Load,
    expected: Expected,
    address: SocketAddr,
    room: TempDir,
}

impl Service {
    async fn start(postgres: Option<&str>) -> Self {
        let room = tempfile::tempdir().unwrap();
        let settings = [
            ("DIRECTORY", room.path().as_os_str()),
            ("BAKE", "600".as_ref()),
        ];
        let arguments = postgres.map_or_else(Vec::new, |config| vec!["--postgres", config]);
        let (example, address) = Example::start_by("migrations", &settings, &arguments).await;
        let expected = Expected::default();
        let load = Load::new()
            .with(2, || Clerk::new(address, &expected, false))
            .with(2, || Clerk::new(address, &expected, true));
        Self {
            example,
            load,
            expected,
            address,
            room,
        }
    }

    async fn ask(&self, request: Request) -> Result<Reply, Error> {
        let path = self.room.path().join("control.sock");
        control::Client::new(path)
            .deadline(DEADLINE)
            .ask(&request)
            .await
    }

    fn release(&self, number: u32) {
        fs::write(self.room.path().join("release"), number.to_string()).unwrap();
    }

    /// Until it serves, and the one before is warm.
    async fn begin(&self, number: u32) {
        self.release(number);
        let upgrade = Request::Upgrade {
            wait: false,
            strategy: None,
            plan: None,
            automatic: false,
        };
        self.ask(upgrade).await.unwrap();
        self.load.until_newer_answers_of(&number.to_string()).await;
    }

    async fn roll_back(&self, to: u32) {
        let rollback = Request::Rollback {
            reason: String::new(),
            cold: false,
            wait: true,
        };
        // The verification after the flip is not over with the first answers.
        let verdict = verdict(self.ask(rollback).await.unwrap());
        assert_eq!(verdict.verdict, Verdict::RolledBack, "{verdict:?}");
        self.load.until_newer_answers_of(&to.to_string()).await;
    }

    /// Until the one before has left, so that nothing is left of its release.
    async fn commit(&self) {
        let promote = Request::Promote {
            wait: true,
            full: true,
        };
        let verdict = verdict(self.ask(promote).await.unwrap());
        assert_eq!(verdict.verdict, Verdict::Committed, "{verdict:?}");
        let alone = async {
            while self.schema().await.generations.len() > 1 {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, alone).await.unwrap();
    }

    async fn schema(&self) -> SchemaState {
        self.wish(SchemaWish::Status).await.unwrap()
    }

    async fn wish(&self, wish: SchemaWish) -> Result<SchemaState, Error> {
        match self.ask(Request::Schema { wish }).await? {
            Reply::Schema { schema } => Ok(*schema),
            other => panic!("{other:?}"),
        }
    }

    async fn contract(&self) -> Result<SchemaState, Error> {
        let (version, confirm) = (4, true);
        self.wish(SchemaWish::Contract { version, confirm }).await
    }

    /// One after the other serves until nothing is left of the one before, and the last one can read every row.
    async fn replace(&self, releases: [u32; 2]) {
        for release in releases {
            self.begin(release).await;
            self.commit().await;
        }
        let last = releases[1].to_string();
        self.load.until_newer_answers_of(&last).await;
        self.check_rows().await;
    }

    /// A release that would lose rows is given up before it serves.
    async fn is_refused(&self, number: u32, reason: &str) {
        self.release(number);
        let upgrade = Request::Upgrade {
            wait: true,
            strategy: None,
            plan: None,
            automatic: false,
        };
        let verdict = verdict(self.ask(upgrade).await.unwrap());
        assert_eq!(verdict.verdict, Verdict::Aborted);
        assert!(verdict.last_words.contains(reason), "{verdict:?}");
    }

    /// All that was ever answered, row by row, as the release that serves reads it.
    async fn check_rows(&self) {
        let mut clerk = Clerk::new(self.address, &self.expected, true);
        let ids: Vec<_> = self.expected.lock().unwrap().keys().copied().collect();
        let row = |id| self.expected.lock().unwrap()[&id].clone();
        for id in ids {
            let path = format!("/people/{id}");
            let checked = async {
                loop {
                    let before = row(id);
                    let (name, release) = clerk.request("GET", &path, "").await.unwrap();
                    let now = row(id);
                    // What was renamed meanwhile is looked at once more.
                    if before.name == now.name {
                        assert!(
                            before.may_say(&name) || now.may_say(&name),
                            "{id} is {name:?} to release {release}, and {before:?} or {now:?}"
                        );
                        break;
                    }
                }
            };
            timeout(DEADLINE, checked).await.unwrap();
        }
    }

    /// Without clients, so that every row is what was answered last. Returns how many there are.
    async fn end(self) -> (usize, usize) {
        let Self {
            example,
            load,
            expected,
            address,
            room,
        } = self;
        let seen = load.stop().await;
        assert!(seen.failures.is_empty(), "{}", seen.summary());
        let mut clerk = Clerk::new(address, &expected, true);
        let ids: Vec<_> = expected.lock().unwrap().keys().copied().collect();
        for id in &ids {
            clerk.look_up(*id).await.unwrap();
        }
        drop(clerk);
        let log = example.end().await;
        // Two releases were refused, and nothing else went wrong.
        let errors = log.lines().filter(|line| line.starts_with("Error"));
        assert_eq!(
            errors.filter(|line| !line.contains(" (Schema): ")).count(),
            0
        );
        assert!(!log.contains("panicked"));
        drop(room);
        (ids.len(), seen.answers.len())
    }
}

fn verdict(reply: Reply) -> Upgrade {
    match reply {
        Reply::Verdict { upgrade } => *upgrade,
        other => panic!("{other:?}"),
    }
}

/// Three releases, each of them rolled back once if that is wanted, and the last two of them twice in a row.
async fn rename_a_column(postgres: Option<&str>, with_rollbacks: bool) {
    let service = Service::start(postgres).await;
    service.load.until_answers_of("1").await;
    let sentence = "reads the form of schema 2, which";
    service.is_refused(3, sentence).await;
    for release in 2..=4 {
        service.begin(release).await;
        let error = service.contract().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
        if with_rollbacks {
            service.roll_back(release - 1).await;
            service.check_rows().await;
            service.begin(release).await;
        }
        service.check_rows().await;
        service.commit().await;
        if with_rollbacks && release > 2 {
            service.replace([release - 1, release - 2]).await;
            service.replace([release - 1, release]).await;
        }
    }
    let contracted = service.contract().await.unwrap();
    assert_eq!((contracted.version, contracted.floor), (4, 4));
    let serving = service.load.until_newer_answers_of("4");
    serving.await;
    service.is_refused(3, "has been contracted to 4").await;
    service.check_rows().await;
    let (rows, rounds) = service.end().await;
    println!("{rows} rows, {rounds} rounds of requests, 0 failed, 0 lost or unreadable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_renames_a_column_in_sqlite_and_loses_no_row_and_no_request() {
    rename_a_column(None, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_renames_a_column_in_sqlite_with_a_rollback_after_each_release() {
    rename_a_column(None, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_renames_a_column_in_postgresql_and_loses_no_row_and_no_request() {
    let Some(server) = Server::start().await else {
        return;
    };
    rename_a_column(Some(&server.database("people").await), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_renames_a_column_in_postgresql_with_a_rollback_after_each_release() {
    let Some(server) = Server::start().await else {
        return;
    };
    rename_a_column(Some(&server.database("people").await), true).await;
}
