//! A testd with its settings, its plan and its clients.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use handover_load::process::{self, descriptors, is_alive, wait_gone};
use handover_load::{Kind, Load, Mix, Report, Server, Signal};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// What bounds every wait.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// What a testd is started with.
pub(crate) struct Setup {
    pub(crate) command: Command,
    pub(crate) room: TempDir,
    pub(crate) standby: bool,
}

/// A testd with all its generations.
pub(crate) struct Service {
    pub(crate) server: Server,
    pub(crate) room: TempDir,
    pub(crate) web: SocketAddr,
    /// Whether each successor is held in standby until it is told to go on.
    pub(crate) standby: bool,
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) generation: u64,
    pub(crate) text: String,
}

/// A request that is being answered for as long as its client wants.
pub(crate) struct Upload(TcpStream);

/// A request of a client that is connected, whoever will accept it.
pub(crate) struct Asked(TcpStream);

impl Setup {
    /// Commits with the flip, listens on an address that no other test uses, and its program can be replaced.
    pub(crate) fn new() -> Self {
        Self::of(&testd())
    }

    /// The same, started by another path.
    pub(crate) fn of(program: &Path) -> Self {
        let room = tempfile::tempdir().unwrap();
        symlink(testd(), room.path().join(PROGRAM)).unwrap();
        let mut command = Command::new(program);
        command
            .env("TESTD", testd())
            .env("TESTD_PROGRAM", room.path().join(PROGRAM))
            .env("TESTD_PLAN", room.path().join(PLAN))
            .env("TESTD_LISTEN", free_address().to_string())
            .env("TESTD_BAKE_MS", "0");
        let standby = false;
        Self {
            command,
            room,
            standby,
        }
    }

    pub(crate) fn standby(mut self) -> Self {
        self.standby = true;
        self.with("TESTD_STANDBY_MS", 60_000)
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.command.env(name, value.to_string());
        self
    }

    /// Until the first generation serves.
    pub(crate) async fn start(self) -> Service {
        let server = Server::spawn(self.command).unwrap();
        server
            .wait_for_line("ready 1 pid ", DEADLINE)
            .await
            .unwrap();
        let web = server.address("web", DEADLINE).await.unwrap();
        Service {
            server,
            room: self.room,
            web,
            standby: self.standby,
        }
    }
}

impl Service {
    pub(crate) fn plan(&self, plan: &str) {
        let draft = self.room.path().join("draft");
        fs::write(&draft, plan).unwrap();
        fs::rename(draft, self.room.path().join(PLAN)).unwrap();
    }

    /// What the next generation is started from.
    pub(crate) fn program(&self, program: &Path) {
        let draft = self.room.path().join("draft");
        symlink(program, &draft).unwrap();
        fs::rename(draft, self.room.path().join(PROGRAM)).unwrap();
    }

    /// The next generation will be as good as the first.
    pub(crate) fn heal(&self) {
        self.plan("");
        self.program(&testd());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.server.pid()
    }

    pub(crate) async fn line(&self, pattern: &str) -> String {
        self.server.wait_for_line(pattern, DEADLINE).await.unwrap()
    }

    /// Until this generation has said that it serves; its process.
    pub(crate) async fn ready(&self, generation: u64) -> u32 {
        number_at_the_end(&self.line(&format!("ready {generation} pid ")).await)
    }

    /// Until a generation is held at this point of its plan; its process.
    pub(crate) async fn held(&self, point: &str) -> u32 {
        number_at_the_end(&self.line(&format!("held {point} pid ")).await)
    }

    /// From one incumbent to the next. Both ends know it when this returns: a successor has the role before it says so.
    pub(crate) async fn upgrade(&self, from: u64, to: u64) -> u32 {
        let incumbent = self.ready(from).await;
        signal(incumbent, Signal::HUP);
        self.line(&format!("event {from} committed {to} ")).await;
        self.ready(to).await
    }

    /// From whoever is the incumbent to generation 3, which serves when this returns.
    pub(crate) async fn upgrade_again(&self, incumbent: u32) {
        signal(incumbent, Signal::HUP);
        if self.standby {
            self.line("phase 3 standby").await;
            self.get("/flip").await;
        }
        self.ready(3).await;
        self.assert_serving(3).await;
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        get(self.web, path).await.unwrap()
    }

    pub(crate) async fn assert_serving(&self, generation: u64) {
        assert_eq!(self.get("/").await, answer(generation, "hello\n"));
    }

    /// Clients with new and with kept connections, once they have had their first answers.
    pub(crate) async fn load(&self, generation: u64) -> Load {
        let mix = Mix::none().with(Kind::Fresh, 2).with(Kind::KeepAlive, 2);
        let load = Load::start(self.web, mix);
        load.until_answers(generation, 10, DEADLINE).await.unwrap();
        load
    }

    /// The only generation, without a child dead or alive, and the next upgrade can begin at once.
    pub(crate) async fn assert_alone(&self, pid: u32) {
        self.server.wait_alone(pid, DEADLINE).await.unwrap();
    }
}

impl Upload {
    /// A request whose handler runs.
    pub(crate) async fn begin(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = "POST /upload HTTP/1.1\r\nhost: it\r\nconnection: close\r\nexpect: 100-continue\r\n\
                    content-length: 4\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut go_on = [0; GO_ON.len()];
        timeout(DEADLINE, stream.read_exact(&mut go_on))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&go_on, GO_ON);
        Self(stream)
    }

    pub(crate) async fn finish(self) -> io::Result<Answer> {
        exchange(self.0, b"abcd").await
    }
}

impl Asked {
    pub(crate) async fn begin(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&request("/")).await.unwrap();
        Self(stream)
    }

    pub(crate) async fn answer(self) -> io::Result<Answer> {
        exchange(self.0, b"").await
    }
}

pub(crate) fn answer(generation: u64, text: &str) -> Answer {
    Answer {
        generation,
        text: text.into(),
    }
}

/// More answers of this generation than there were so far.
pub(crate) async fn more_answers(load: &Load, generation: u64) {
    let so_far = load
        .snapshot()
        .generation(generation)
        .map_or(0, |seen| seen.answers);
    load.until_answers(generation, so_far + 10, DEADLINE)
        .await
        .unwrap();
}

pub(crate) fn assert_no_failure(report: &Report) {
    assert_eq!(report.failures(), 0, "{report}");
}

/// Nobody was refused, and nobody waited for nothing.
pub(crate) fn assert_only_cut_off(report: &Report) {
    for kind in &report.kinds {
        assert_eq!(kind.failed(), kind.cut_off(), "{report}");
    }
}

/// A process that was killed takes along what its clients had in flight: one request of each of them at most. Nobody
/// was refused, and nobody waited for nothing.
pub(crate) fn assert_lost_only_what_was_in_flight(report: &Report) {
    assert_only_cut_off(report);
    for kind in &report.kinds {
        assert!(kind.cut_off() <= 2, "{report}");
    }
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    exchange(TcpStream::connect(address).await?, &request(path)).await
}

/// The path of a socket, or an abstract name after an `@`.
pub(crate) async fn get_unix(socket: &str) -> io::Result<Answer> {
    ask_unix(socket, "/").await
}

pub(crate) async fn ask_unix(socket: &str, path: &str) -> io::Result<Answer> {
    let name = socket.strip_prefix('@').map(|name| format!("\0{name}"));
    let stream = UnixStream::connect(name.as_deref().unwrap_or(socket)).await?;
    exchange(stream, &request(path)).await
}

fn request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: it\r\nconnection: close\r\n\r\n").into_bytes()
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    rest: &[u8],
) -> io::Result<Answer> {
    stream.write_all(rest).await?;
    let mut received = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut received)).await??;
    let text = String::from_utf8_lossy(&received);
    parsed(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, text.into_owned()))
}

fn parsed(received: &str) -> Option<Answer> {
    let (head, body) = received.split_once("\r\n\r\n")?;
    let head = head.strip_prefix("HTTP/1.1 200 OK\r\n")?;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))?;
    let (generation, text) = body.split_once(' ')?;
    (length.parse() == Ok(body.len())).then_some(Answer {
        generation: generation.parse().ok()?,
        text: text.into(),
    })
}

/// Until a process has exactly these descriptors.
pub(crate) async fn until_descriptors(pid: u32, wanted: Vec<String>) {
    eventually("descriptors", || descriptors(pid).unwrap(), wanted).await;
}

/// Looks until what it sees is what is wanted.
pub(crate) async fn eventually<T: PartialEq + Debug>(
    what: &str,
    look: impl FnMut() -> T,
    wanted: T,
) {
    let seen = process::eventually(what, look, wanted, DEADLINE).await;
    seen.unwrap();
}

/// Sends a signal to a process that must be alive.
pub(crate) fn signal(pid: u32, with: Signal) {
    process::signal(pid, with).unwrap();
}

pub(crate) async fn gone(pid: u32) {
    wait_gone(pid, DEADLINE).await.unwrap();
    assert!(!is_alive(pid));
}

/// Keeps a server's process group tied to our session. The kernel sends SIGHUP and SIGCONT to a group that loses its
/// last tie while one of it is stopped (setpgid(2)), which an upgrade and a thaw nobody asked for would be.
pub(crate) struct Tether(Child);

impl Tether {
    pub(crate) fn of(group: u32) -> Self {
        let mut idle = Command::new("sleep");
        idle.arg("1000").process_group(group.cast_signed());
        Self(idle.spawn().unwrap())
    }
}

impl Drop for Tether {
    fn drop(&mut self) {
        // It may have been killed with the group.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Stops every thread of a process, as a debugger or an exhausted host would. It does nothing more when this returns.
pub(crate) async fn freeze(pid: u32) {
    signal(pid, Signal::STOP);
    eventually("threads that run", || running_threads(pid), 0).await;
}

/// Until a process has done all that it was given to do: between two looks every thread has slept, and none has run. A
/// thread is awake from the signal on that is sent to it, and until it has woken whoever goes on.
pub(crate) async fn settled(pid: u32) {
    let last = RefCell::new(Vec::new());
    let rests = || {
        let now = activity(pid);
        let rests = now == *last.borrow() && now.iter().all(|text| text.contains("State:\tS"));
        last.replace(now);
        rests
    };
    eventually("threads at rest", rests, true).await;
}

/// Of every thread: its state, and how often it has run.
fn activity(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let wanted = |line: &&str| line.starts_with("State:") || line.contains("ctxt_switches:");
    texts
        .map(|text| text.lines().filter(wanted).collect())
        .collect()
}

pub(crate) fn thaw(pid: u32) {
    signal(pid, Signal::CONT);
}

fn running_threads(pid: u32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let states = tasks.filter_map(|task| stat(&task.path(), STATE));
    states.filter(|state| state != "T").count()
}

/// How many sockets a process has twice.
pub(crate) fn duplicates(pid: u32) -> usize {
    let table = descriptors(pid).unwrap();
    let sockets = table.iter().filter(|target| target.starts_with("socket:"));
    let different: BTreeSet<_> = sockets.clone().collect();
    sockets.count() - different.len()
}

/// How many clients are connected to a process.
pub(crate) fn connections(pid: u32) -> usize {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let held = descriptors(pid).unwrap();
    let of_it = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_established = *fields.get(3)? == "01";
        let socket = format!("socket:[{}]", fields.get(9)?);
        (is_established && held.contains(&socket)).then_some(())
    });
    of_it.count()
}

/// proc_pid_stat(5): the name in field 2 may have any character in it, so fields are counted from behind it.
fn stat(of: &Path, field: usize) -> Option<String> {
    let stat = fs::read_to_string(of.join("stat")).ok()?;
    let behind_name = stat.rsplit_once(") ")?.1;
    behind_name.split(' ').nth(field).map(str::to_owned)
}

/// An address on loopback whose port nobody has: each process and each call has another one.
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(2);
    let [.., high, low] = std::process::id().to_be_bytes();
    let last = NEXT.fetch_add(1, Ordering::Relaxed);
    (Ipv4Addr::new(127, high, low, last), PORT).into()
}

/// A program to start in the place of testd.
pub(crate) fn successor(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/successors")
        .join(name)
}

/// The example, which cargo builds beside the tests; but not if one test target alone is asked for.
pub(crate) fn testd() -> PathBuf {
    static TESTD: OnceLock<PathBuf> = OnceLock::new();
    TESTD
        .get_or_init(|| {
            let here = std::env::current_exe().unwrap();
            let profile = here.parent().and_then(Path::parent).unwrap();
            let testd = profile.join("examples/testd");
            let built = fs::metadata(&testd).and_then(|file| file.modified());
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let written = newest(&root.join("src")).max(newest(&root.join("tests/testd")));
            let is_current = built.is_ok_and(|built| built >= written);
            assert!(
                is_current,
                "build it first: cargo build --features axum --example testd"
            );
            testd
        })
        .clone()
}

/// When the latest change below a directory was made. The program `handover` is no part of testd.
fn newest(directory: &Path) -> SystemTime {
    let entries = fs::read_dir(directory).unwrap().flatten();
    let entries = entries.filter(|entry| entry.file_name() != "bin");
    let times = entries.map(|entry| {
        if entry.path().is_dir() {
            newest(&entry.path())
        } else {
            entry.metadata().and_then(|file| file.modified()).unwrap()
        }
    });
    times.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

pub(crate) fn number_at_the_end(line: &str) -> u32 {
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

const STATE: usize = 0;
const PROGRAM: &str = "program";
const PLAN: &str = "plan";
const PORT: u16 = 4080;
const GO_ON: &[u8; 25] = b"HTTP/1.1 100 Continue\r\n\r\n";
