//! The examples of rollouts, asked and told as an operator would over their control socket.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use handover::control::{self, Reply, Request, Upgrade, Verdict};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::example::Example;
use crate::http::{Connections, Http};
use crate::load::{Client, DEADLINE, Load, Seen, answerer};

/// An example with a control socket.
struct Operated {
    example: Example,
    web: SocketAddr,
    room: TempDir,
}

impl Operated {
    async fn start(name: &str, bad: &str) -> Self {
        let room = tempfile::tempdir().unwrap();
        let settings = [
            ("DIRECTORY", room.path().as_os_str()),
            ("BAD", bad.as_ref()),
        ];
        let (example, web) = Example::start_with(name, &settings).await;
        Self { example, web, room }
    }

    async fn ask(&self, request: Request) -> Reply {
        let client = control::Client::new(self.path("control.sock")).deadline(DEADLINE);
        client.ask(&request).await.unwrap()
    }

    async fn upgrade(&self) -> Reply {
        let upgrade = Request::Upgrade {
            wait: true,
            strategy: None,
            plan: None,
            automatic: false,
        };
        self.ask(upgrade).await
    }

    async fn promote(&self, full: bool) -> Reply {
        self.ask(Request::Promote { wait: full, full }).await
    }

    async fn roll_back(&self) -> Reply {
        let rollback = Request::Rollback {
            reason: String::new(),
            cold: false,
            wait: true,
        };
        self.ask(rollback).await
    }

    async fn line(&self, line: &str) {
        self.example.0.wait_for_line(line, DEADLINE).await.unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blue_green_shows_its_candidate_in_private_flips_goes_back_and_flips_again() {
    let operated = Operated::start("blue_green", "").await;
    let web = operated.web;
    let load = Load::new()
        .with(2, || Http::new(web, Connections::Fresh))
        .with(2, || Http::new(web, Connections::Kept))
        .with(2, || Http::new(web, Connections::Http2));
    load.until_answers_of("1").await;

    assert_stands_by(&operated.upgrade().await, 2);
    let preview = operated.path("preview-2-web.sock");
    assert_eq!(ask_in_private(&preview).await, "hello from generation 2\n");
    assert!(load.answerers().iter().all(|who| who == "1"));

    operated.promote(false).await;
    load.until_answers_of("2").await;
    operated.line("job: tick of generation 2").await;
    let verdict = verdict(operated.roll_back().await);
    assert_eq!(verdict.verdict, Verdict::RolledBack, "{verdict:?}");
    load.until_newer_answers_of("1").await;

    assert_stands_by(&operated.upgrade().await, 3);
    let verdict = self::verdict(operated.promote(true).await);
    assert_eq!(verdict.verdict, Verdict::Committed, "{verdict:?}");
    load.until_answers_of("3").await;
    operated.line("job: tick of generation 3").await;
    let seen = load.stop().await;
    assert!(seen.failures.is_empty(), "{}", seen.summary());
    let log = operated.example.stop().await;
    assert_eq!(
        begun_and_ended(&log),
        "+1 -1 +2 -2 +1 -1 +3 -3",
        "the job ran in two generations at once, or in none: {log}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canary_promotes_a_good_release_by_itself_and_gives_a_bad_one_up() {
    let operated = Operated::start("canary", "3").await;
    let load = crowd(operated.web);
    load.until_answers_of("1").await;

    let verdict = verdict(operated.upgrade().await);
    assert_eq!(verdict.verdict, Verdict::Committed, "{verdict:?}");
    load.until_newer_answers_of("2").await;

    let verdict = self::verdict(operated.upgrade().await);
    assert_eq!(verdict.verdict, Verdict::Aborted, "{verdict:?}");
    let found = "the guard \"errors\" found the candidate worse";
    assert!(verdict.reason.contains(found), "{verdict:?}");
    load.until_newer_answers_of("2").await;
    let seen = load.stop().await;
    assert!(seen.failures.is_empty(), "{}", seen.summary());
    assert_errors_are_generation_3s(&seen);

    let courses = courses(&seen);
    assert_eq!(courses[&1], "1 2", "the health checker met the canary");
    let met = courses.values().filter(|course| course.contains('3'));
    let met = met.count();
    assert!((1..courses.len() * 9 / 10).contains(&met), "{met} clients");
    for (client, course) in &courses {
        // Not each of them has asked again since generation 3 was given up.
        let is_sticky = "1 2 3 2".starts_with(course);
        assert!(is_sticky, "client {client} was sent to and fro: {course}");
    }
    operated.example.stop().await;
}

/// Clients with an address each, the first of which is taken for a health checker.
fn crowd(web: SocketAddr) -> Load {
    (1..=100).fold(Load::new(), |load, last| {
        let own = Ipv4Addr::new(127, 0, 0, last);
        load.with(1, || Addressed {
            last,
            http: Http::new(web, Connections::Fresh).from(own),
        })
    })
}

/// Each of its answers begins with the last byte of its address.
struct Addressed {
    last: u8,
    http: Http,
}

impl Client for Addressed {
    async fn ask(&mut self) -> Result<String, String> {
        tokio::time::sleep(PACE).await;
        let answer = self.http.ask().await?;
        Ok(format!("{} {answer}", self.last))
    }
}

/// Who has answered each client, in order.
fn courses(seen: &Seen) -> BTreeMap<u8, String> {
    let mut met: BTreeMap<u8, Vec<&str>> = BTreeMap::new();
    for answer in &seen.answers {
        let client = answer.split(' ').next().unwrap_or_default();
        let course = met.entry(client.parse().unwrap()).or_default();
        course.push(answerer(answer));
        course.dedup();
    }
    let joined = met.into_iter();
    joined
        .map(|(client, course)| (client, course.join(" ")))
        .collect()
}

fn assert_errors_are_generation_3s(seen: &Seen) {
    let errors = seen.answers.iter();
    let errors: Vec<_> = errors
        .filter(|answer| answer.contains("not answered"))
        .collect();
    assert!(!errors.is_empty());
    assert!(
        errors.iter().all(|error| answerer(error) == "3"),
        "{errors:?}"
    );
}

fn assert_stands_by(reply: &Reply, successor: u64) {
    match reply {
        Reply::Standby { generation, .. } => assert_eq!(*generation, successor),
        other => panic!("{other:?}"),
    }
}

fn verdict(reply: Reply) -> Upgrade {
    match reply {
        Reply::Verdict { upgrade } => *upgrade,
        other => panic!("{other:?}"),
    }
}

async fn ask_in_private(path: &Path) -> String {
    let asked = async {
        let mut stream = UnixStream::connect(path).await?;
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: preview\r\nconnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = timeout(DEADLINE, asked).await.unwrap().unwrap();
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
    body.unwrap_or_default().to_owned()
}

/// The job's begins and ends in the order of the log: `+1 -1`.
fn begun_and_ended(log: &str) -> String {
    let change = |line: &str| {
        let (_, job) = line.split_once("job: ")?;
        let (sign, generation) = match job.split_once(" by generation ")? {
            ("begun", generation) => ('+', generation),
            ("ended", generation) => ('-', generation),
            _ => return None,
        };
        Some(format!("{sign}{generation}"))
    };
    let changes: Vec<_> = log.lines().filter_map(change).collect();
    changes.join(" ")
}

/// How long a client of the crowd thinks: on a machine that has no room left, a release is slow without being bad.
const PACE: Duration = Duration::from_millis(80);
