//! The root directories from which machines boot: small Debian systems, made once and kept under `target/`.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::fs::{FlockOperation, flock};

/// A Debian release, for the systemd that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// systemd 252: no Type=notify-reload, no $FDSTORE.
    Bookworm,
    /// systemd 257.
    Trixie,
}

/// Where machines can boot on this host.
pub(crate) struct Host {
    pub(crate) root: PathBuf,
    /// The cgroup2 tree, in which each machine gets a place of its own.
    pub(crate) cgroups: PathBuf,
}

impl Host {
    /// Says so if this host has not got what it takes.
    pub(crate) fn of(release: Release) -> Option<Self> {
        match Self::find(release) {
            Ok(host) => Some(host),
            Err(reason) => {
                say(&format!("skipped, no {release} is booted here: {reason}"));
                None
            }
        }
    }

    fn find(release: Release) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("it needs root".into());
        }
        let cgroups = cgroups().ok_or("there is no cgroup2 file system")?;
        let trial = cgroups.join(format!("handover-trial-{}", std::process::id()));
        // Several tests try at once.
        let tried = fs::create_dir_all(&trial).and_then(|()| remove_if_there(&trial));
        tried.map_err(|error| format!("{}: {error}", cgroups.display()))?;
        Ok(Self {
            root: release.root()?,
            cgroups,
        })
    }
}

impl Release {
    fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// Its root directory, made if it is not there.
    fn root(self) -> Result<PathBuf, String> {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("systemd");
        let root = directory.join(format!("{}-{RECIPE}", self.name()));
        // Held until it is made, against other tests here and in other processes: they share the directory.
        let _lock = fs::create_dir_all(&directory)
            .and_then(|()| File::create(root.with_extension("lock")))
            .and_then(|lock| Ok(flock(&lock, FlockOperation::LockExclusive).map(|()| lock)?))
            .map_err(|error| format!("{}: {error}", directory.display()))?;
        if !root.is_dir() {
            self.make(&root)?;
        }
        Ok(root)
    }

    /// Under another name until it is whole.
    fn make(self, root: &Path) -> Result<(), String> {
        say(&format!("making {}", root.display()));
        let draft = root.with_extension("draft");
        run(Command::new("rm")
            .args(["-rf", "--one-file-system"])
            .arg(&draft))?;
        let mut mmdebstrap = Command::new("timeout");
        mmdebstrap
            .args(["300", "mmdebstrap", "--quiet", "--variant=minbase"])
            .arg(format!("--include={PACKAGES}"))
            .arg(format!("--customize-hook={USER}"))
            .arg(self.name())
            .arg(&draft);
        run(&mut mmdebstrap)?;
        fs::rename(&draft, root).map_err(|error| error.to_string())
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bookworm => "systemd 252 (bookworm)",
            Self::Trixie => "systemd 257 (trixie)",
        })
    }
}

/// Past the harness, which shows what a test prints only if it fails.
pub(crate) fn say(line: &str) {
    // Nobody may be listening.
    let _ = writeln!(io::stderr(), "systemd: {line}");
}

fn cgroups() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    mounts.find_map(|mut fields| {
        let place = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| place.into())
    })
}

fn remove_if_there(directory: &Path) -> io::Result<()> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_args().nth(1).unwrap_or_default().to_owned();
    let Output { status, stderr, .. } = command.output().map_err(|error| error.to_string())?;
    if status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&stderr);
    let last = stderr.lines().rev().take(3).collect::<Vec<_>>().join(" < ");
    Err(format!("{}: {status}: {last}", program.display()))
}

/// To be counted up with every change of what follows.
const RECIPE: u32 = 1;
/// `systemd --user` needs its PAM module.
const PACKAGES: &str = "systemd,dbus,libpam-systemd";
/// For `systemd --user`.
const USER: &str = r#"chroot "$1" useradd --uid 1000 --create-home app"#;
