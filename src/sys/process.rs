//! Starting a successor, and knowing when a process is gone.
//!
//! A spawn never copies this process's page tables: glibc and musl implement posix_spawn(3) with CLONE_VM and
//! CLONE_VFORK, so it costs the same at 8 GiB as at 10 MiB and stalls no other thread.

#![expect(
    unsafe_code,
    reason = "std cannot pass one descriptor or a signal mask without forking, and nix knows no pidfd"
)]

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::ptr;
use std::task::{Context, Poll};

use nix::unistd::geteuid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::descriptors::watched;
use super::signals;

/// A process, by a descriptor that can never come to mean another one (pidfd_open(2)).
#[derive(Debug)]
pub(crate) struct Pidfd(AsyncFd<OwnedFd>);

/// What asking after a process's end has found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reaped {
    /// It still runs.
    Running,
    /// It has ended like this, and its entry in the process table is free again.
    Exited(ExitStatus),
    /// It is no child of this process, or somebody else has collected its end: nobody can tell how it ended.
    NotOurs,
}

impl Pidfd {
    /// Takes hold of a process.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
        // SAFETY: pidfd_open(2) takes a number and flags, and touches no memory.
        let number = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        // SAFETY: the call above succeeded, so this is a new descriptor, close-on-exec, that nothing else owns.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number as RawFd) };
        watched(descriptor, Interest::READABLE).map(Self)
    }

    /// Takes hold of the process that has connected the other end of a Unix socket, whose number SO_PEERCRED (unix(7))
    /// has told.
    ///
    /// Before Linux 6.5 this goes by the number. Ask afterwards whether it [still holds its
    /// end](super::descriptors::is_hung_up): if it does, the number was its own all the time.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn of_peer(socket: BorrowedFd<'_>, pid: u32) -> io::Result<Self> {
        match peer_pidfd(socket) {
            Ok(descriptor) => watched(descriptor, Interest::READABLE).map(Self),
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Self::open(pid),
            Err(error) => Err(error),
        }
    }

    /// Takes hold of a process by a pidfd that somebody else has opened; an error if it is no pidfd.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn adopt(descriptor: OwnedFd) -> io::Result<Self> {
        let process = Self(watched(descriptor, Interest::READABLE)?);
        // Signal 0 is never sent. Only a descriptor of another kind is EBADF here (pidfd_send_signal(2)): a process
        // that is gone, or is somebody else's, is another error and still a process.
        match process.signal(0) {
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => Err(error),
            _ => Ok(process),
        }
    }

    /// The same process, watched on its own.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        watched(self.as_fd().try_clone_to_owned()?, Interest::READABLE).map(Self)
    }

    /// Whether this process may end it; an error with the reason if not.
    pub(crate) fn can_be_killed(&self) -> io::Result<()> {
        // Signal 0 is never sent, and is refused to those who may send no other (kill(2)).
        self.signal(0)
    }

    /// Ends the process at once.
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.signal(libc::SIGKILL)
    }

    /// A duplicate of one of its descriptors, close-on-exec (pidfd_getfd(2)).
    ///
    /// # Errors
    ///
    /// If this process could not trace it, or it has no such descriptor.
    #[cfg_attr(
        not(feature = "pool"),
        expect(dead_code, reason = "supervisors alone ask for it")
    )]
    pub(crate) fn duplicate_of(&self, number: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: takes numbers, and touches no memory.
        let number =
            check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), number, 0) })?;
        // SAFETY: the call above succeeded, so this is a new descriptor, close-on-exec, that nothing else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(number as RawFd) })
    }

    /// Waits until the process is gone; for a child, until it can be [reaped](Self::reap).
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost; a later call returns at once if the process is gone by then.
    pub(crate) async fn exited(&self) -> io::Result<()> {
        // A pidfd stays readable from the death on, so the readiness is kept and never cleared.
        self.0
            .readable()
            .await
            .map(|mut ready| ready.retain_ready())
    }

    /// Whether the process is gone; wakes the task that asked last when it is.
    pub(crate) fn poll_exited(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ready = self.0.poll_read_ready(context);
        ready.map_ok(|mut ready| ready.retain_ready())
    }

    /// Collects the end of a child, without waiting for it.
    pub(crate) fn reap(&self) -> io::Result<Reaped> {
        self.wait(libc::WNOHANG)
    }

    /// Ends a child, if it has not ended, and collects its end.
    ///
    /// Waits without a deadline for the one thing that the kernel promises: SIGKILL ends a process.
    #[cfg(feature = "pool")]
    pub(crate) fn end(&self) -> io::Result<Reaped> {
        // One that has ended already is to be collected all the same.
        let _ = self.kill();
        self.wait(0)
    }

    fn wait(&self, options: libc::c_int) -> io::Result<Reaped> {
        // SAFETY: siginfo_t is integers and pointers, for which zero is a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = self.0.as_raw_fd().unsigned_abs();
        let options = libc::WEXITED | options;
        // SAFETY: `info` has room for what waitid(2) writes, and outlives the call.
        let result = unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, options) };
        match check(result.into()) {
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(Reaped::NotOurs),
            Err(error) => Err(error),
            // WNOHANG: success without a signal number means that nothing has ended (waitid(2)).
            Ok(_) if info.si_signo == 0 => Ok(Reaped::Running),
            Ok(_) => Ok(Reaped::Exited(ending(&info))),
        }
    }

    /// Sends a signal to the process, if it is still there.
    pub(crate) fn signal(&self, signal: libc::c_int) -> io::Result<()> {
        let none = ptr::null::<libc::siginfo_t>();
        // SAFETY: a null pointer asks for the siginfo that kill(2) would send; nothing else points to memory.
        check(unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal,
                none,
                0,
            )
        })?;
        Ok(())
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// What to start, and with what.
#[derive(Debug)]
pub(crate) struct Spawn<'a> {
    /// The executable; never searched for. A relative one is relative to `cwd`.
    pub(crate) program: &'a Path,
    /// Its arguments, its own name first.
    pub(crate) argv: &'a [OsString],
    /// Its whole environment.
    pub(crate) env: &'a [(OsString, OsString)],
    /// Its directory, if not this process's.
    pub(crate) cwd: Option<&'a Path>,
    /// The one descriptor that it gets beside the standard streams, under the same number.
    pub(crate) inherit: BorrowedFd<'a>,
    /// Its standard error, if not this process's.
    pub(crate) stderr: Option<BorrowedFd<'a>>,
    /// The signals that are blocked in it, and no others.
    pub(crate) blocked: &'a [i32],
}

/// Starts a process and returns its number; an error of the exec is returned as if it were our own.
///
/// `inherit` must lie above the standard streams, as an end of a [`pair`](super::descriptors::pair) does: below, it
/// would be one of them.
pub(crate) fn spawn(spawn: &Spawn<'_>) -> io::Result<u32> {
    let program = CString::new(spawn.program.as_os_str().as_bytes())?;
    let argv = Strings::new(spawn.argv.iter().map(OsString::clone))?;
    let env = Strings::new(spawn.env.iter().map(assignment))?;
    let actions = Actions::of(spawn)?;
    let attributes = Attributes::blocking(spawn.blocked)?;
    let mut pid = 0;
    // SAFETY: `pid` has room for the result; the strings and both lists are initialised, null-terminated where the call
    // asks for it, only read, and outlive it.
    check_code(unsafe {
        libc::posix_spawn(
            &raw mut pid,
            program.as_ptr(),
            &raw const *actions.0,
            &raw const *attributes.0,
            argv.pointers.as_ptr(),
            env.pointers.as_ptr(),
        )
    })?;
    Ok(pid.unsigned_abs())
}

/// Gives this process a name for ps(1) and pgrep(1), of which the kernel keeps the first 15 bytes (proc_pid_comm(5)).
///
/// It is the main thread's, whichever thread says so; prctl(2) would name the calling one.
pub(crate) fn set_name(name: &OsStr) -> io::Result<()> {
    fs::write("/proc/self/comm", name.as_bytes())
}

/// Ends a child that nobody can watch, and collects it.
///
/// Waits without a deadline for the one thing that the kernel promises: SIGKILL ends a process.
pub(crate) fn discard(pid: u32) {
    let pid = pid.cast_signed();
    // SAFETY: kill(2) takes numbers. The child has not been collected, so its number still means it.
    if unsafe { libc::kill(pid, libc::SIGKILL) } == 0 {
        // SAFETY: a null pointer asks for no status.
        unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
    }
}

/// SO_PEERPIDFD: by the connection and not by a number, so it is nobody else even if the process is gone.
fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut number: RawFd = -1;
    let mut length = size_of::<RawFd>() as libc::socklen_t;
    // SAFETY: getsockopt(2) writes one descriptor to `number`, and its length to `length`; both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut number).cast(),
            &raw mut length,
        )
    };
    check(result.into())?;
    // SAFETY: the call above succeeded, so this is a new descriptor, close-on-exec, that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// As in the kernel's asm-generic/socket.h; libc has it for a short time only.
const SO_PEERPIDFD: libc::c_int = 77;

pub(super) fn assignment((name, value): &(OsString, OsString)) -> OsString {
    let mut text = name.clone();
    text.push("=");
    text.push(value);
    text
}

fn ending(info: &libc::siginfo_t) -> ExitStatus {
    // SAFETY: waitid(2) has filled this in for a child that ended, where it holds the exit code or signal.
    let status = unsafe { info.si_status() };
    ExitStatus::from_raw(match info.si_code {
        libc::CLD_EXITED => (status & 0xff) << 8,
        libc::CLD_DUMPED => status | CORE_DUMPED,
        _ => status,
    })
}

/// WCOREFLAG of wait(2), the bit that std reads.
const CORE_DUMPED: libc::c_int = 0x80;

/// A null-terminated list of C strings. The pointers lead into `_owned`, whose buffers stay where they are.
pub(super) struct Strings {
    _owned: Vec<CString>,
    pub(super) pointers: Vec<*mut libc::c_char>,
}

impl Strings {
    pub(super) fn new(texts: impl Iterator<Item = OsString>) -> io::Result<Self> {
        let owned = texts
            .map(|text| CString::new(OsStr::as_bytes(&text)))
            .collect::<Result<Vec<_>, _>>()?;
        let pointers = owned
            .iter()
            .map(|text| text.as_ptr().cast_mut())
            .chain([ptr::null_mut()])
            .collect();
        Ok(Self {
            _owned: owned,
            pointers,
        })
    }
}

/// What happens to descriptors and directory between the start of the process and its exec.
struct Actions(Box<libc::posix_spawn_file_actions_t>);

impl Actions {
    fn of(spawn: &Spawn<'_>) -> io::Result<Self> {
        let inherit = spawn.inherit.as_raw_fd();
        if inherit <= libc::STDERR_FILENO {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let mut actions = Self::none()?;
        // Onto itself: clears close-on-exec in the new process only (posix_spawn_file_actions_adddup2(3)).
        actions.duplicate(inherit, inherit)?;
        if let Some(stderr) = spawn.stderr {
            actions.duplicate(stderr.as_raw_fd(), libc::STDERR_FILENO)?;
        }
        if let Some(cwd) = spawn.cwd {
            actions.enter(cwd)?;
        }
        Ok(actions)
    }

    fn none() -> io::Result<Self> {
        // SAFETY: integers and pointers, for which zero is a value; the next call gives them a meaning.
        let mut actions = Box::new(unsafe { std::mem::zeroed() });
        // SAFETY: has room for what is initialised, and is on the heap, so it never moves afterwards.
        check_code(unsafe { libc::posix_spawn_file_actions_init(&raw mut *actions) })?;
        Ok(Self(actions))
    }

    fn duplicate(&mut self, from: RawFd, to: RawFd) -> io::Result<()> {
        // SAFETY: initialised in `none`; the call only notes two numbers.
        check_code(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut *self.0, from, to) })
    }

    fn enter(&mut self, directory: &Path) -> io::Result<()> {
        let directory = CString::new(directory.as_os_str().as_bytes())?;
        // SAFETY: initialised in `none`; the call copies the path.
        check_code(unsafe {
            libc::posix_spawn_file_actions_addchdir_np(&raw mut *self.0, directory.as_ptr())
        })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in `none` and not used again.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut *self.0) };
    }
}

/// The signal state of the new process.
struct Attributes(Box<libc::posix_spawnattr_t>);

impl Attributes {
    fn blocking(blocked: &[i32]) -> io::Result<Self> {
        let mask = signals::set_of(blocked)?;
        // std ignores SIGPIPE in every Rust program, and what is ignored stays so across exec (signal(7)).
        let default = signals::set_of(&[libc::SIGPIPE])?;
        let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        let mut attributes = Self::none()?;
        let inner = &raw mut *attributes.0;
        // SAFETY: initialised in `none`; the call copies the set.
        check_code(unsafe { libc::posix_spawnattr_setsigmask(inner, &raw const mask) })?;
        // SAFETY: as above.
        check_code(unsafe { libc::posix_spawnattr_setsigdefault(inner, &raw const default) })?;
        // SAFETY: initialised in `none`; the call notes a number.
        check_code(unsafe { libc::posix_spawnattr_setflags(inner, flags as libc::c_short) })?;
        Ok(attributes)
    }

    fn none() -> io::Result<Self> {
        // SAFETY: integers and pointers, for which zero is a value; the next call gives them a meaning.
        let mut attributes = Box::new(unsafe { std::mem::zeroed() });
        // SAFETY: has room for what is initialised, and is on the heap, so it never moves afterwards.
        check_code(unsafe { libc::posix_spawnattr_init(&raw mut *attributes) })?;
        Ok(Self(attributes))
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `none` and not used again.
        unsafe { libc::posix_spawnattr_destroy(&raw mut *self.0) };
    }
}

pub(super) fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// The posix_spawn family returns its error instead of setting errno.
fn check_code(code: libc::c_int) -> io::Result<()> {
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// When a process was started, in clock ticks since the boot (proc_pid_stat(5)); `None` if there is none, or only what is
/// left of one that has ended and was not collected.
pub(crate) fn has_started_at(pid: u32) -> io::Result<Option<u64>> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // It has ended between the opening and the reading.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(error),
    };
    // The name in field 2 may have any character in it, so fields are counted from behind it.
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields);
    let mut fields = fields.unwrap_or_default().split(' ');
    if matches!(fields.next(), Some("Z" | "X")) {
        return Ok(None);
    }
    let started = fields
        .nth(STARTED_BEHIND_STATE)
        .and_then(|field| field.parse().ok());
    started
        .map(Some)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Field 22 is the 18th behind field 3 and the one after it.
const STARTED_BEHIND_STATE: usize = 18;

/// Whether a user may tell this process what to do: its own, and root.
pub(crate) fn is_own_user_or_root(user: u32) -> bool {
    user == 0 || user == geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::super::descriptors::{is_hung_up, pair};
    use super::super::testing::ran_in_its_own_process;
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[cfg(feature = "pool")]
    #[tokio::test]
    async fn a_child_is_ended_unless_it_has_ended_by_itself() {
        let killed = started("exec sleep 60").end().unwrap();
        assert_eq!(killed, Reaped::Exited(ExitStatus::from_raw(libc::SIGKILL)));
        let ended = started("exit 3");
        timeout(PATIENCE, ended.exited()).await.unwrap().unwrap();
        let three = Reaped::Exited(ExitStatus::from_raw(3 << 8));
        assert_eq!(ended.end().unwrap(), three);
    }

    #[tokio::test]
    async fn the_end_of_a_child_is_told_in_words() {
        for (script, words) in [
            ("exit 3", "exit status: 3"),
            ("kill -9 $$", "signal: 9 (SIGKILL)"),
            ("kill -34 $$", "signal: 34"),
        ] {
            let pidfd = started(script);
            timeout(PATIENCE, pidfd.exited()).await.unwrap().unwrap();
            match pidfd.reap().unwrap() {
                Reaped::Exited(end) => assert!(end.to_string().starts_with(words), "{end}"),
                other => panic!("{script}: {other:?}"),
            }
            assert_eq!(pidfd.reap().unwrap(), Reaped::NotOurs);
            timeout(PATIENCE, pidfd.exited()).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_running_child_is_not_reaped_and_can_be_ended() {
        let child = started("exec sleep 60");
        assert_eq!(child.reap().unwrap(), Reaped::Running);
        child.kill().unwrap();
        timeout(PATIENCE, child.exited()).await.unwrap().unwrap();
        let killed = Reaped::Exited(ExitStatus::from_raw(libc::SIGKILL));
        assert_eq!(child.reap().unwrap(), killed);
    }

    #[tokio::test]
    async fn the_end_of_somebody_elses_child_is_noticed_but_not_collected() {
        let mut shell = with_grandchild();
        let mut pid = String::new();
        let stdout = shell.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut pid).unwrap();
        let grandchild = Pidfd::open(pid.trim().parse().unwrap()).unwrap();
        assert_eq!(grandchild.reap().unwrap(), Reaped::NotOurs);
        grandchild.kill().unwrap();
        timeout(PATIENCE, grandchild.exited())
            .await
            .unwrap()
            .unwrap();
        shell.wait().unwrap();
    }

    #[tokio::test]
    async fn a_process_is_watched_through_a_pidfd_of_somebody_else_and_through_nothing_else() {
        let theirs = started("exec sleep 60");
        let ours = Pidfd::adopt(theirs.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let poll = poll_fn(|context| Poll::Ready(ours.poll_exited(context).is_pending()));
        assert!(poll.await);
        ours.kill().unwrap();
        let exited = poll_fn(|context| ours.poll_exited(context));
        timeout(PATIENCE, exited).await.unwrap().unwrap();
        assert!(matches!(theirs.reap().unwrap(), Reaped::Exited(_)));
        assert!(Pidfd::adopt(ours.as_fd().try_clone_to_owned().unwrap()).is_ok());

        let socket = Pidfd::adopt(pair().unwrap().0).unwrap_err();
        assert_eq!(socket.raw_os_error(), Some(libc::EBADF));
    }

    #[tokio::test]
    async fn whoever_has_connected_is_held_by_the_connection() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut peer = Command::new("python3")
            .args(["-c", CONNECTS])
            .arg(&path)
            .spawn()
            .unwrap();
        let (socket, _) = listener.accept().unwrap();
        let held = Pidfd::of_peer(socket.as_fd(), u32::MAX).unwrap();
        held.can_be_killed().unwrap();
        assert!(!is_hung_up(socket.as_fd()).unwrap());
        held.kill().unwrap();
        assert!(!peer.wait().unwrap().success());
        timeout(PATIENCE, held.exited()).await.unwrap().unwrap();
        assert!(is_hung_up(socket.as_fd()).unwrap());
        // Nobody else, though nobody can find it by its number any more.
        let gone = Pidfd::of_peer(socket.as_fd(), u32::MAX).unwrap();
        timeout(PATIENCE, gone.exited()).await.unwrap().unwrap();
        assert!(gone.can_be_killed().is_err());
    }

    #[tokio::test]
    async fn a_process_that_is_not_there_cannot_be_opened() {
        assert!(Pidfd::open(u32::MAX).is_err());
        assert!(Pidfd::open(i32::MAX.unsigned_abs()).is_err());
    }

    #[test]
    fn a_name_is_the_process_s_from_any_thread() {
        let name = "sys::process::tests::a_name_is_the_process_s_from_any_thread";
        if ran_in_its_own_process(name, &[]) {
            return;
        }
        set_name(OsStr::new("a-name-that-is-too-long")).unwrap();
        let comm = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(comm, "a-name-that-is-\n");
    }

    #[test]
    fn a_standard_stream_is_not_inherited_as_a_channel() {
        let error = spawn(&Spawn {
            inherit: io::stdin().as_fd(),
            ..shell(&arguments("exit 0"), pair().unwrap().0.as_fd())
        })
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_discarded_child_leaves_no_zombie() {
        let (channel, _ours) = pair().unwrap();
        let pid = spawn(&shell(&arguments("exec sleep 60"), channel.as_fd())).unwrap();
        discard(pid);
        assert!(!Path::new("/proc").join(pid.to_string()).exists());
    }

    const CONNECTS: &str = "import signal, socket, sys\n\
        s = socket.socket(socket.AF_UNIX)\n\
        s.connect(sys.argv[1])\n\
        signal.pause()";

    fn started(script: &str) -> Pidfd {
        let (channel, _ours) = pair().unwrap();
        let pid = spawn(&shell(&arguments(script), channel.as_fd())).unwrap();
        Pidfd::open(pid).unwrap()
    }

    fn shell<'a>(argv: &'a [OsString], inherit: BorrowedFd<'a>) -> Spawn<'a> {
        Spawn {
            program: Path::new("/bin/sh"),
            argv,
            env: &[],
            cwd: None,
            inherit,
            stderr: None,
            blocked: &[],
        }
    }

    fn arguments(script: &str) -> [OsString; 3] {
        ["sh".into(), "-c".into(), script.into()]
    }

    fn with_grandchild() -> Child {
        Command::new("/bin/sh")
            .args(["-c", "sleep 60 & echo $!; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }
}
