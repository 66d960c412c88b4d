//! Starting a process that gets its sockets as a service manager would pass them (sd_listen_fds(3)): from descriptor 3 on,
//! and with its own number in `LISTEN_PID`.
//!
//! posix_spawn(3) cannot do that, since the number is not known before the process is there. So this does what it does
//! inside: a child that shares this process's memory until its exec, while the calling thread waits (clone(2), CLONE_VM
//! and CLONE_VFORK). Nothing is copied, whatever the size of the heap, and no shell or second exec is needed.
//!
//! 1. Everything that allocates is done before the clone. The child makes system calls and stores to atomics only.
//! 2. No signal handler of this process runs in the child, whose memory is ours: all signals are blocked across the
//!    clone, and the child takes every handler away before it lets any through.
//! 3. The child's descriptors are its own, so what it does to their numbers is not seen here.

#![expect(
    unsafe_code,
    reason = "no safe call starts a process that knows its own number before its exec"
)]

use std::ffi::{CString, OsString, c_char, c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering::Relaxed};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::process::{Strings, assignment, check, discard};
use super::{descriptors, signals};

/// What to start, and with what.
#[derive(Debug)]
pub(crate) struct Activated<'a> {
    /// What is executed.
    pub(crate) program: Program<'a>,
    /// Its arguments, its own name first.
    pub(crate) argv: &'a [OsString],
    /// Its whole environment but for `LISTEN_PID` and `LISTEN_FDS`.
    pub(crate) env: &'a [(OsString, OsString)],
    /// Its directory, if not this process's.
    pub(crate) cwd: Option<&'a Path>,
    /// Its descriptors from 3 on.
    pub(crate) sockets: &'a [BorrowedFd<'a>],
    /// Its standard output and standard error, if not this process's.
    pub(crate) streams: Option<[BorrowedFd<'a>; 2]>,
}

/// What is executed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Program<'a> {
    /// By its path, never searched for. A relative one is relative to the directory of the new process.
    Path(&'a Path),
    /// By an open file, whatever its path leads to by now.
    File(BorrowedFd<'a>),
    /// The same for a script: its interpreter opens it again, so the process keeps it.
    Script(BorrowedFd<'a>),
}

/// Starts a process in a process group of its own and returns its number; an error of the exec is returned as if it were
/// our own.
pub(crate) fn spawn_activated(activated: &Activated<'_>) -> io::Result<u32> {
    let start = Start::new(activated)?;
    let mut stack = Stack::new();
    let blocked = AllBlocked::now()?;
    // SAFETY: `enter` gets the `Start` that it expects. That and the stack, whose top is aligned and writable, outlive
    // the child's use of them: CLONE_VFORK returns only when it has left this memory by exec or exit.
    let pid = check(c_int::into(unsafe {
        libc::clone(
            enter,
            stack.top(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
            (&raw const start).cast_mut().cast(),
        )
    }));
    drop(blocked);
    let pid = u32::try_from(pid?).map_err(io::Error::other)?;
    match start.error.load(Relaxed) {
        0 => Ok(pid),
        code => {
            discard(pid);
            Err(io::Error::from_raw_os_error(code))
        }
    }
}

/// What every process of a group is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// Finish, and leave.
    Terminate,
    /// End at once.
    Kill,
}

/// Signals a process that was started here and all that it has started, by the number of the first one.
///
/// The caller has not collected that one, so that the number still means this group.
pub(crate) fn signal_group(pid: u32, what: Group) -> io::Result<()> {
    let signal = match what {
        Group::Terminate => Signal::SIGTERM,
        Group::Kill => Signal::SIGKILL,
    };
    Ok(killpg(Pid::from_raw(pid.cast_signed()), signal)?)
}

/// All that the child needs, in memory that it finds at the same place.
struct Start {
    program: CString,
    argv: Strings,
    /// The last but one leads to `pid_text`.
    env: Strings,
    cwd: Option<CString>,
    /// Above the numbers that they are to have, so that none is overwritten before its turn.
    sockets: Vec<OwnedFd>,
    /// Above these numbers too; none where it has this process's.
    streams: Vec<OwnedFd>,
    /// The program, if it is executed by its descriptor.
    file: Option<OwnedFd>,
    keeps_file: bool,
    /// `LISTEN_PID=` and room for a number.
    pid_text: Box<[AtomicU8; PID_TEXT]>,
    none_blocked: libc::sigset_t,
    by_default: libc::sigaction,
    /// Why there was no exec.
    error: AtomicI32,
}

impl Start {
    fn new(activated: &Activated<'_>) -> io::Result<Self> {
        let floor = FIRST + RawFd::try_from(activated.sockets.len()).map_err(io::Error::other)?;
        let sockets = activated.sockets.iter();
        let sockets = sockets.map(|socket| descriptors::duplicate_above(*socket, floor));
        let streams = activated.streams.iter().flatten();
        let streams = streams.map(|stream| descriptors::duplicate_above(*stream, floor));
        let (file, keeps_file) = match activated.program {
            Program::Path(_) => (None, false),
            Program::File(file) => (Some(file), false),
            Program::Script(file) => (Some(file), true),
        };
        let file = file.map(|file| descriptors::duplicate_above(file, floor));
        let file = file.transpose()?;
        let program = match (&file, activated.program) {
            (Some(file), _) => format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            (None, Program::Path(path)) => path.as_os_str().to_owned(),
            (None, _) => OsString::new(),
        };
        let count = (
            "LISTEN_FDS".into(),
            activated.sockets.len().to_string().into(),
        );
        let env = activated.env.iter().chain([&count]);
        let mut env = Strings::new(env.map(assignment))?;
        let pid_text = Box::new([const { AtomicU8::new(0) }; PID_TEXT]);
        store(&pid_text[..], LISTEN_PID);
        let end = env.pointers.len() - 1;
        let pid = pid_text.as_ptr().cast_mut().cast::<c_char>();
        env.pointers.insert(end, pid);
        let cwd = activated
            .cwd
            .map(|cwd| CString::new(cwd.as_os_str().as_bytes()));
        Ok(Self {
            program: CString::new(program.as_bytes())?,
            argv: Strings::new(activated.argv.iter().map(OsString::clone))?,
            env,
            cwd: cwd.transpose()?,
            sockets: sockets.collect::<io::Result<_>>()?,
            streams: streams.collect::<io::Result<_>>()?,
            file,
            keeps_file,
            pid_text,
            none_blocked: signals::set_of(&[])?,
            // SAFETY: integers, a mask and pointers, for which zero is a value: SIG_DFL without flags.
            by_default: unsafe { std::mem::zeroed() },
            error: AtomicI32::new(0),
        })
    }

    /// In the child: all of it, up to the exec. Returns the reason only if there was none.
    fn run(&self) -> io::Error {
        self.say_pid();
        if let Err(error) = self.take_descriptors() {
            return error;
        }
        // SAFETY: takes numbers. Zero twice: itself, as the first of a group of its own (setpgid(2)).
        unsafe { libc::setpgid(0, 0) };
        if let Some(cwd) = &self.cwd {
            // SAFETY: a string that ends in a null.
            if unsafe { libc::chdir(cwd.as_ptr()) } < 0 {
                return io::Error::last_os_error();
            }
        }
        self.reset_signals();
        let (argv, env) = (self.argv.pointers.as_ptr(), self.env.pointers.as_ptr());
        // SAFETY: strings and lists of strings that end in a null and outlive the call, which only reads them.
        unsafe { libc::execve(self.program.as_ptr(), argv.cast(), env.cast()) };
        io::Error::last_os_error()
    }

    /// Past std and libc, both of which may have remembered the number of the process that this one looks like.
    fn say_pid(&self) {
        // SAFETY: getpid(2) takes nothing and cannot fail.
        let mut rest = unsafe { libc::syscall(libc::SYS_getpid) }.unsigned_abs();
        let mut digits = [0; PID_TEXT - LISTEN_PID.len()];
        let mut begin = digits.len() - 1;
        while rest > 0 && begin > 0 {
            begin -= 1;
            digits[begin] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        store(&self.pid_text[LISTEN_PID.len()..], &digits[begin..]);
    }

    fn take_descriptors(&self) -> io::Result<()> {
        let sockets = self.sockets.iter().zip(FIRST..);
        let streams = self.streams.iter().zip(libc::STDOUT_FILENO..);
        for (passed, number) in sockets.chain(streams) {
            // SAFETY: takes numbers. The number may be one of this process's: the child's table is its own, and what
            // stays there closes with the exec.
            if unsafe { libc::dup2(passed.as_raw_fd(), number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        if let Some(file) = self.file.as_ref().filter(|_| self.keeps_file) {
            // SAFETY: takes numbers; 0 clears close-on-exec.
            if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// What is ignored stays so across exec (signal(7)). std ignores SIGPIPE, of which its programs must not hear.
    fn reset_signals(&self) {
        for signal in 1..=libc::SIGRTMAX() {
            if signal == libc::SIGPIPE || !is_ignored(signal) {
                // SAFETY: reads an initialised action; null asks for no copy of the one before. Numbers that no action
                // can be set for are refused.
                unsafe { libc::sigaction(signal, &raw const self.by_default, ptr::null_mut()) };
            }
        }
        let set = &raw const self.none_blocked;
        // SAFETY: reads an initialised set; null asks for no copy of the mask before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set, ptr::null_mut()) };
    }
}

/// Where the child begins.
extern "C" fn enter(start: *mut c_void) -> c_int {
    // SAFETY: `spawn_activated` passes a `Start`, which nobody changes but through its atomics, and which it keeps until
    // the child is gone from this memory.
    let start = unsafe { &*start.cast::<Start>() };
    let error = start.run();
    let code = error.raw_os_error().unwrap_or(libc::EIO);
    start.error.store(code, Relaxed);
    // SAFETY: ends the child without the exit handlers of the process that it looks like.
    unsafe { libc::_exit(127) }
}

fn is_ignored(signal: c_int) -> bool {
    let mut found = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: null asks for no change; `found` has room for the action.
    if unsafe { libc::sigaction(signal, ptr::null(), found.as_mut_ptr()) } < 0 {
        return false;
    }
    // SAFETY: zeroed, and filled in by the call that succeeded.
    let found = unsafe { found.assume_init() };
    found.sa_sigaction == libc::SIG_IGN
}

fn store(to: &[AtomicU8], bytes: &[u8]) {
    for (to, byte) in to.iter().zip(bytes) {
        to.store(*byte, Relaxed);
    }
}

/// Keeps every signal that can be kept from the calling thread, until it is dropped.
struct AllBlocked(libc::sigset_t);

impl AllBlocked {
    fn now() -> io::Result<Self> {
        let (mut all, mut before) = (signals::set_of(&[])?, signals::set_of(&[])?);
        // SAFETY: `all` is initialised and outlives the call, which sets every bit of it.
        unsafe { libc::sigfillset(&raw mut all) };
        // SAFETY: `all` is read and `before` written; both are initialised and outlive the call.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before) } {
            0 => Ok(Self(before)),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }
}

impl Drop for AllBlocked {
    fn drop(&mut self) {
        // SAFETY: reads the mask that was in force before, which cannot be refused; null asks for no copy.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// The child's, until its exec.
struct Stack(Box<[MaybeUninit<u8>]>);

impl Stack {
    fn new() -> Self {
        Self(Box::new_uninit_slice(STACK))
    }

    /// Its highest address, aligned as every calling convention wants it: stacks grow downwards.
    fn top(&mut self) -> *mut c_void {
        let end = self.0.as_mut_ptr_range().end;
        let surplus = end.addr() % STACK_ALIGN;
        end.wrapping_sub(surplus).cast()
    }
}

/// Where passed descriptors begin (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
const LISTEN_PID: &[u8] = b"LISTEN_PID=";
/// The name, a number of 64 bits, and a null.
const PID_TEXT: usize = LISTEN_PID.len() + 21;
/// Some calls deep, without buffers: 64 KiB.
const STACK: usize = 64 * 1024;
const STACK_ALIGN: usize = 64;

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read;
    use std::net::TcpListener;
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::sys::process::{Pidfd, Reaped};
    use crate::sys::testing::ran_in_its_own_process;

    fn shell(script: &str) -> [OsString; 3] {
        ["sh".into(), "-c".into(), script.into()]
    }

    /// What a script says on a pipe that is its descriptor 3, behind which come the sockets.
    fn words_of(program: Program<'_>, argv: &[OsString], sockets: &[BorrowedFd<'_>]) -> String {
        let (mut reader, writer) = io::pipe().unwrap();
        let sockets = [&[writer.as_fd()], sockets].concat();
        let pid = spawn_activated(&Activated {
            program,
            argv,
            env: &[("PATH".into(), "/usr/bin:/bin".into())],
            cwd: Some(Path::new("/")),
            sockets: &sockets,
            streams: None,
        });
        let pid = pid.unwrap();
        drop(writer);
        let mut words = String::new();
        reader.read_to_string(&mut words).unwrap();
        discard(pid);
        words
    }

    #[test]
    fn a_process_knows_its_own_number_and_finds_its_sockets_from_three_on() {
        let (one, two) = (
            TcpListener::bind("127.0.0.1:0").unwrap(),
            TcpListener::bind("127.0.0.1:0").unwrap(),
        );
        let script = "echo $$ $LISTEN_PID $LISTEN_FDS >&3; pwd >&3; \
            readlink /proc/self/fd/4 /proc/self/fd/5 >&3; ls /proc/self/fd | wc -l >&3; ps -o pgid= -p $$ >&3";
        let argv = shell(script);
        let sockets = [two.as_fd(), one.as_fd()];
        let words = words_of(Program::Path(Path::new("/bin/sh")), &argv, &sockets);
        let lines: Vec<&str> = words.lines().map(str::trim).collect();
        let numbers: Vec<&str> = lines[0].split(' ').collect();
        assert_eq!((numbers[0], numbers[2]), (numbers[1], "3"), "{words}");
        let inode = |listener: &TcpListener| descriptors::inode(listener.as_fd()).unwrap();
        assert_eq!(lines[1], "/");
        assert_eq!(lines[2], format!("socket:[{}]", inode(&two)));
        assert_eq!(lines[3], format!("socket:[{}]", inode(&one)));
        // Three standard streams, three of ours, and the directory that is being read. Tests beside this one may hold
        // descriptors that are not close-on-exec.
        assert!(lines[4].parse::<u32>().unwrap() >= 7, "{words}");
        assert_eq!(lines[5], numbers[0], "its process group");
    }

    #[test]
    fn a_process_has_the_streams_that_it_is_given() {
        let ((mut out, stdout), (mut err, stderr)) = (io::pipe().unwrap(), io::pipe().unwrap());
        let pid = spawn_activated(&Activated {
            program: Program::Path(Path::new("/bin/sh")),
            argv: &shell("echo out; echo err >&2"),
            env: &[("PATH".into(), "/usr/bin:/bin".into())],
            cwd: None,
            sockets: &[],
            streams: Some([stdout.as_fd(), stderr.as_fd()]),
        });
        let pid = pid.unwrap();
        drop((stdout, stderr));
        let (mut words, mut errors) = (String::new(), String::new());
        out.read_to_string(&mut words).unwrap();
        err.read_to_string(&mut errors).unwrap();
        discard(pid);
        assert_eq!((words.as_str(), errors.as_str()), ("out\n", "err\n"));
    }

    #[test]
    fn a_file_that_was_replaced_is_started_by_its_descriptor_be_it_a_program_or_a_script() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("script");
        fs::write(&path, "#!/bin/sh\necho before >&3\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let held = File::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let name = [OsString::from("script")];
        let words = words_of(Program::Script(held.as_fd()), &name, &[]);
        assert_eq!(words, "before\n");
        let shell_file = File::open("/bin/sh").unwrap();
        let argv = shell("echo program >&3");
        let words = words_of(Program::File(shell_file.as_fd()), &argv, &[]);
        assert_eq!(words, "program\n");
    }

    #[test]
    fn an_exec_that_fails_is_an_error_and_leaves_no_process() {
        let start = |program: &Path, cwd: &Path| {
            spawn_activated(&Activated {
                program: Program::Path(program),
                argv: &["x".into()],
                env: &[],
                cwd: Some(cwd),
                sockets: &[],
                streams: None,
            })
        };
        let (none, root) = (Path::new("/no/such"), Path::new("/"));
        for result in [start(none, root), start(Path::new("/bin/sh"), none)] {
            let error = result.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        }
    }

    #[tokio::test]
    async fn signals_are_as_a_fresh_process_has_them_and_ours_are_as_before() {
        let name =
            "sys::activated::tests::signals_are_as_a_fresh_process_has_them_and_ours_are_as_before";
        if ran_in_its_own_process(name, &[]) {
            return;
        }
        let of = |name: &str, status: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
        };
        let own = || fs::read_to_string("/proc/thread-self/status").unwrap();
        let before = own();
        let argv = shell("cat /proc/self/status >&3");
        let theirs = words_of(Program::Path(Path::new("/bin/sh")), &argv, &[]);
        assert_eq!(of("SigBlk:", &own()), of("SigBlk:", &before));
        assert_eq!(of("SigBlk:", &theirs), 0);
        // Whoever started this process may ignore signals for all that comes after it, as nohup(1) does.
        let ignored = of("SigIgn:", &before) & !(1 << (libc::SIGPIPE - 1));
        assert_eq!(of("SigIgn:", &theirs), ignored);
    }

    #[tokio::test]
    async fn it_is_a_child_like_any_other() {
        let pid = spawn_activated(&Activated {
            program: Program::Path(Path::new("/bin/sh")),
            argv: &shell("exit 7"),
            env: &[],
            cwd: None,
            sockets: &[],
            streams: None,
        });
        let child = Pidfd::open(pid.unwrap()).unwrap();
        child.exited().await.unwrap();
        assert_eq!(
            child.reap().unwrap(),
            Reaped::Exited(std::os::unix::process::ExitStatusExt::from_raw(7 << 8))
        );
    }
}
