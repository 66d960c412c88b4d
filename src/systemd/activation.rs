//! What the service manager gave to this process at its start (sd_listen_fds(3)): sockets of units, and everything that
//! an earlier process of the service has put into the store.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::process;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, SockRef, Type};

use super::names::{self, Owner};
use crate::protocol::message::{Keeper, Slot, SlotKind};
use crate::sys::environment::Snapshot;
use crate::sys::{descriptors, memory};

/// What came, sorted, and what was wrong with the rest, in words.
#[derive(Debug, Default)]
pub(crate) struct Activation {
    /// Sockets, each of them once, with their keepers.
    pub(crate) sockets: Vec<(Slot, OwnedFd)>,
    /// Blobs of state.
    pub(crate) state: Vec<(Slot, OwnedFd)>,
    pub(crate) problems: Vec<String>,
}

/// Takes over what was passed to this process. Only the first call of a process finds anything; it must come before
/// anybody opens or closes a descriptor that he was not told of.
pub(crate) fn take(snapshot: &Snapshot) -> Activation {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Activation::default();
    }
    let passed = Passed {
        fds: snapshot.service_manager("LISTEN_FDS"),
        pid: snapshot.service_manager("LISTEN_PID"),
        names: snapshot.service_manager("LISTEN_FDNAMES"),
    };
    passed.adopt(FIRST, process::id())
}

/// The variables that say what was passed.
#[derive(Clone, Copy, Debug, Default)]
struct Passed<'a> {
    fds: Option<&'a OsStr>,
    pid: Option<&'a OsStr>,
    names: Option<&'a OsStr>,
}

impl Passed<'_> {
    fn adopt(self, first: RawFd, pid: u32) -> Activation {
        let mut activation = Activation::default();
        match self.count(pid) {
            Ok(count) => self.adopt_all(first, count, &mut activation),
            Err(problem) => activation.problems.push(problem),
        }
        activation
    }

    /// How many descriptors are ours. None of them may be touched if they were meant for somebody else.
    fn count(&self, pid: u32) -> Result<usize, String> {
        let Some(fds) = self.fds else { return Ok(0) };
        let Some(meant) = self.pid else {
            return Err("LISTEN_FDS without LISTEN_PID: what was passed is left alone".to_owned());
        };
        if number(meant) != Some(pid) {
            return Err(format!(
                "LISTEN_PID is {meant:?} and this is process {pid}: what was passed is left alone"
            ));
        }
        number(fds).ok_or_else(|| format!("LISTEN_FDS is {fds:?} and not a number"))
    }

    fn adopt_all(&self, first: RawFd, count: usize, activation: &mut Activation) {
        let names = self.names(count, &mut activation.problems);
        let mut missing = Vec::new();
        let mut inodes = Vec::new();
        let numbers = first..first.saturating_add(COUNT_MAX as RawFd);
        for (number, name) in numbers.take(count).zip(names) {
            let Ok(descriptor) = descriptors::adopt(number) else {
                missing.push(number);
                continue;
            };
            if let Err(problem) = activation.sort(&name, descriptor, &mut inodes) {
                activation.problems.push(format!(
                    "descriptor {number} from the service manager, named {name:?}: {problem}"
                ));
            }
        }
        if let Some(number) = missing.first() {
            let missing = missing.len() + count.saturating_sub(COUNT_MAX);
            activation.problems.push(format!(
                "LISTEN_FDS is {count}, and {missing} of these descriptors were not passed, the first of them {number}"
            ));
        }
    }

    /// A name for each descriptor. Those of units are plain ASCII; what is not text matches no claim and shows in logs.
    fn names(
        &self,
        count: usize,
        problems: &mut Vec<String>,
    ) -> impl Iterator<Item = String> + use<> {
        let names: Vec<String> = match self.names {
            Some(names) => names
                .to_string_lossy()
                .split(':')
                .map(str::to_owned)
                .collect(),
            None => Vec::new(),
        };
        if self.names.is_some() && names.len() != count {
            problems.push(format!(
                "LISTEN_FDNAMES has {} names for {count} descriptors",
                names.len()
            ));
        }
        let unnamed = std::iter::repeat_with(|| UNNAMED.to_owned());
        names.into_iter().chain(unnamed)
    }
}

impl Activation {
    /// Puts one descriptor where it belongs, or says why it does not belong anywhere and closes it.
    fn sort(
        &mut self,
        name: &str,
        descriptor: OwnedFd,
        inodes: &mut Vec<u64>,
    ) -> Result<(), String> {
        let owner = names::owner(name);
        let (name, keeper) = match (owner, memory::is_memory(descriptor.as_fd())) {
            (Owner::Blob(name), true) => {
                self.state
                    .push((slot(name, SlotKind::Blob, None), descriptor));
                return Ok(());
            }
            // Its other end is gone, and the manager closes its own soon.
            (Owner::Probe, _) => return Ok(()),
            (_, true) => return Err("a memory file, and not ours".to_owned()),
            (Owner::Blob(_), false) => return Err("state, and not a memory file".to_owned()),
            (Owner::Unit, false) => (name.to_owned(), Keeper::Unit),
            (Owner::Socket(name), false) => (name, Keeper::Store),
        };
        let kind = kind_of(&descriptor)?;
        let inode = descriptors::inode(descriptor.as_fd()).map_err(|error| error.to_string())?;
        // A socket of a unit that an earlier process has put into the store as well comes twice.
        if !inodes.contains(&inode) {
            inodes.push(inode);
            let slot = slot(name, kind, Some(keeper));
            self.sockets.push((slot, descriptor));
        }
        Ok(())
    }
}

/// What kind of served socket this is, or what else it is.
fn kind_of(descriptor: &OwnedFd) -> Result<SlotKind, String> {
    let socket = SockRef::from(descriptor);
    let told = |error: io::Error| match error.raw_os_error() {
        Some(libc::ENOTSOCK) => "not a socket, and nothing that is served".to_owned(),
        _ => error.to_string(),
    };
    let domain = socket.domain().map_err(told)?;
    let inet = matches!(domain, Domain::IPV4 | Domain::IPV6);
    let kind = match socket.r#type().map_err(told)? {
        Type::DGRAM if inet => return Ok(SlotKind::Udp),
        Type::STREAM if inet => SlotKind::Tcp,
        Type::STREAM if domain == Domain::UNIX => SlotKind::Unix,
        other => {
            return Err(format!(
                "a socket that is not served ({domain:?}, {other:?})"
            ));
        }
    };
    if !socket.is_listener().map_err(told)? {
        return Err("a connection and not a listener; Accept=yes is not served".to_owned());
    }
    Ok(kind)
}

fn number<N: FromStr>(value: &OsStr) -> Option<N> {
    value.to_str()?.parse().ok()
}

fn slot(name: String, kind: SlotKind, keeper: Option<Keeper>) -> Slot {
    Slot {
        name,
        kind,
        inode: None,
        keeper,
    }
}

/// Where passed descriptors begin (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
/// More are not looked for, whatever the variable says.
const COUNT_MAX: usize = 65_536;
/// What sd_listen_fds_with_names(3) calls what has no name.
const UNNAMED: &str = "unknown";

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs::File;
    use std::io::{BufRead, BufReader};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixListener};
    use std::process::{Command, Stdio};

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use tempfile::TempDir;

    use super::*;

    /// Puts descriptors where a manager would have put them, from `first` on; every test has a range of its own.
    fn passed(first: RawFd, descriptors: &[&dyn AsFd]) {
        for (number, descriptor) in (first..).zip(descriptors) {
            // Not close-on-exec, as they come through an exec.
            let copy = fcntl(descriptor.as_fd(), FcntlArg::F_DUPFD(number)).unwrap();
            assert_eq!(copy, number, "somebody else uses the test's range");
        }
    }

    fn adopted(first: RawFd, fds: &str, names: Option<&str>) -> Activation {
        let passed = Passed {
            fds: Some(OsStr::new(fds)),
            pid: Some(OsStr::new("77")),
            names: names.map(OsStr::new),
        };
        passed.adopt(first, 77)
    }

    fn found(activation: &Activation) -> Vec<(&str, SlotKind, Option<Keeper>)> {
        let slots = activation.sockets.iter().chain(&activation.state);
        slots
            .map(|(slot, _)| (slot.name.as_str(), slot.kind, slot.keeper))
            .collect()
    }

    fn is_open(number: RawFd) -> bool {
        std::fs::read_link(format!("/proc/self/fd/{number}")).is_ok()
    }

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    #[test]
    fn sockets_of_units_and_of_the_store_and_state_are_told_apart() {
        let room = TempDir::new().unwrap();
        let (tcp, stored) = (listener(), listener());
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let unix = UnixListener::bind(room.path().join("s")).unwrap();
        let keys = memory::sealed(c"keys", b"secret").unwrap();
        passed(700, &[&tcp, &keys, &stored, &udp, &unix]);
        let names = "pub:handover.state.keys:handover.socket.a%3Ab:dns:pub";
        let activation = adopted(700, "5", Some(names));
        assert_eq!(activation.problems, [""; 0]);
        assert_eq!(
            found(&activation),
            [
                ("pub", SlotKind::Tcp, Some(Keeper::Unit)),
                ("a:b", SlotKind::Tcp, Some(Keeper::Store)),
                ("dns", SlotKind::Udp, Some(Keeper::Unit)),
                ("pub", SlotKind::Unix, Some(Keeper::Unit)),
                ("keys", SlotKind::Blob, None),
            ]
        );
        for (_, descriptor) in &activation.sockets {
            let flags = fcntl(descriptor, FcntlArg::F_GETFD).unwrap();
            assert_eq!(flags, FdFlag::FD_CLOEXEC.bits());
        }
        let state = activation.state[0].1.as_fd();
        assert_eq!(memory::read(state).unwrap(), b"secret");
    }

    #[test]
    fn a_socket_that_comes_twice_is_kept_once_and_nothing_else_stays_open() {
        let tcp = listener();
        passed(720, &[&tcp, &tcp]);
        let activation = adopted(720, "2", Some("web:handover.socket.web"));
        assert_eq!(activation.problems, [""; 0]);
        assert_eq!(
            found(&activation),
            [("web", SlotKind::Tcp, Some(Keeper::Unit))]
        );
        assert!(is_open(720) && !is_open(721));
    }

    #[test]
    fn what_was_meant_for_somebody_else_or_nobody_is_left_alone() {
        let tcp = listener();
        passed(740, &[&tcp]);
        for pid in [
            None,
            Some("78"),
            Some(""),
            Some("seventy-seven"),
            Some("-77"),
        ] {
            let passed = Passed {
                fds: Some(OsStr::new("1")),
                pid: pid.map(OsStr::new),
                names: Some(OsStr::new("web")),
            };
            let activation = passed.adopt(740, 77);
            assert!(activation.sockets.is_empty());
            let [problem] = activation.problems.as_slice() else {
                panic!("{:?}", activation.problems);
            };
            assert!(problem.contains("LISTEN_PID") && problem.contains("left alone"));
            assert!(is_open(740));
        }
        assert!(Passed::default().adopt(740, 77).problems.is_empty());
        adopted(740, "1", None);
    }

    #[test]
    fn a_count_that_is_no_number_touches_nothing() {
        let tcp = listener();
        passed(760, &[&tcp]);
        for fds in ["", "-1", "one", "1 ", "99999999999999999999999"] {
            let activation = adopted(760, fds, None);
            assert!(activation.problems[0].contains("not a number"), "{fds}");
            assert!(is_open(760));
        }
        adopted(760, "1", None);
    }

    #[test]
    fn closed_descriptors_are_counted_and_the_others_are_served() {
        // Above every other test's range, for whatever is open in the range that is named is taken.
        let tcp = listener();
        for (fds, missing) in [("3", "2 of"), ("4294967295", "4294967294 of")] {
            passed(961, &[&tcp]);
            let activation = adopted(960, fds, Some("gone:web:gone"));
            assert_eq!(found(&activation)[0].0, "web");
            let problem = activation.problems.last().unwrap();
            assert!(problem.contains(missing), "{problem}");
            assert!(problem.contains("the first of them 960"), "{problem}");
        }
    }

    #[test]
    fn what_this_process_has_opened_itself_was_not_passed() {
        let (tcp, own) = (listener(), listener());
        passed(860, &[&tcp]);
        // As everything that std and tokio open.
        let own = fcntl(&own, FcntlArg::F_DUPFD_CLOEXEC(861)).unwrap();
        assert_eq!(own, 861, "somebody else uses the test's range");
        let activation = adopted(860, "2", Some("web:api"));
        assert_eq!(found(&activation).len(), 1);
        let problem = activation.problems.last().unwrap();
        assert!(problem.contains("1 of"), "{problem}");
        drop(activation);
        assert!(is_open(own));
    }

    #[test]
    fn missing_and_surplus_names_are_a_problem_and_no_names_are_none() {
        let tcp = listener();
        for (names, problems) in [("a", 1), ("a:b:c", 1), ("a:b", 0), (":", 0)] {
            let other = listener();
            passed(800, &[&tcp, &other]);
            let activation = adopted(800, "2", Some(names));
            assert_eq!(activation.problems.len(), problems, "{names}");
            assert_eq!(activation.sockets.len(), 2);
        }
        passed(800, &[&tcp]);
        let activation = adopted(800, "1", None);
        assert!(activation.problems.is_empty());
        assert_eq!(found(&activation)[0].0, "unknown");
    }

    #[test]
    fn what_is_not_served_is_named_and_closed() {
        let (tcp, (pipe, _writer)) = (listener(), io::pipe().unwrap());
        let connection = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let datagram = UnixDatagram::unbound().unwrap();
        let netlink =
            socket2::Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, None).unwrap();
        let null = File::open("/dev/null").unwrap();
        let foreign = memory::sealed(c"foreign", b"").unwrap();
        let unfit: [(&dyn AsFd, &str); 6] = [
            (&pipe, "fifo"),
            (&connection, "connection"),
            (&datagram, "datagram"),
            (&netlink, "netlink"),
            (&null, "handover.state.null"),
            (&foreign, "foreign"),
        ];
        passed(820, &unfit.map(|(descriptor, _)| descriptor));
        let names = unfit.map(|(_, name)| name).join(":");
        let activation = adopted(820, "6", Some(&names));
        assert!(found(&activation).is_empty());
        for ((number, (_, name)), problem) in (820..).zip(unfit).zip(&activation.problems) {
            let described =
                format!("descriptor {number} from the service manager, named {name:?}: ");
            assert!(problem.starts_with(&described), "{problem}");
            assert!(!is_open(number));
        }
        assert_eq!(activation.problems.len(), unfit.len());
    }

    #[test]
    fn a_probe_that_was_left_over_is_closed_without_a_word() {
        let (_reader, writer) = io::pipe().unwrap();
        passed(840, &[&writer]);
        let activation = adopted(840, "1", Some(names::PROBE));
        assert!(activation.problems.is_empty() && found(&activation).is_empty());
        assert!(!is_open(840));
    }

    /// In a process of its own, which a shell starts as a manager does: with the socket as 3 and its own number.
    #[test]
    fn a_process_takes_what_it_was_started_with_once() {
        let name = "systemd::activation::tests::a_process_takes_what_it_was_started_with_once";
        if std::env::var_os("LISTEN_FDS").is_some() {
            let snapshot = Snapshot::take();
            let activation = take(snapshot);
            let [(slot, socket)] = activation.sockets.as_slice() else {
                panic!("{activation:?}");
            };
            let address = SockRef::from(socket).local_addr().unwrap().as_socket();
            println!("got {} {}", slot.name, address.unwrap());
            let again = take(snapshot);
            assert!(again.sockets.is_empty() && again.problems.is_empty());
            return;
        }
        let listener = listener();
        let expected = format!("got web {}", listener.local_addr().unwrap());
        let script = r#"exec 3<&0 </dev/null; LISTEN_PID=$$ exec "$@""#;
        let test = std::env::current_exe().unwrap();
        let arguments: [OsString; 5] = [
            "sh".into(),
            test.into(),
            "--exact".into(),
            name.into(),
            "--nocapture".into(),
        ];
        let mut child = Command::new("sh")
            .args(["-c", script])
            .args(arguments)
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", "web")
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let lines: Vec<String> = output.lines().map(Result::unwrap).collect();
        assert!(child.wait().unwrap().success(), "{lines:#?}");
        assert!(
            lines.iter().any(|line| line.contains(&expected)),
            "{lines:#?}"
        );
    }
}
