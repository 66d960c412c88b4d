//! The service of the examples' units, with testd for its program.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use handover_load::{Failure, Kind, Load, Mix, Report};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::machine::{DEADLINE, Machine, eventually};
use crate::root::Release;

pub(crate) const WEB: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// What the service is installed with.
pub(crate) struct Setup<'a> {
    machine: &'a Machine,
    /// Lines of the `[Service]` section of a drop-in.
    lines: String,
}

/// The service, under the name `app`.
pub(crate) struct App<'a> {
    pub(crate) machine: &'a Machine,
}

/// What systemd thinks of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) main_pid: u32,
    pub(crate) active: String,
    pub(crate) sub: String,
    pub(crate) result: String,
    pub(crate) status: String,
    pub(crate) restarts: u32,
    /// When it last left the active state, reloading included; 0 for never.
    pub(crate) left: u64,
}

impl<'a> Setup<'a> {
    /// The unit for the machine's systemd as it is in the repository. Its program commits with the flip.
    pub(crate) fn new(machine: &'a Machine) -> Self {
        let setup = Self {
            machine,
            lines: String::new(),
        };
        let setup = setup
            // As in the units.
            .env("TESTD_LISTEN", "0.0.0.0:8080")
            .env("TESTD_PLAN", PLAN)
            .env("TESTD_BAKE_MS", 0)
            .env("TESTD_IDLE_GRACE_MS", 1000);
        match machine.release {
            Release::Trixie => setup,
            // It has a store and does not say so.
            Release::Bookworm => setup.env("TESTD_FD_STORE", 1),
        }
    }

    /// A variable of the service's environment, quoted as systemd.exec(5) and systemd.syntax(7) have it.
    pub(crate) fn env(self, name: &str, value: impl ToString) -> Self {
        let quoted = [("\\", "\\\\"), ("\"", "\\\""), ("%", "%%"), ("\n", "\\n")];
        let value = quoted.iter().fold(value.to_string(), |value, (from, to)| {
            value.replace(from, to)
        });
        self.line(&format!("Environment=\"{name}={value}\""))
    }

    /// A line of the drop-in.
    pub(crate) fn line(mut self, line: &str) -> Self {
        writeln!(self.lines, "{line}").unwrap();
        self
    }

    /// Another program, or the same one by way of another.
    pub(crate) fn exec(self, command: &str) -> Self {
        self.line("ExecStart=")
            .line(&format!("ExecStart={command}"))
    }

    /// A file of `examples/systemd`.
    pub(crate) fn unit(self, file: &str, name: &str) -> Self {
        let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/systemd");
        let text = fs::read_to_string(units.join(file)).unwrap();
        self.machine.write(&format!("{UNITS}/{name}"), &text);
        self
    }

    pub(crate) async fn install(self) -> App<'a> {
        let machine = self.machine;
        let setup = match machine.release {
            Release::Trixie => self.unit("app.service", "app.service"),
            Release::Bookworm => self.unit("app-252.service", "app.service"),
        };
        let drop_in = format!("[Service]\n{}", setup.lines);
        machine.write(&format!("{UNITS}/app.service.d/test.conf"), &drop_in);
        fs::create_dir_all(machine.path("/srv/app/releases/1")).unwrap();
        symlink(
            "/opt/handover/testd",
            machine.path("/srv/app/releases/1/app"),
        )
        .unwrap();
        symlink("releases/1", machine.path("/srv/app/current")).unwrap();
        machine.run("systemctl", ["daemon-reload"]).await;
        App { machine }
    }

    pub(crate) async fn start(self) -> App<'a> {
        let app = self.install().await;
        app.systemctl("start").await;
        app
    }
}

impl App<'_> {
    /// A verb that must succeed.
    pub(crate) async fn systemctl(&self, verb: &str) {
        self.machine.run("systemctl", [verb, "app.service"]).await;
    }

    /// What the next generations do wrong.
    pub(crate) fn plan(&self, plan: &str) {
        self.machine.write("/srv/app/draft", plan);
        fs::rename(self.machine.path("/srv/app/draft"), self.machine.path(PLAN)).unwrap();
    }

    pub(crate) async fn state(&self) -> State {
        let shown = self.machine.show("app.service").await;
        let text = |name: &str| shown.get(name).cloned().unwrap_or_default();
        let number = |name: &str| {
            text(name)
                .parse()
                .unwrap_or_else(|_| panic!("{name}: {shown:?}"))
        };
        State {
            main_pid: number("MainPID"),
            active: text("ActiveState"),
            sub: text("SubState"),
            result: text("Result"),
            status: text("StatusText"),
            restarts: number("NRestarts"),
            left: text("ActiveExitTimestampMonotonic").parse().unwrap_or(0),
        }
    }

    /// The generation and the process that answer.
    pub(crate) async fn serving(&self) -> (u64, u32) {
        let answer = get(WEB, "/pid").await.unwrap();
        let mut words = answer.split_whitespace().map(str::parse);
        match (words.next(), words.next()) {
            (Some(Ok(generation)), Some(Ok(pid))) => (generation, pid as u32),
            _ => panic!("{answer:?}"),
        }
    }

    /// The main process, which must be the one that answers, in an active service.
    pub(crate) async fn serving_main(&self) -> u32 {
        let (_, serving) = self.serving().await;
        let state = self.state().await;
        assert_eq!(
            (state.main_pid, &*state.active),
            (serving, "active"),
            "{state:?}"
        );
        serving
    }

    /// Until the service has come back by itself so often.
    pub(crate) async fn restarted(&self, times: u32) {
        let seen = async || {
            let state = self.state().await;
            (state.restarts, state.active)
        };
        eventually("restarts", seen, (times, "active".to_owned())).await;
    }

    /// What the service has printed so far, and systemd has said about it.
    pub(crate) async fn journal(&self) -> String {
        let arguments = ["--unit=app.service", "--no-pager", "--output=cat"];
        self.machine.says("journalctl", arguments).await
    }

    /// Until a line of the journal has all of these in it.
    pub(crate) async fn says(&self, words: &[&str]) {
        let said = async || {
            let journal = self.journal().await;
            journal
                .lines()
                .any(|line| words.iter().all(|word| line.contains(word)))
        };
        eventually(&format!("a line with {words:?}"), said, true).await;
    }

    /// From the machine, by the signal's name.
    pub(crate) async fn kill(&self, signal: &str, pid: u32) {
        let kill = format!("kill -{signal} {pid}");
        self.machine.run("sh", ["-c", &kill]).await;
    }

    /// Clients of every kind whose requests are short, once they have had their first answers.
    pub(crate) async fn load(&self) -> Load {
        let mut mix = Mix::none()
            .with(Kind::Fresh, CLIENTS)
            .with(Kind::KeepAlive, CLIENTS)
            .with(Kind::Slow, 2)
            .with(Kind::Upload, 2)
            .with(Kind::Stream, 2)
            .with(Kind::Http2, 2);
        (mix.slow_for, mix.upload_for, mix.stream_for) = (BRIEFLY, BRIEFLY, BRIEFLY);
        let load = Load::start(WEB, mix);
        answered(&load).await;
        load
    }
}

/// A client that is connected, has asked, and waits.
pub(crate) struct Waiting(TcpStream);

impl Waiting {
    pub(crate) async fn ask(path: &str) -> Self {
        let mut stream = TcpStream::connect(WEB).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Self(stream)
    }

    pub(crate) async fn answer(self) -> String {
        answer(self.0).await.unwrap()
    }
}

/// The body of an answer.
pub(crate) async fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    answer(stream).await
}

async fn answer(mut stream: TcpStream) -> io::Result<String> {
    let mut received = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut received)).await??;
    let body = received.split_once("\r\n\r\n");
    let body = body.filter(|(head, _)| head.starts_with("HTTP/1.1 200 "));
    let (_, body) = body.ok_or_else(|| io::Error::other(received.clone()))?;
    Ok(body.to_owned())
}

/// More answers than there were so far, whoever gives them.
pub(crate) async fn answered(load: &Load) {
    let wanted = load.snapshot().answers() + 50;
    let enough = async || load.snapshot().answers() >= wanted;
    eventually("more answers", enough, true).await;
}

pub(crate) fn assert_no_failure(report: &Report) {
    assert_eq!(report.failures(), 0, "{report}");
}

/// A process that dies takes along the requests that its clients had in flight, and nothing else: nobody is refused,
/// and nobody waits for nothing.
pub(crate) fn assert_lost_only_what_was_in_flight(report: &Report) {
    for kind in &report.kinds {
        let lost = kind.cut_off() + report.failed(kind.kind, Failure::H2);
        assert_eq!(kind.failed(), lost, "{report}");
        assert!(lost <= CLIENTS as u64, "{report}");
    }
}

const UNITS: &str = "/run/systemd/system";
const PLAN: &str = "/srv/app/plan";
const CLIENTS: usize = 8;
const BRIEFLY: Duration = Duration::from_millis(100);
