//! Fresh connections to each public address, and whether the right generation answers them.
//!
//! What asks is an ordinary client, and what answers is the accept path of the listeners, so that an application which
//! does not accept makes no answer, whatever its health says. It works below TLS, and for every protocol.

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix;
use std::time::{Duration, Instant};

use nix::sys::socket::UnixAddr;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpSocket, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout_at};

use crate::config::{
    VERIFY_ANSWER, VERIFY_PASSES, VERIFY_RETRY, VERIFY_TOGETHER_MAX, VERIFY_WRONG_MAX,
};
use crate::listen::{Address, Caller, Public, answer, sockaddr};

/// What every generation that may accept has to know before the connections of one round come.
#[derive(Clone, Debug)]
pub(crate) struct Announcement {
    /// What proves that an answer is to this round.
    pub(crate) nonce: String,
    /// Where the connections come from.
    pub(crate) callers: Vec<Caller>,
}

/// What a verification that passed has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) passed: Vec<Asked>,
    pub(crate) skipped: Vec<Skipped>,
}

/// One that did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unverified {
    /// In words.
    pub(crate) reason: String,
    /// The addresses that did not pass, and why.
    pub(crate) failed: Vec<(Asked, String)>,
    /// The other ones.
    pub(crate) verified: Verified,
}

/// An address at which somebody was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) connections: u32,
    /// Those of them that the right generation did not answer.
    pub(crate) missed: u32,
    pub(crate) took: Duration,
}

/// An address at which nobody was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Skipped {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) why: String,
}

/// Asks at every address until `generation` has answered [`VERIFY_PASSES`] fresh connections in a row at each, or says
/// after `limit` where it did not. [`VERIFY_WRONG_MAX`] answers in a row from another generation end it at once.
///
/// `announce` tells both sides whom to expect, and returns the names of the sockets at which the expected side cannot
/// answer.
///
/// # Cancel safety
///
/// Its connections are closed when the future is dropped, and nothing else is left.
pub(crate) async fn verify<F>(
    addresses: Vec<Public>,
    generation: u64,
    limit: Duration,
    announce: impl Fn(Announcement) -> F,
) -> Result<Verified, Unverified>
where
    F: Future<Output = Result<Vec<String>, String>>,
{
    let started = Instant::now();
    let until = started + limit;
    let mut verified = Verified::default();
    let mut targets = Vec::new();
    for public in addresses {
        match public.unanswered {
            Some(why) => verified.skip(public.name, &public.address, why),
            None => targets.push(Target::of(public)),
        }
    }
    while !targets.is_empty() {
        // Those that have not passed go to the end, so that each has its turn.
        let rest = targets.split_off(targets.len().min(VERIFY_TOGETHER_MAX));
        let (asked, announced) = round(targets, generation, until, &announce).await;
        let failed = verified.sort(asked, started);
        let is_hopeless = |target: &Target| target.wrong_in_a_row >= VERIFY_WRONG_MAX;
        if failed.iter().any(is_hopeless) || Instant::now() + VERIFY_RETRY >= until {
            let left: Vec<Target> = failed.into_iter().chain(rest).collect();
            match left.is_empty() {
                true => break,
                false => {
                    let reason = explain(&left, generation, announced);
                    return Err(verified.without(left, reason, started));
                }
            }
        }
        if !failed.is_empty() {
            sleep(VERIFY_RETRY).await;
        }
        targets = rest;
        targets.extend(failed);
    }
    Ok(verified)
}

/// One announcement, and then the connections to all addresses, those to different ones at the same time.
async fn round<F>(
    mut targets: Vec<Target>,
    generation: u64,
    until: Instant,
    announce: &impl Fn(Announcement) -> F,
) -> (Vec<Target>, Result<(), String>)
where
    F: Future<Output = Result<Vec<String>, String>>,
{
    let nonce = format!("{:016x}", RandomState::new().hash_one(0));
    targets.iter_mut().for_each(Target::prepare);
    let callers = targets.iter().flat_map(Target::callers).cloned().collect();
    let announcement = Announcement {
        nonce: nonce.clone(),
        callers,
    };
    let announced = timeout_at(until.into(), announce(announcement)).await;
    match announced.unwrap_or_else(|_| Err("it did not say that it does".to_owned())) {
        Ok(silent) => targets
            .iter_mut()
            .filter(|target| silent.contains(&target.name))
            .for_each(|target| target.skipped = Some(BY_ITSELF.to_owned())),
        Err(reason) => return (targets, Err(reason)),
    }
    let mut asking = JoinSet::new();
    for target in targets {
        asking.spawn(target.ask(generation, answer(generation, &nonce), until));
    }
    (asking.join_all().await, Ok(()))
}

/// One address, and what became of the connections to it.
#[derive(Debug)]
struct Target {
    name: String,
    address: Address,
    prober: Vec<Prober>,
    passes_in_a_row: u32,
    wrong_in_a_row: u32,
    connections: u32,
    missed: u32,
    problem: Option<String>,
    skipped: Option<String>,
}

impl Target {
    fn of(public: Public) -> Self {
        Self {
            name: public.name,
            address: public.address,
            prober: Vec::new(),
            passes_in_a_row: 0,
            wrong_in_a_row: 0,
            connections: 0,
            missed: 0,
            problem: None,
            skipped: None,
        }
    }

    /// As many sockets as it lacks passes.
    fn prepare(&mut self) {
        self.prober.clear();
        for _ in self.passes_in_a_row..VERIFY_PASSES {
            match Prober::to(&self.address) {
                Ok(prober) => self.prober.push(prober),
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                    self.skipped = Some("its address is not this machine's".to_owned());
                }
                Err(error) => self.problem = Some(format!("no socket to ask with: {error}")),
            }
        }
    }

    fn callers(&self) -> impl Iterator<Item = &Caller> {
        self.prober.iter().map(|prober| &prober.caller)
    }

    /// Until one connection does not pass; it begins to count anew then.
    async fn ask(mut self, generation: u64, expected: String, until: Instant) -> Self {
        for prober in std::mem::take(&mut self.prober) {
            if self.skipped.is_some() {
                break;
            }
            self.connections += 1;
            let patience = until.min(Instant::now() + VERIFY_ANSWER);
            let answered = timeout_at(patience.into(), prober.ask()).await;
            let problem = match answered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(line) if line == expected.as_bytes() => {
                    (self.passes_in_a_row, self.wrong_in_a_row) = (self.passes_in_a_row + 1, 0);
                    continue;
                }
                Ok(line) => match other_generation(&line, generation) {
                    Some(other) => {
                        self.wrong_in_a_row += 1;
                        format!("generation {other} answered")
                    }
                    None => "somebody answered who did not expect to be asked".to_owned(),
                },
                Err(error) => match error.kind() {
                    io::ErrorKind::TimedOut => "nobody accepted a connection in time".to_owned(),
                    io::ErrorKind::WouldBlock => "its queue is full".to_owned(),
                    io::ErrorKind::PermissionDenied => {
                        self.skipped = Some("this process may not connect to it".to_owned());
                        break;
                    }
                    _ => error.to_string(),
                },
            };
            self.problem = Some(problem);
            self.missed += 1;
            self.passes_in_a_row = 0;
            break;
        }
        self
    }

    fn asked(self, started: Instant) -> Asked {
        Asked {
            name: self.name,
            address: self.address.to_string(),
            connections: self.connections,
            missed: self.missed,
            took: started.elapsed(),
        }
    }
}

/// Who says in an answer that it is not the generation that was expected.
fn other_generation(line: &[u8], generation: u64) -> Option<u64> {
    let line = str::from_utf8(line).ok()?;
    let mut words = line.strip_prefix("handover ")?.split(' ');
    let other = words.next()?.parse().ok()?;
    (other != generation).then_some(other)
}

/// A socket that is bound, so that it is known where it will come from.
#[derive(Debug)]
struct Prober {
    caller: Caller,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Inet(TcpSocket, SocketAddr),
    Unix(unix::net::UnixStream, unix::net::SocketAddr),
}

impl Prober {
    fn to(address: &Address) -> io::Result<Self> {
        match address {
            Address::Inet(address) => Self::inet(*address),
            Address::Unix(address) => Self::unix(address),
        }
    }

    fn inet(address: SocketAddr) -> io::Result<Self> {
        match reachable(address) {
            // A machine may have IPv6 sockets and no IPv6 loopback; such a socket has IPv4 clients then.
            to if to.ip() == Ipv6Addr::LOCALHOST => Self::inet_to(to).or_else(|_| {
                Self::inet_to(SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())))
            }),
            to => Self::inet_to(to),
        }
    }

    fn inet_to(to: SocketAddr) -> io::Result<Self> {
        let socket = match to {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        let mut from = to;
        from.set_port(0);
        socket.bind(from)?;
        Ok(Self {
            caller: Caller::inet(socket.local_addr()?),
            way: Way::Inet(socket, to),
        })
    }

    /// The kernel chooses an abstract name for a socket that is bound to none (unix(7), "Autobind feature").
    fn unix(address: &unix::net::SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new_unnamed())?;
        let socket = unix::net::UnixStream::from(OwnedFd::from(socket));
        Ok(Self {
            caller: Caller::unix(&socket.local_addr()?),
            way: Way::Unix(socket, address.clone()),
        })
    }

    async fn ask(self) -> io::Result<Vec<u8>> {
        match self.way {
            Way::Inet(socket, to) => read_line(socket.connect(to).await?).await,
            Way::Unix(socket, to) => {
                SockRef::from(&socket).connect(&sockaddr(&to)?)?;
                read_line(UnixStream::from_std(socket)?).await
            }
        }
    }
}

/// Where clients of this machine reach a socket that is bound there.
fn reachable(bound: SocketAddr) -> SocketAddr {
    match bound {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, v6.port()).into(),
        specific => specific,
    }
}

/// Whatever is said until the end, within reason.
async fn read_line(stream: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut line).await?;
    Ok(line)
}

impl Verified {
    fn skip(&mut self, name: String, address: &Address, why: impl Into<String>) {
        self.skipped.push(Skipped {
            name,
            address: address.to_string(),
            why: why.into(),
        });
    }

    /// Takes those that need no further round, and returns the others.
    fn sort(&mut self, targets: Vec<Target>, started: Instant) -> Vec<Target> {
        let mut rest = Vec::new();
        for mut target in targets {
            match target.skipped.take() {
                Some(why) => self.skip(target.name, &target.address, why),
                None if target.passes_in_a_row >= VERIFY_PASSES => {
                    self.passed.push(target.asked(started));
                }
                None => rest.push(target),
            }
        }
        rest
    }

    fn without(self, left: Vec<Target>, reason: String, started: Instant) -> Unverified {
        let failed = left.into_iter().map(|mut target| {
            let problem = target.problem.take();
            (
                target.asked(started),
                problem.unwrap_or_else(|| NOT_ASKED.to_owned()),
            )
        });
        Unverified {
            failed: failed.collect(),
            verified: self,
            reason,
        }
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        for passed in &self.passed {
            write!(
                f,
                "{between}{:?} on {} passed after {} connections in {:.1} ms",
                passed.name,
                passed.address,
                passed.connections,
                passed.took.as_secs_f64() * 1e3,
            )?;
            between = "; ";
        }
        for Skipped { name, why, .. } in &self.skipped {
            write!(f, "{between}{name:?} was not verified: {why}")?;
            between = "; ";
        }
        Ok(())
    }
}

fn explain(targets: &[Target], generation: u64, announced: Result<(), String>) -> String {
    if let Err(reason) = announced {
        return format!("generation {generation} could not be told whom to expect: {reason}");
    }
    let failed = targets
        .iter()
        .filter_map(|target| Some((target, target.problem.as_ref()?)));
    let mut told: Vec<String> = failed
        .take(TOLD_MAX)
        .map(|(target, problem)| {
            format!(
                "generation {generation} did not answer {VERIFY_PASSES} connections in a row to {:?} on {}, of {} in \
                 all: at last {problem}",
                target.name, target.address, target.connections
            )
        })
        .collect();
    if targets.len() > told.len() {
        told.push(format!("{} more did not pass", targets.len() - told.len()));
    }
    told.join("; ")
}

/// Addresses that failed and are told of one by one.
const TOLD_MAX: usize = 3;
/// More bytes than any answer has.
const ANSWER_MAX: u64 = 256;
const NOT_ASKED: &str = "nobody could be asked";
const BY_ITSELF: &str = "its application accepts by itself in that generation";

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use tempfile::TempDir;
    use tokio::net::TcpStream;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::listen::{ListenOptions, Table, TcpListener};

    /// Nothing a test waits for takes longer than this.
    const DEADLINE: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(300);

    fn options() -> ListenOptions {
        ListenOptions::new()
    }

    fn at(address: &str) -> Vec<SocketAddr> {
        vec![address.parse().unwrap()]
    }

    /// Every connection that reaches the application.
    fn accepting(listener: TcpListener) -> JoinHandle<TcpStream> {
        tokio::spawn(async move { listener.accept().await.unwrap().0 })
    }

    async fn run(
        table: &Arc<Table>,
        generation: u64,
        limit: Duration,
    ) -> Result<Verified, Unverified> {
        let asked = table.public(&[]);
        run_as(table, asked, generation, generation, limit).await
    }

    /// `table` answers as generation `says`.
    async fn run_as(
        table: &Arc<Table>,
        asked: Vec<Public>,
        says: u64,
        generation: u64,
        limit: Duration,
    ) -> Result<Verified, Unverified> {
        verify(asked, generation, limit, |announcement| {
            let answer = answer(says, &announcement.nonce);
            table.expect(announcement.callers, &answer, DEADLINE);
            std::future::ready(Ok(table.ungated()))
        })
        .await
    }

    #[tokio::test]
    async fn an_open_gate_in_front_of_an_application_that_accepts_passes_unseen_by_it() {
        let directory = TempDir::new().unwrap();
        let table = Arc::new(Table::default());
        let any = table.tcp("any", &at("0.0.0.0:0"), &options()).unwrap();
        let any_address = any.local_addr();
        let own = table.tcp("own", &at("127.0.0.2:0"), &options()).unwrap();
        let v6 = table.tcp("v6", &at("[::]:0"), &options()).unwrap();
        let path = directory.path().join("path");
        let path = table.unix("path", &path, &options()).await.unwrap();
        let name = format!("@handover-verify-{}", std::process::id());
        let name = table
            .unix("name", Path::new(&name), &options())
            .await
            .unwrap();
        table.udp("dns", &at("127.0.0.1:0"), &options()).unwrap();
        table
            .std_tcp("std", &at("127.0.0.1:0"), &options())
            .unwrap();
        table.open_all().unwrap();
        let mut seen = vec![accepting(any), accepting(own), accepting(v6)];
        let unix =
            [path, name].map(|unix| tokio::spawn(async move { unix.accept().await.map(|_| ()) }));
        let verified = run(&table, 5, DEADLINE).await.unwrap();
        let passed = verified.passed.iter();
        let passed: Vec<_> = passed
            .map(|passed| (&*passed.name, passed.connections))
            .collect();
        let mut names: Vec<&str> = passed.iter().map(|passed| passed.0).collect();
        names.sort_unstable();
        assert_eq!(names, ["any", "name", "own", "path", "v6"]);
        assert!(
            passed.iter().all(|passed| passed.1 == VERIFY_PASSES),
            "{passed:?}"
        );
        let skipped: Vec<_> = verified
            .skipped
            .iter()
            .map(|skipped| &*skipped.name)
            .collect();
        assert_eq!(skipped, ["dns", "std"]);
        assert!(!seen.iter().any(JoinHandle::is_finished));
        assert!(!unix.iter().any(JoinHandle::is_finished));
        // Whoever comes next is a client like any other.
        let port = any_address.port();
        let client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let accepted = seen.swap_remove(0).await.unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
    }

    #[tokio::test]
    async fn an_application_that_does_not_accept_is_found_however_open_its_gate_is() {
        let table = Arc::new(Table::default());
        let _web = table.tcp("web", &at("127.0.0.1:0"), &options()).unwrap();
        table.open_all().unwrap();
        let reason = run(&table, 2, SHORT).await.unwrap_err().reason;
        assert!(reason.contains("generation 2 did not answer"), "{reason}");
        assert!(reason.contains("nobody accepted"), "{reason}");
    }

    #[tokio::test]
    async fn the_wrong_generation_three_times_in_a_row_is_told_at_once() {
        let table = Arc::new(Table::default());
        let web = table.tcp("web", &at("127.0.0.1:0"), &options()).unwrap();
        table.open_all().unwrap();
        let _accepting = accepting(web);
        let asked = table.public(&[]);
        let reason = run_as(&table, asked, 1, 2, DEADLINE)
            .await
            .unwrap_err()
            .reason;
        assert!(
            reason.contains("of 3 in all: at last generation 1 answered"),
            "{reason}"
        );
    }

    #[tokio::test]
    async fn who_begins_to_accept_within_the_deadline_passes() {
        let table = Arc::new(Table::default());
        let web = table.tcp("web", &at("127.0.0.1:0"), &options()).unwrap();
        let verifying = tokio::spawn({
            let table = Arc::clone(&table);
            async move { run(&table, 2, DEADLINE).await }
        });
        let began = accepting(web);
        table.open_all().unwrap();
        verifying.await.unwrap().unwrap();
        assert!(!began.is_finished());
    }

    #[tokio::test]
    async fn one_bad_address_among_good_ones_fails_and_is_named() {
        let table = Arc::new(Table::default());
        let good = table.tcp("good", &at("127.0.0.1:0"), &options()).unwrap();
        let _bad = table.tcp("bad", &at("127.0.0.1:0"), &options()).unwrap();
        table.open_all().unwrap();
        let _accepting = accepting(good);
        let reason = run(&table, 2, SHORT).await.unwrap_err().reason;
        assert!(
            reason.contains("\"bad\"") && !reason.contains("\"good\""),
            "{reason}"
        );
    }

    #[tokio::test]
    async fn what_the_other_side_serves_without_a_gate_is_not_asked_for() {
        let table = Arc::new(Table::default());
        let _web = table.tcp("web", &at("127.0.0.1:0"), &options()).unwrap();
        let announced = |_| std::future::ready(Ok(vec!["web".to_owned()]));
        let verified = verify(table.public(&[]), 2, DEADLINE, announced).await;
        assert_eq!(verified.unwrap().skipped[0].name, "web");
    }

    #[tokio::test]
    async fn nobody_is_asked_whom_the_other_side_does_not_expect() {
        let table = Arc::new(Table::default());
        let _web = table.tcp("web", &at("127.0.0.1:0"), &options()).unwrap();
        let announced = |_| std::future::pending();
        let reason = verify(table.public(&[]), 2, SHORT, announced)
            .await
            .unwrap_err()
            .reason;
        assert!(reason.contains("could not be told"), "{reason}");
    }

    #[tokio::test]
    async fn a_path_that_leads_to_somebody_else_is_found() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("path");
        let table = Arc::new(Table::default());
        let _own = table.unix("own", &path, &options()).await.unwrap();
        table.open_all().unwrap();
        std::fs::remove_file(&path).unwrap();
        let other = tokio::net::UnixListener::bind(&path).unwrap();
        let _other = tokio::spawn(async move {
            loop {
                drop(other.accept().await);
            }
        });
        let reason = run(&table, 2, SHORT).await.unwrap_err().reason;
        assert!(reason.contains("did not expect to be asked"), "{reason}");
    }
}
