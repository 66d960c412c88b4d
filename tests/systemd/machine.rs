//! A booted systemd with namespaces of its own.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use handover_load::process::{Signal, signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::root::{Host, Release, say};

/// What bounds every wait.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// How long until a fact without an event is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

pub(crate) struct Machine {
    pub(crate) release: Release,
    boot: Child,
    /// The machine's PID 1, as we see it.
    init: u32,
    cgroup: PathBuf,
    room: TempDir,
}

/// Boots a machine and runs a test on a thread that is in its network. Says so if there can be none here.
pub(crate) fn on(release: Release, test: impl AsyncFn(&Machine) + Sync) {
    let Some(host) = Host::of(release) else {
        return;
    };
    let machine = Machine::boot(release, &host);
    let outcome = std::thread::scope(|scope| {
        // A thread of its own, because it never leaves the machine's network again.
        let tested = scope.spawn(|| machine.in_its_network(async || machine.tried(&test).await));
        tested.join()
    });
    if let Err(panic) = outcome {
        machine.tell();
        std::panic::resume_unwind(panic);
    }
}

impl Machine {
    fn boot(release: Release, host: &Host) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("handover-test-{}-{number}", std::process::id());
        let cgroup = host.cgroups.join(name);
        fs::create_dir(&cgroup).unwrap();
        let room = tempfile::tempdir().unwrap();
        let console = File::create(room.path().join(CONSOLE)).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/systemd/boot.sh");
        let boot = Command::new(script)
            .args([&cgroup, &host.root, &programs()])
            .stdin(Stdio::null())
            .stdout(console.try_clone().unwrap())
            .stderr(console)
            .spawn()
            .unwrap();
        let mut machine = Self {
            release,
            boot,
            init: 0,
            cgroup,
            room,
        };
        machine.init = machine.find_init();
        machine
    }

    /// boot.sh becomes timeout(1), its child is unshare(1), and the child of that is the first process of the machine.
    fn find_init(&mut self) -> u32 {
        let begun = Instant::now();
        loop {
            let init = only_child(self.boot.id()).and_then(only_child);
            if let Some(init) = init {
                return init;
            }
            let ended = self.boot.try_wait().unwrap();
            let is_late = begun.elapsed() > DEADLINE;
            assert!(ended.is_none() && !is_late, "{ended:?}: {}", self.console());
            std::thread::yield_now();
        }
    }

    fn in_its_network(&self, run: impl AsyncFnOnce()) {
        let network = File::open(format!("/proc/{}/ns/net", self.init)).unwrap();
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(network.as_fd(), kind).unwrap();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(run());
    }

    async fn tried(&self, test: &impl AsyncFn(&Self)) {
        self.until_booted().await;
        let linked = self.output("ldd", ["/opt/handover/testd"]).await;
        if !linked.status.success() {
            let why = String::from_utf8_lossy(&linked.stderr);
            let line = why.lines().next().unwrap_or_default();
            return say(&format!(
                "skipped: built for another C library than that of {}: {line}",
                self.release
            ));
        }
        timeout(TEST_DEADLINE, test(self))
            .await
            .expect("the test takes too long");
    }

    async fn until_booted(&self) {
        eventually(
            "a running system",
            async || {
                self.says("systemctl", ["is-system-running", "--wait"])
                    .await
            },
            "running".to_owned(),
        )
        .await;
    }

    /// Runs a program in the machine.
    pub(crate) async fn output<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Output {
        let mut command = tokio::process::Command::new("nsenter");
        command
            .args(["--all", "--target", &self.init.to_string(), "--", program])
            .args(arguments)
            .stdin(Stdio::null())
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .kill_on_drop(true);
        let output = timeout(COMMAND_DEADLINE, command.output()).await;
        output.expect("a command takes too long").unwrap()
    }

    /// What a program prints, whether it succeeds or not.
    pub(crate) async fn says<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> String {
        let output = self.output(program, arguments).await;
        String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned()
    }

    /// Runs a program that must succeed.
    pub(crate) async fn run<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) {
        let output = self.output(program, arguments).await;
        assert!(output.status.success(), "{program}: {output:?}");
    }

    /// A path of the machine as we see it.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// What `systemctl show` says of a unit.
    pub(crate) async fn show(&self, unit: &str) -> HashMap<String, String> {
        let shown = self.says("systemctl", ["show", unit]).await;
        let pairs = shown.lines().filter_map(|line| line.split_once('='));
        pairs
            .map(|(name, value)| (name.into(), value.into()))
            .collect()
    }

    /// The inode of the TCP socket that listens on a port: the same for as long as it is the same socket.
    pub(crate) fn listening(&self, port: u16) -> Option<u64> {
        let table = fs::read_to_string(format!("/proc/{}/net/tcp", self.init)).unwrap();
        let mut rows = table.lines().map(|row| row.split_whitespace());
        rows.find_map(|mut row| {
            let is_it = row.nth(1)?.ends_with(&format!(":{port:04X}"));
            let is_listening = row.nth(1)? == LISTEN;
            (is_it && is_listening).then(|| row.nth(5)?.parse().ok())?
        })
    }

    fn console(&self) -> String {
        fs::read_to_string(self.room.path().join(CONSOLE)).unwrap_or_default()
    }

    /// For a test that has failed.
    fn tell(&self) {
        eprintln!("--- console of {}\n{}", self.release, self.console());
        let init = self.init.to_string();
        let mut journal = Command::new("nsenter");
        journal.args([
            "--all",
            "--target",
            &init,
            "--",
            "journalctl",
            "--no-pager",
            "--lines=200",
        ]);
        match journal.output() {
            Ok(output) => eprintln!("--- journal\n{}", String::from_utf8_lossy(&output.stdout)),
            Err(error) => eprintln!("--- no journal: {error}"),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Whoever is in its namespaces goes with the first process; what is left is to wait for that.
        if self.init != 0 {
            let _ = signal(self.init, Signal::KILL);
        }
        let _ = self.boot.wait();
        let begun = Instant::now();
        while let Err(error) = remove_tree(&self.cgroup) {
            if begun.elapsed() > DEADLINE {
                return say(&format!("{} stays: {error}", self.cgroup.display()));
            }
            std::thread::yield_now();
        }
    }
}

/// The directories of a cgroup, innermost first; its files are not files.
fn remove_tree(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

fn only_child(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.trim().parse().ok()
}

/// Where cargo puts the programs of the examples, which it builds beside the tests.
fn programs() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let programs = here
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("examples");
    assert!(
        programs.join("testd").is_file(),
        "build it first: cargo build --features axum --example testd"
    );
    programs
}

/// Looks until what it sees is what is wanted.
pub(crate) async fn eventually<T: PartialEq + std::fmt::Debug>(
    what: &str,
    mut look: impl AsyncFnMut() -> T,
    wanted: T,
) {
    let begun = Instant::now();
    loop {
        let seen = look().await;
        if seen == wanted {
            return;
        }
        assert!(
            begun.elapsed() < DEADLINE,
            "{what}: {seen:?}, not {wanted:?}"
        );
        sleep(LOOK_AGAIN).await;
    }
}

const CONSOLE: &str = "console";
/// The state of a listening socket in /proc/net/tcp.
const LISTEN: &str = "0A";
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);
const TEST_DEADLINE: Duration = Duration::from_secs(120);
