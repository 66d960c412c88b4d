//! A testd with a control socket, and the program that talks to it.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use handover::control::{Client, Reply, Request, Status};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::support::{DEADLINE, Service, Setup};

pub(crate) struct Operated {
    pub(crate) service: Service,
    pub(crate) path: PathBuf,
}

/// What the program has said and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Operated {
    pub(crate) async fn start(setup: Setup) -> Self {
        let path = setup.room.path().join("control.sock");
        let service = setup.with("TESTD_CONTROL", path.display()).start().await;
        Self { service, path }
    }

    /// With a bake that lasts until somebody ends it.
    pub(crate) async fn start_with_a_bake() -> Self {
        Self::start(Setup::new().with("TESTD_BAKE_MS", 60_000)).await
    }

    pub(crate) fn program(&self, arguments: &[&str]) -> Command {
        let mut command = program(arguments);
        command.env("HANDOVER_CONTROL", &self.path);
        command
    }

    /// In words.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ran {
        run(self.program(arguments)).await
    }

    /// In JSON, and its exit code.
    pub(crate) async fn json(&self, arguments: &[&str]) -> (i32, Value) {
        let ran = self.run(&[arguments, &["--json"]].concat()).await;
        (ran.code, ran.json())
    }

    /// Goes on while the test does something else.
    pub(crate) fn begin(&self, arguments: &[&str]) -> Child {
        self.program(arguments).spawn().unwrap()
    }

    /// A connection of a client that is not ours.
    pub(crate) async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.path).deadline(DEADLINE)
    }

    pub(crate) async fn status(&self) -> Status {
        match self.client().ask(&Request::Status).await.unwrap() {
            Reply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// Until an upgrade is in this phase, as its incumbent says.
    pub(crate) async fn phase(&self, incumbent: u64, successor: u64, phase: &str) {
        let line = format!("event {incumbent} phase {successor} {phase}");
        self.service.line(&line).await;
    }
}

/// All that is said until the connection ends.
pub(crate) async fn rest(stream: &mut UnixStream) -> Value {
    let mut said = Vec::new();
    match timeout(DEADLINE, stream.read_to_end(&mut said))
        .await
        .unwrap()
    {
        // What it was sent and has not read is no reason to say less.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        read => drop(read.unwrap()),
    }
    let text = String::from_utf8(said).unwrap();
    assert_eq!(text.matches('\n').count(), 1, "{text:?}");
    serde_json::from_str(&text).unwrap()
}

impl Ran {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn assert_code(&self, code: i32) {
        assert_eq!(self.code, code, "{self:?}");
    }

    pub(crate) fn assert_says(&self, parts: &[&str]) {
        for part in parts {
            let says = self.stdout.contains(part) || self.stderr.contains(part);
            assert!(says, "no {part:?} in {self:?}");
        }
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

pub(crate) fn program(arguments: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handover"));
    command
        .args(arguments)
        .env_remove("HANDOVER_CONTROL")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

pub(crate) async fn run(mut command: Command) -> Ran {
    ended(command.spawn().unwrap()).await
}

pub(crate) async fn ended(child: Child) -> Ran {
    let output = timeout(DEADLINE, child.wait_with_output()).await;
    output.unwrap().unwrap().into()
}
