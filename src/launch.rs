//! How a successor comes to exist: started as this process was, by one spawn that never forks.
//!
//! It gets the recorded arguments, directory and environment, one descriptor beside the standard streams, and the
//! upgrade signal blocked, since one that arrived before its handler exists would kill it.

mod image;
mod program;
mod relay;
mod tail;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::process;

pub(crate) use self::image::{ColdRollback, Image, Images};
#[cfg(feature = "pool")]
pub(crate) use self::image::{Identity, identity};
pub(crate) use self::program::resolve;
use self::relay::Capture;
pub(crate) use self::relay::{OwnStderr, Relay, rescue_stderr};
#[cfg(feature = "pool")]
pub(crate) use self::tail::{TAIL_BYTES_MAX, last_lines};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::descriptors;
use crate::sys::environment::{CHANNEL, Snapshot, channel_value};
use crate::sys::process::{Pidfd, Spawn, discard, spawn};

/// What the service manager tells the service and not one process of it.
const FOR_EVERY_GENERATION: [&str; 2] = ["NOTIFY_SOCKET", "WATCHDOG_USEC"];

/// Starts successors, each as this process was started.
#[derive(Debug)]
pub(crate) struct Launcher {
    snapshot: Snapshot,
    program: Option<PathBuf>,
    env: Vec<(OsString, OsString)>,
    capture_stderr: bool,
    blocked: Vec<i32>,
}

/// A successor that has just been started.
#[derive(Debug)]
pub(crate) struct Launched {
    /// Whether this process has started it, and not somebody else: nobody can tell how another's ended.
    pub(crate) is_child: bool,
    /// Our end of the channel.
    pub(crate) channel: OwnedFd,
    /// Its process.
    pub(crate) pid: u32,
    /// Its process, held.
    pub(crate) pidfd: Pidfd,
    /// Its standard error, if it is captured.
    pub(crate) stderr: Option<Relay>,
}

impl Launched {
    /// One that somebody else has started. Its standard error is its own.
    pub(crate) fn by_somebody_else(channel: OwnedFd, pid: u32, pidfd: Pidfd) -> Self {
        Self {
            is_child: false,
            channel,
            pid,
            pidfd,
            stderr: None,
        }
    }
}

/// What the variable [`CHANNEL`] means to the process that has it.
#[derive(Debug)]
pub(crate) enum Inherited {
    /// It was meant for another process and leaked to this one.
    NotForUs,
    /// This process is a successor, and here is its end of the channel.
    Channel {
        channel: OwnedFd,
        /// Whether the incumbent has started it, and not somebody else.
        is_launched: bool,
    },
    /// It was meant for this process, but there is no channel, for this reason.
    Missing(String),
}

impl Launcher {
    pub(crate) fn new(snapshot: &Snapshot, config: &Config) -> Self {
        Self {
            snapshot: snapshot.clone(),
            program: config.program.clone(),
            env: environment(snapshot, &config.extra_env),
            capture_stderr: config.capture_stderr,
            blocked: config.upgrade_signal.into_iter().collect(),
        }
    }

    /// Starts a successor, within a tokio runtime. The program is looked for anew each time.
    ///
    /// # Errors
    ///
    /// If there is no such program, it cannot be executed, or the process is out of descriptors or memory. Nothing is
    /// left behind then.
    pub(crate) fn launch(&self, generation: u64) -> Result<Launched> {
        let program = resolve(self.program.as_deref(), &self.snapshot);
        self.start(&program, &self.snapshot, &self.env)
            .map_err(|error| {
                let doing = format!("starting {program:?} as generation {generation}");
                Error::new(ErrorKind::Launch, doing).because(error)
            })
    }

    /// Starts a release that is held as a successor: with the arguments, directory and environment that it was started
    /// with, and nothing of this generation's.
    ///
    /// Its name for ps(1) is a number until it [learns](crate::sys::process::set_name) that it was started like this.
    ///
    /// # Errors
    ///
    /// As [`launch`](Self::launch), and if the bytes of the image are others by now.
    pub(crate) fn launch_image(&self, image: &Image, generation: u64) -> Result<Launched> {
        let failed = |cause: Box<dyn std::error::Error + Send + Sync>| {
            let before = image.release().generation;
            let doing = format!("starting the image of generation {before} as {generation}");
            Error::new(ErrorKind::Launch, doing).because(cause)
        };
        image.check().map_err(|changed| failed(changed.into()))?;
        let snapshot = image.snapshot(&self.snapshot);
        let env = environment(&snapshot, &[]);
        self.start(&image.path(), &snapshot, &env)
            .map_err(|error| failed(error.into()))
    }

    fn start(
        &self,
        program: &Path,
        snapshot: &Snapshot,
        env: &[(OsString, OsString)],
    ) -> io::Result<Launched> {
        let (channel, theirs) = descriptors::pair()?;
        let capture = self.capture()?;
        let mut env = env.to_vec();
        env.push((CHANNEL.into(), channel_value(&theirs, process::id())?));
        let pid = spawn(&Spawn {
            program,
            argv: &snapshot.argv,
            env: &env,
            cwd: directory(snapshot),
            inherit: theirs.as_fd(),
            stderr: capture.as_ref().map(|capture| capture.writer.as_fd()),
            blocked: &self.blocked,
        })?;
        drop(theirs);
        let pidfd = Pidfd::open(pid).inspect_err(|_| discard(pid))?;
        Ok(Launched {
            is_child: true,
            channel,
            pid,
            pidfd,
            stderr: capture.map(Capture::relay),
        })
    }

    fn capture(&self) -> io::Result<Option<Capture>> {
        if !self.capture_stderr {
            return Ok(None);
        }
        Capture::open()
    }
}

/// Finds out what the variable means, and takes the channel that it names.
pub(crate) fn inherited(value: &OsStr) -> Inherited {
    let Some((number, inode, incumbent)) = parsed(value) else {
        return Inherited::Missing(format!("{CHANNEL}={value:?} cannot be understood"));
    };
    if descriptors::leads_to(number, inode) {
        return match descriptors::adopt(number) {
            Ok(channel) => Inherited::Channel {
                channel,
                is_launched: parent_id() == incumbent,
            },
            Err(error) => Inherited::Missing(format!("descriptor {number}: {error}")),
        };
    }
    if parent_id() == incumbent {
        return Inherited::Missing(format!(
            "descriptor {number} is not the incumbent's channel"
        ));
    }
    Inherited::NotForUs
}

/// The recorded directory, by name; where that is gone, the one that this process is still in.
fn directory(snapshot: &Snapshot) -> Option<&Path> {
    let directory = snapshot.cwd.as_deref();
    directory.filter(|directory| directory.is_dir())
}

/// The recorded variables, with the extra ones in the place of those of the same name, and what a successor needs to
/// talk to the service manager once it is the main process. Its own start takes that away from helpers.
fn environment(snapshot: &Snapshot, extra: &[(OsString, OsString)]) -> Vec<(OsString, OsString)> {
    let replaced = |name: &OsString| extra.iter().any(|(other, _)| other == name);
    let manager = snapshot.service_manager.iter();
    let manager = manager.filter(|(name, _)| FOR_EVERY_GENERATION.iter().any(|it| name == it));
    let recorded = snapshot.env.iter().chain(manager);
    let kept = recorded.filter(|(name, _)| !replaced(name));
    kept.chain(extra)
        .filter(|(name, _)| name != CHANNEL)
        .cloned()
        .collect()
}

fn parsed(value: &OsStr) -> Option<(RawFd, u64, u32)> {
    let mut parts = value.to_str()?.split(':');
    let (number, inode, incumbent) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    Some((
        number.parse().ok()?,
        inode.parse().ok()?,
        incumbent.parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::channel::Channel;
    use crate::protocol::message::Message;
    use crate::sys::process::Reaped;
    use crate::sys::signals;
    use crate::sys::testing::ran_in_its_own_process;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_successor_inherits_the_channel_and_nothing_else() {
        let words = words_of(shell("echo $HANDOVER_CHANNEL; exec ls -l /proc/self/fd")).await;
        let (channel, table) = words.split_once('\n').unwrap();
        let (number, inode, incumbent) = parsed(OsStr::new(channel)).unwrap();
        let inherited: Vec<&str> = table
            .lines()
            .filter_map(|line| Some(line.split_once(" -> ")?.0.rsplit_once(' ')?.1))
            .filter(|&n| n.parse::<RawFd>().unwrap() > 2 && !is_inheritable(n))
            .collect();
        // One more is the directory that ls itself reads.
        assert_eq!(inherited.len(), 2, "{table}");
        assert!(inherited.contains(&number.to_string().as_str()));
        assert!(table.contains(&format!(" {number} -> socket:[{inode}]")));
        assert_eq!(incumbent, process::id());
    }

    #[tokio::test]
    async fn a_successor_gets_the_recorded_environment_the_extra_and_no_other() {
        let mut snapshot = shell("exec env");
        snapshot.env.push(("KEPT".into(), "1".into()));
        snapshot.env.push(("CHANGED".into(), "1".into()));
        snapshot.service_manager = ["NOTIFY_SOCKET", "WATCHDOG_PID", "LISTEN_FDS"]
            .map(|name| (name.into(), "1".into()))
            .into();
        snapshot.channel = Some("9:9:9".into());
        let config = Config {
            extra_env: vec![
                ("CHANGED".into(), "2".into()),
                (CHANNEL.into(), "8:8:8".into()),
            ],
            ..Config::default()
        };
        let words = words_from(&Launcher::new(&snapshot, &config)).await;
        let mut names: Vec<&str> = words
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, _)| name)
            .filter(|name| !["_", "PWD", "SHLVL", "OLDPWD"].contains(name))
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["CHANGED", CHANNEL, "KEPT", "NOTIFY_SOCKET", "PATH"]);
        assert!(words.contains("CHANGED=2\n"));
        assert!(!words.contains("9:9:9") && !words.contains("8:8:8"));
    }

    #[test]
    fn a_variable_has_one_value_and_nobody_else_names_the_channel() {
        let pairs = |list: &[(&str, &str)]| -> Vec<(OsString, OsString)> {
            let pairs = list.iter();
            pairs
                .map(|(name, value)| (name.into(), value.into()))
                .collect()
        };
        let snapshot = Snapshot {
            env: pairs(&[("A", "1"), ("B", "1"), (CHANNEL, "9:9:9")]),
            ..Snapshot::default()
        };
        let extra = pairs(&[("B", "2"), (CHANNEL, "8:8:8")]);
        let built = environment(&snapshot, &extra);
        assert_eq!(built, pairs(&[("A", "1"), ("B", "2")]));
    }

    #[tokio::test]
    async fn a_successor_starts_in_the_recorded_directory_or_here_if_that_is_gone() {
        let room = tempfile::tempdir().unwrap();
        let directory = fs::canonicalize(room.path()).unwrap();
        let mut snapshot = shell("exec pwd -P");
        snapshot.cwd = Some(directory.clone());
        assert_eq!(words_of(snapshot).await.trim(), directory.to_str().unwrap());
        let mut snapshot = shell("exec pwd -P");
        snapshot.cwd = Some(room.path().join("gone"));
        let here = std::env::current_dir().unwrap();
        assert_eq!(words_of(snapshot).await.trim(), here.to_str().unwrap());
    }

    #[tokio::test]
    async fn only_the_upgrade_signal_is_blocked_and_no_broken_pipe_ignored() {
        let words = words_of(shell("exec grep Sig /proc/self/status")).await;
        let mask = |name| {
            let line = words.lines().find_map(|line| line.strip_prefix(name));
            u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
        };
        assert_eq!(mask("SigBlk:"), 1 << (libc::SIGHUP - 1));
        assert_eq!(mask("SigIgn:") & 1 << (libc::SIGPIPE - 1), 0);
    }

    #[tokio::test]
    async fn arguments_need_not_be_text() {
        let mut snapshot = shell("printf %s \"$1\" | od -An -tx1");
        snapshot.argv.push("name".into());
        snapshot
            .argv
            .push(OsString::from_vec(vec![0xff, b'a', 0xfe]));
        assert_eq!(words_of(snapshot).await.trim(), "ff 61 fe");
    }

    #[tokio::test]
    async fn without_capture_standard_error_is_shared() {
        let config = Config {
            capture_stderr: false,
            ..Config::default()
        };
        let mut snapshot = shell("");
        snapshot.argv[2] = "test $(readlink /proc/$PPID/fd/2) = $(readlink /proc/$$/fd/2)".into();
        let launched = Launcher::new(&snapshot, &config).launch(2).unwrap();
        assert!(launched.stderr.is_none());
        assert_eq!(end_of(&launched).await, "exit status: 0");
    }

    #[tokio::test]
    async fn a_launch_that_fails_says_why_and_leaves_nothing_behind() {
        // Alone, since other tests would open descriptors, or hold the program open for writing across a spawn.
        let name = "launch::tests::a_launch_that_fails_says_why_and_leaves_nothing_behind";
        if ran_in_its_own_process(name, &[]) {
            return;
        }
        let room = tempfile::tempdir().unwrap();
        let file = |name: &str, mode| {
            let path = room.path().join(name);
            fs::write(&path, "no program").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let programs = [
            (room.path().join("none"), libc::ENOENT),
            (file("plain", 0o644), libc::EACCES),
            (file("text", 0o755), libc::ENOEXEC),
            (room.path().into(), libc::EACCES),
        ];
        let before = open_descriptors();
        for (program, code) in programs {
            let mut snapshot = shell("");
            snapshot.argv = vec![program.into()];
            let error = failure_of(snapshot);
            assert_eq!(error.raw_os_error(), Some(code));
        }
        let mut snapshot = shell("exit");
        snapshot.argv.push("a\0b".into());
        assert_eq!(failure_of(snapshot).kind(), io::ErrorKind::InvalidInput);
        assert_eq!(open_descriptors(), before);
    }

    #[tokio::test]
    async fn a_failed_launch_names_program_and_generation() {
        let mut snapshot = shell("");
        snapshot.argv = vec!["/no/such/app".into()];
        let launcher = Launcher::new(&snapshot, &Config::default());
        let error = launcher.launch(4).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Launch);
        assert_eq!(
            error.to_string(),
            "starting \"/no/such/app\" as generation 4"
        );
    }

    #[tokio::test]
    async fn a_release_that_is_held_is_started_as_it_was_though_its_file_is_another_by_now() {
        let room = tempfile::tempdir().unwrap();
        let program = room.path().join("app");
        fs::copy("/bin/sh", &program).unwrap();
        let mut held = shell("echo $0 $1; exec env");
        held.argv = [held.argv, vec!["app".into(), "as before".into()]].concat();
        held.env.push(("RELEASE".into(), "one".into()));
        held.channel = Some("9:9:9".into());
        let image = Image::of_file(&program, &held);
        fs::copy("/bin/false", room.path().join("next")).unwrap();
        fs::rename(room.path().join("next"), &program).unwrap();

        let mut current = shell("exit 1");
        current.env.push(("RELEASE".into(), "two".into()));
        current.service_manager = vec![("NOTIFY_SOCKET".into(), "@n".into())];
        let config = Config {
            extra_env: vec![("EXTRA".into(), "2".into())],
            ..Config::default()
        };
        let launcher = Launcher::new(&current, &config);
        let launched = launcher.launch_image(&image, 3).unwrap();
        let words = words_of_launched(launched).await;
        assert!(words.starts_with("app as before\n"), "{words}");
        for line in ["RELEASE=one\n", "NOTIFY_SOCKET=@n\n", "HANDOVER_CHANNEL="] {
            assert!(words.contains(line), "{words}");
        }
        assert!(!words.contains("EXTRA") && !words.contains("9:9:9"));
    }

    #[tokio::test]
    async fn a_release_whose_bytes_are_others_by_now_is_not_started() {
        let room = tempfile::tempdir().unwrap();
        let program = room.path().join("app");
        fs::copy("/bin/sh", &program).unwrap();
        let image = Image::of_file(&program, &shell("exit"));
        fs::copy("/bin/true", &program).unwrap();
        let launcher = Launcher::new(&shell("exit"), &Config::default());
        let error = launcher.launch_image(&image, 3).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Launch);
        assert!(
            format!("{error:?}").contains("overwritten in place"),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn a_successor_finds_its_channel_and_answers() {
        let name = "launch::tests::a_successor_finds_its_channel_and_answers";
        let first = Snapshot::take();
        if let Some(value) = &first.channel {
            return answer_as_successor(value).await;
        }
        let mut snapshot = shell("exec \"$0\" --exact \"$1\" >/dev/null");
        snapshot.argv.push(first.argv[0].clone());
        snapshot.argv.push(name.into());
        let launched = Launcher::new(&snapshot, &Config::default())
            .launch(2)
            .unwrap();
        let mut channel = Channel::new(launched.channel.try_clone().unwrap()).unwrap();
        let heard = timeout(PATIENCE, channel.recv()).await.unwrap().unwrap();
        assert_eq!(heard.unwrap().0, Message::Started);
        assert_eq!(end_of(&launched).await, "exit status: 0");
    }

    async fn answer_as_successor(value: &OsStr) {
        let Inherited::Channel {
            channel,
            is_launched: _,
        } = inherited(value)
        else {
            panic!("no channel");
        };
        assert!(!is_inheritable(&channel.as_raw_fd().to_string()));
        signals::unblock(&[libc::SIGHUP]).unwrap();
        let channel = Channel::new(channel).unwrap();
        channel.try_send(&Message::Started, &[]).unwrap();
    }

    #[test]
    fn a_variable_without_a_channel_is_an_error_only_for_whom_it_was_meant() {
        let for_us = format!("1000000:1:{}", parent_id());
        assert!(matches!(
            inherited(OsStr::new(&for_us)),
            Inherited::Missing(_)
        ));
        let leaked = format!("1000000:1:{}", process::id());
        assert!(matches!(
            inherited(OsStr::new(&leaked)),
            Inherited::NotForUs
        ));
        let another_s = format!("0:1:{}", process::id());
        assert!(matches!(
            inherited(OsStr::new(&another_s)),
            Inherited::NotForUs
        ));
        for malformed in [
            "",
            "7",
            "7:1",
            "7:1:x",
            "7:1:2:3",
            "-:1:2",
            "99999999999:1:2",
        ] {
            let found = inherited(OsStr::new(malformed));
            assert!(matches!(found, Inherited::Missing(_)), "{malformed}");
        }
    }

    /// A process that was started as a shell with this script, all of whose output goes to standard error.
    fn shell(script: &str) -> Snapshot {
        Snapshot {
            argv: vec![
                "/bin/sh".into(),
                "-c".into(),
                format!("exec >&2; {script}").into(),
            ],
            env: vec![("PATH".into(), std::env::var_os("PATH").unwrap())],
            cwd: std::env::current_dir().ok(),
            ..Snapshot::default()
        }
    }

    async fn words_of(snapshot: Snapshot) -> String {
        words_from(&Launcher::new(&snapshot, &Config::default())).await
    }

    async fn words_from(launcher: &Launcher) -> String {
        words_of_launched(launcher.launch(2).unwrap()).await
    }

    async fn words_of_launched(mut launched: Launched) -> String {
        let end = end_of(&launched).await;
        let words = launched.stderr.as_mut().unwrap().last_words(PATIENCE).await;
        assert_eq!(end, "exit status: 0", "{words}");
        words
    }

    async fn end_of(launched: &Launched) -> String {
        let exited = launched.pidfd.exited();
        timeout(PATIENCE, exited).await.unwrap().unwrap();
        match launched.pidfd.reap().unwrap() {
            Reaped::Exited(end) => end.to_string(),
            other => panic!("{other:?}"),
        }
    }

    fn failure_of(snapshot: Snapshot) -> io::Error {
        let launcher = Launcher::new(&snapshot, &Config::default());
        let error = launcher.launch(2).unwrap_err();
        let cause = error.source().unwrap().downcast_ref::<io::Error>().unwrap();
        cause
            .raw_os_error()
            .map_or_else(|| cause.kind().into(), io::Error::from_raw_os_error)
    }

    fn open_descriptors() -> usize {
        fs::read_dir("/proc/self/fd").unwrap().count()
    }

    /// Whether this process would leave its own descriptor of this number to anything it starts.
    fn is_inheritable(number: &str) -> bool {
        let Ok(info) = fs::read_to_string(format!("/proc/self/fdinfo/{number}")) else {
            return false;
        };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
        flags & libc::O_CLOEXEC == 0
    }
}
