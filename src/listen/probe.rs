//! Connections that ask who accepts: answered where they are accepted, so that the application never sees them.
//!
//! Whoever asks binds its socket before it connects, and everybody who may accept is told the address. No other client
//! can come from an address that is taken, so nobody else gets this answer.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::config::{PROBE_PATIENCE_MAX, PROBES_MAX};

/// The connections that will come to ask. One for each table.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// Whether there are any. Whoever asks connects after it was set, and the kernel orders that connection before its
    /// accept, so that looking costs a relaxed load.
    any: AtomicBool,
    probes: Mutex<Vec<Probe>>,
}

#[derive(Debug)]
struct Probe {
    caller: Caller,
    answer: Arc<str>,
    until: Instant,
}

/// The address that a connection comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// An IPv4 address is one, also where it comes in by an IPv6 socket.
    Inet(SocketAddr),
    /// A Unix socket's abstract name (unix(7)).
    Abstract(Vec<u8>),
}

/// What whoever accepts a connection that asks writes to it before it closes it.
pub(crate) fn answer(generation: u64, nonce: &str) -> String {
    format!("handover {generation} {nonce}\n")
}

impl Expected {
    /// Connections from `callers` are answered so until `patience` is over. The oldest are forgotten beyond
    /// [`PROBES_MAX`].
    pub(crate) fn expect(&self, callers: Vec<Caller>, answer: &str, patience: Duration) {
        let (now, answer) = (Instant::now(), Arc::<str>::from(answer));
        let mut probes = self.lock();
        probes.retain(|probe| now < probe.until);
        probes.extend(callers.into_iter().map(|caller| Probe {
            caller,
            answer: Arc::clone(&answer),
            until: now + patience.min(PROBE_PATIENCE_MAX),
        }));
        let too_many = probes.len().saturating_sub(PROBES_MAX);
        probes.drain(..too_many);
        self.any.store(!probes.is_empty(), Ordering::Relaxed);
    }

    /// Nobody comes from these any more: whoever gets such an address from now on is somebody else.
    pub(crate) fn forget(&self, callers: &[Caller]) {
        let mut probes = self.lock();
        probes.retain(|probe| !callers.contains(&probe.caller));
        self.any.store(!probes.is_empty(), Ordering::Relaxed);
    }

    /// Answers a connection that asks. `false` if it is somebody else's, who must not wait for this.
    pub(super) fn answers(&self, stream: &impl AsFd, caller: impl FnOnce() -> Caller) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let Some(answer) = self.take(&caller()) else {
            return false;
        };
        // A fresh connection has room for a line. One that is gone by now needs no answer.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        let _ = SockRef::from(stream).send_with_flags(answer.as_bytes(), flags);
        true
    }

    fn take(&self, caller: &Caller) -> Option<Arc<str>> {
        let now = Instant::now();
        let mut probes = self.lock();
        probes.retain(|probe| now < probe.until);
        let found = probes.iter().position(|probe| probe.caller == *caller);
        let answer = found.map(|index| probes.swap_remove(index).answer);
        self.any.store(!probes.is_empty(), Ordering::Relaxed);
        answer
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Probe>> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Caller {
    pub(crate) fn inet(address: SocketAddr) -> Self {
        Self::Inet(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// One without a name has an empty one, which is expected of nobody.
    pub(crate) fn unix(address: &unix::net::SocketAddr) -> Self {
        Self::Abstract(address.as_abstract_name().unwrap_or_default().to_vec())
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Abstract(name) => {
                f.write_str("@")?;
                name.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

impl FromStr for Caller {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let Some(name) = text.strip_prefix('@') else {
            return text.parse().map(Self::inet).map_err(|_| ());
        };
        if name.is_empty()
            || name.len() % 2 != 0
            || !name.bytes().all(|byte| byte.is_ascii_hexdigit())
        {
            return Err(());
        }
        let bytes = (0..name.len()).step_by(2).map(|at| {
            let digits = name.get(at..at + 2).unwrap_or_default();
            u8::from_str_radix(digits, 16).map_err(|_| ())
        });
        bytes.collect::<Result<_, _>>().map(Self::Abstract)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn caller(port: u16) -> Caller {
        Caller::inet(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    #[test]
    fn an_expected_caller_is_answered_once_and_nobody_else_is() {
        let expected = Expected::default();
        let (mut prober, accepted) = UnixStream::pair().unwrap();
        assert!(!expected.answers(&accepted, || unreachable!("nobody is expected")));
        expected.expect(vec![caller(1)], &answer(7, "n"), PATIENCE);
        assert!(!expected.answers(&accepted, || caller(2)));
        assert!(expected.answers(&accepted, || caller(1)));
        assert!(!expected.answers(&accepted, || unreachable!("nobody is left")));
        drop(accepted);
        let mut said = String::new();
        prober.read_to_string(&mut said).unwrap();
        assert_eq!(said, "handover 7 n\n");
    }

    #[test]
    fn who_comes_too_late_is_the_applications() {
        let expected = Expected::default();
        let (_prober, accepted) = UnixStream::pair().unwrap();
        expected.expect(vec![caller(1)], "late\n", Duration::ZERO);
        assert!(!expected.answers(&accepted, || caller(1)));
        assert!(!expected.answers(&accepted, || unreachable!("it is forgotten")));
    }

    #[test]
    fn who_gets_the_address_of_one_that_was_forgotten_is_the_applications() {
        let expected = Expected::default();
        let (_client, accepted) = UnixStream::pair().unwrap();
        expected.expect(vec![caller(1), caller(2)], &answer(7, "n"), PATIENCE);
        expected.forget(&[caller(1)]);
        assert!(!expected.answers(&accepted, || caller(1)));
        assert!(expected.answers(&accepted, || caller(2)));
    }

    #[test]
    fn what_is_expected_is_bounded_and_the_oldest_go_first() {
        let expected = Expected::default();
        for port in 0..=u16::try_from(PROBES_MAX).unwrap() {
            expected.expect(vec![caller(port)], "x\n", PATIENCE);
        }
        assert_eq!(expected.lock().len(), PROBES_MAX);
        assert_eq!(expected.take(&caller(0)), None);
        assert!(expected.take(&caller(1)).is_some());
    }

    #[test]
    fn an_ipv4_client_of_an_ipv6_socket_is_the_same_caller() {
        let mapped: SocketAddr = "[::ffff:127.0.0.1]:9".parse().unwrap();
        assert_eq!(Caller::inet(mapped), caller(9));
    }

    #[test]
    fn a_caller_survives_the_wire_and_anything_else_is_refused() {
        let named = Caller::Abstract(b"\x0000\xff".to_vec());
        let v6 = Caller::inet("[2001:db8::1]:443".parse().unwrap());
        for caller in [caller(65_535), v6, named] {
            assert_eq!(caller.to_string().parse(), Ok(caller));
        }
        for wrong in ["", "@", "@0", "@0g", "@+1", "@ü0", "127.0.0.1", "[::1]"] {
            assert_eq!(wrong.parse::<Caller>(), Err(()), "{wrong}");
        }
    }
}
