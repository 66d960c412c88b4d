//! Both ends in one process, over real connections.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream as Client};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::adopter::Adopter;
use super::word::Word;
use super::*;
use crate::listen::{ListenOptions, Table, TcpListener};
use crate::rollout::pick::Pick;
use crate::rollout::{By, Rollout, Share};
use crate::sys::descriptors;

/// Nothing a test waits for takes longer than this.
const PATIENCE: Duration = Duration::from_secs(60);
/// So long that no test sees it pass.
const NEVER: Duration = Duration::from_secs(3_600);

/// A stable generation and a candidate that has claimed its listener.
struct Pair {
    stable: Table,
    ours: TcpListener,
    candidate: Table,
    theirs: TcpListener,
    director: Director,
    /// The candidate's end, until it begins.
    end: Option<OwnedFd>,
}

/// Two generations that accept all the time, and answer each connection with `s` or `c`.
struct Served {
    stable: Table,
    candidate: Table,
    director: Director,
}

fn plan() -> Rollout {
    Rollout::canary([1]).by(By::Connection)
}

fn options() -> ListenOptions {
    ListenOptions::new()
}

fn pair(deadline: Duration, plan: &Rollout) -> Pair {
    let stable = Table::default();
    let any = "127.0.0.1:0".parse().unwrap();
    let ours = stable.tcp("web", &[any], &options()).unwrap();
    let candidate = Table::default();
    let offer = stable.offer().into_iter();
    let offer = offer.map(|(slot, socket)| (slot, socket.try_clone().unwrap()));
    candidate.adopt(offer.collect()).unwrap();
    let theirs = candidate
        .tcp("web", &[ours.local_addr()], &options())
        .unwrap();
    stable.open_all().unwrap();
    let (director, end) =
        Director::new(&stable, &Splitter::default(), Pick::new(1, plan), deadline).unwrap();
    Pair {
        stable,
        ours,
        candidate,
        theirs,
        director,
        end: Some(end),
    }
}

impl Pair {
    fn serve_both(self) -> Served {
        serve(self.ours, b"s");
        serve(self.theirs, b"c");
        Served {
            stable: self.stable,
            candidate: self.candidate,
            director: self.director,
        }
    }

    fn adopter(&mut self) -> Adopter {
        Adopter::begin(self.end.take().unwrap(), &self.candidate).unwrap()
    }

    fn address(&self) -> SocketAddr {
        self.ours.local_addr()
    }

    /// Has stable accept until so many connections were passed on.
    async fn pass_on(&self, count: usize) -> Vec<Client> {
        let before = self.director.standing().total.forwarded;
        let clients = (0..count).map(|_| connect(self.address())).collect();
        let all = before + count as u64;
        let passed_on = async {
            while self.director.standing().total.forwarded < all {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            accepted = self.ours.accept() => panic!("{accepted:?}"),
            () = within(passed_on) => {}
        }
        clients
    }

    /// Waits until the counts of the director are as they should be.
    async fn until(&self, reached: impl Fn(&Standing) -> bool) -> Standing {
        let reaching = async {
            while !reached(&self.director.standing()) {
                tokio::task::yield_now().await;
            }
        };
        if timeout(PATIENCE, reaching).await.is_err() {
            panic!("{:?}", self.director.standing());
        }
        self.director.standing()
    }
}

/// A client that leaves with a reset: thousands of lingering connections would use up the ports.
fn connect(address: SocketAddr) -> Client {
    connect_from(address, [127, 0, 0, 1])
}

fn connect_from(address: SocketAddr, from: [u8; 4]) -> Client {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    // Else each address would have its own range of ports to be used up.
    socket.set_reuse_address(true).unwrap();
    if from != [127, 0, 0, 1] {
        let from: SocketAddr = (from, 0).into();
        socket.bind(&from.into()).unwrap();
    }
    socket.connect(&address.into()).unwrap();
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket.into()
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("took too long")
}

async fn peer_of(listener: &TcpListener) -> SocketAddr {
    within(listener.accept()).await.unwrap().1
}

/// Says a word to each client that comes, for as long as the runtime lives.
fn serve(listener: TcpListener, word: &'static [u8]) {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            answer(&stream, word);
        }
    });
}

/// An empty socket has room for a word.
fn answer(stream: &TcpStream, word: &[u8]) {
    // A client that has gone hears nothing.
    let _ = SockRef::from(stream).send(word);
}

fn heard_by(mut client: &Client) -> io::Result<u8> {
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut word = [0];
    client.read_exact(&mut word)?;
    Ok(word[0])
}

#[tokio::test]
async fn without_a_share_stable_serves_all_and_with_all_of_it_the_candidate_does() {
    let mut pair = pair(NEVER, &plan());
    let _adopter = pair.adopter();
    let client = connect(pair.address());
    assert_eq!(peer_of(&pair.ours).await, client.local_addr().unwrap());
    assert_eq!(pair.director.standing(), Standing::default());

    pair.director.set_share(Share::FULL);
    let clients = pair.pass_on(3).await;
    for client in &clients {
        assert_eq!(peer_of(&pair.theirs).await, client.local_addr().unwrap());
    }
    let standing = pair.until(|standing| standing.on_the_way == 0).await;
    let expected = Counts {
        accepted: 3,
        picked: 3,
        forwarded: 3,
        begun: 3,
        ..Counts::default()
    };
    assert_eq!((standing.since, standing.total), (expected, expected));

    pair.director.set_share(Share::NONE);
    let client = connect(pair.address());
    assert_eq!(peer_of(&pair.ours).await, client.local_addr().unwrap());
    assert_eq!(pair.director.standing().since, Counts::default());
}

#[tokio::test]
async fn a_client_sees_the_candidate_close_although_stable_had_the_connection() {
    let mut pair = pair(NEVER, &plan());
    let _adopter = pair.adopter();
    pair.director.set_share(Share::FULL);
    let mut client = pair.pass_on(1).await.remove(0);
    drop(within(pair.theirs.accept()).await.unwrap());
    pair.until(|standing| standing.total.begun == 1).await;
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[tokio::test]
async fn what_a_dead_candidate_had_not_begun_is_served_by_stable_in_order() {
    let mut pair = pair(NEVER, &plan());
    pair.director.set_share(Share::FULL);
    let clients = pair.pass_on(5).await;
    let end = pair.end.take().unwrap();
    // Dead with unread messages, as the kernel leaves it, and with its last word still queued behind the reset.
    let begun = Word::Begun { id: 1 };
    descriptors::send(end.as_fd(), &begun.to_bytes(), &[]).unwrap();
    drop(end);
    for number in [0, 2, 3, 4] {
        let expected = clients[number].local_addr().unwrap();
        assert_eq!(peer_of(&pair.ours).await, expected);
    }
    assert_eq!(within(pair.director.ended()).await, End::Gone);
    let total = pair.director.standing().total;
    assert_eq!((total.begun, total.taken_back, total.lost), (1, 4, 0));
    let client = connect(pair.address());
    assert_eq!(peer_of(&pair.ours).await, client.local_addr().unwrap());
}

#[tokio::test]
async fn a_candidate_that_stands_still_loses_what_it_had_not_begun_and_cannot_begin_it_later() {
    let deadline = Duration::from_millis(50);
    let mut pair = pair(deadline, &plan());
    pair.director.set_share(Share::FULL);
    let clients = pair.pass_on(3).await;
    assert_eq!(
        within(pair.director.ended()).await,
        End::Stalled {
            waiting: 3,
            silent: deadline
        }
    );
    for client in &clients {
        assert_eq!(peer_of(&pair.ours).await, client.local_addr().unwrap());
    }
    let adopter = pair.adopter();
    // It hears the `revoked` before it has begun anything.
    let mut ended = std::pin::pin!(pair.theirs.accept());
    let hears = async {
        while !adopter.has_heard_the_end() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        accepted = ended.as_mut() => panic!("served twice: {accepted:?}"),
        () = within(hears) => {}
    }
}

#[tokio::test]
async fn an_acknowledgement_in_time_keeps_the_candidate_from_having_stalled() {
    let deadline = Duration::from_millis(500);
    let mut pair = pair(deadline, &plan());
    let _adopter = pair.adopter();
    pair.director.set_share(Share::FULL);
    let mut clients = Vec::new();
    let begin = std::time::Instant::now();
    while begin.elapsed() < deadline * 2 {
        clients.extend(pair.pass_on(1).await);
        within(pair.theirs.accept()).await.unwrap();
    }
    let standing = pair.director.standing();
    assert_eq!(standing.total.taken_back, 0);
    assert!(clients.len() > 1);
}

#[tokio::test]
async fn a_candidate_that_stable_has_left_alone_serves_what_was_on_its_way() {
    let mut pair = pair(NEVER, &plan());
    pair.director.set_share(Share::FULL);
    let clients = pair.pass_on(3).await;
    let _adopter = pair.adopter();
    let Pair {
        director, theirs, ..
    } = pair;
    director.release();
    for client in &clients {
        assert_eq!(peer_of(&theirs).await, client.local_addr().unwrap());
    }
}

#[tokio::test]
async fn a_revoked_candidate_gives_back_what_its_application_has_not_accepted() {
    let mut pair = pair(NEVER, &plan());
    let _adopter = pair.adopter();
    pair.director.set_share(Share::FULL);
    let clients = pair.pass_on(3).await;
    assert_eq!(
        peer_of(&pair.theirs).await,
        clients[0].local_addr().unwrap()
    );
    within(pair.candidate.has_adopted().wait_for(|adopted| *adopted))
        .await
        .unwrap();
    pair.director.revoke();
    for client in &clients[1..] {
        assert_eq!(peer_of(&pair.ours).await, client.local_addr().unwrap());
    }
    let total = pair.director.standing().total;
    assert_eq!((total.begun, total.taken_back), (1, 2));
    let mut late = std::pin::pin!(pair.theirs.accept());
    let again = timeout(Duration::ZERO, late.as_mut()).await;
    assert!(again.is_err(), "served twice: {again:?}");
}

#[tokio::test]
async fn what_the_candidate_does_not_listen_on_stays_with_stable() {
    let mut pair = pair(NEVER, &plan());
    let any = "127.0.0.1:0".parse().unwrap();
    let more = pair.stable.tcp("more", &[any], &options()).unwrap();
    pair.stable.open_all().unwrap();
    let _adopter = pair.adopter();
    pair.director.set_share(Share::FULL);
    for taken_back in [1, 1] {
        let client = connect(more.local_addr());
        assert_eq!(peer_of(&more).await, client.local_addr().unwrap());
        let counts = pair.director.standing().listeners["more"];
        assert_eq!((counts.taken_back, counts.begun), (taken_back, 0));
    }
}

#[tokio::test]
async fn a_listener_that_the_candidate_drops_gives_back_what_waits_at_it() {
    let mut pair = pair(NEVER, &plan());
    let _adopter = pair.adopter();
    pair.director.set_share(Share::FULL);
    let clients = pair.pass_on(2).await;
    within(pair.candidate.has_adopted().wait_for(|adopted| *adopted))
        .await
        .unwrap();
    let Pair { theirs, ours, .. } = &mut pair;
    drop(std::mem::replace(theirs, {
        let any = "127.0.0.1:0".parse().unwrap();
        Table::default().tcp("other", &[any], &options()).unwrap()
    }));
    for client in &clients {
        assert_eq!(peer_of(ours).await, client.local_addr().unwrap());
    }
}

#[tokio::test]
async fn no_more_are_on_their_way_than_both_sockets_have_room_for() {
    let mut pair = pair(NEVER, &plan());
    pair.director.set_share(Share::FULL);
    let clients = pair.pass_on(ON_THE_WAY_MAX).await;
    let client = connect(pair.address());
    assert_eq!(peer_of(&pair.ours).await, client.local_addr().unwrap());
    let total = pair.director.standing().total;
    assert_eq!((total.picked, total.kept), (ON_THE_WAY_MAX as u64 + 1, 1));
    // All of them can be acknowledged although nobody reads that: stable's task has no turn in between.
    let _adopter = pair.adopter();
    let acknowledge = async {
        for client in &clients {
            assert_eq!(peer_of(&pair.theirs).await, client.local_addr().unwrap());
        }
    };
    within(acknowledge).await;
    let standing = pair.until(|standing| standing.on_the_way == 0).await;
    assert_eq!(standing.total.begun, ON_THE_WAY_MAX as u64);
}

#[test]
fn acknowledgements_of_all_that_may_be_on_the_way_fit_into_a_socket_that_nobody_reads() {
    let (_stable, candidate) = descriptors::pair().unwrap();
    for id in 0..ON_THE_WAY_MAX as u64 {
        let declined = Word::Declined {
            id: u64::MAX - id,
            for_good: true,
        };
        descriptors::send(candidate.as_fd(), &declined.to_bytes(), &[]).unwrap();
    }
    let (stable, _candidate) = descriptors::pair().unwrap();
    for first in 0..ON_THE_WAY_MAX as u64 {
        let forward = Word::Forward {
            listener: "x".repeat(255),
            first,
            count: 1,
        };
        descriptors::send(stable.as_fd(), &forward.to_bytes(), &[stable.as_fd()]).unwrap();
    }
    descriptors::send(stable.as_fd(), &Word::Revoked.to_bytes(), &[]).unwrap();
}

#[tokio::test]
async fn a_candidate_that_talks_nonsense_gets_nothing_more_and_stable_serves_on() {
    for nonsense in [
        &b"nonsense"[..],
        br#"{"type":"begun","id":99}"#,
        br#"{"type":"revoked"}"#,
        &[b'x'; 10_000],
    ] {
        let mut pair = pair(NEVER, &plan());
        pair.director.set_share(Share::FULL);
        let clients = pair.pass_on(2).await;
        let end = pair.end.take().unwrap();
        descriptors::send(end.as_fd(), nonsense, &[]).unwrap();
        let ended = within(pair.director.ended()).await;
        assert!(matches!(ended, End::Broken(_)), "{ended:?}");
        for client in &clients {
            assert_eq!(peer_of(&pair.ours).await, client.local_addr().unwrap());
        }
    }
}

#[tokio::test]
async fn a_candidate_that_cannot_understand_stable_gives_everything_back() {
    for nonsense in [&b"nonsense"[..], br#"{"type":"begun","id":99}"#] {
        let mut pair = pair(NEVER, &plan());
        pair.director.set_share(Share::FULL);
        let clients = pair.pass_on(2).await;
        pair.director.say(nonsense);
        let _adopter = pair.adopter();
        for client in &clients {
            assert_eq!(peer_of(&pair.ours).await, client.local_addr().unwrap());
        }
        assert_eq!(within(pair.director.ended()).await, End::Gone);
    }
}

#[test]
fn only_a_socket_of_the_right_kind_is_taken_for_the_candidates_end() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let refused = adopt(null.into(), &Table::default()).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
}

/// Whoever accepts a connection answers it; both sides accept all the time, and the candidate's right is revoked in the
/// middle of it. A connection that were served by both would be answered twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_connection_is_never_served_by_both_sides_when_it_is_taken_back() {
    const ROUNDS: usize = 300;
    let (mut begun, mut taken_back) = (0, 0);
    for round in 0..ROUNDS {
        let mut pair = pair(NEVER, &plan());
        let adopter = pair.adopter();
        pair.director.set_share(Share::FULL);
        let clients: Vec<_> = (0..40).map(|_| connect(pair.address())).collect();
        let Served {
            stable,
            candidate,
            director,
        } = pair.serve_both();
        let director = Arc::new(director);
        let revoking = Arc::clone(&director);
        let at = round as u64 % 40;
        tokio::spawn(async move {
            while revoking.standing().total.forwarded < at {
                tokio::task::yield_now().await;
            }
            revoking.revoke();
        });
        let answered = tokio::task::spawn_blocking(move || {
            let first: Vec<u8> = clients.iter().map(|it| heard_by(it).unwrap()).collect();
            (clients, first)
        });
        let (clients, first) = within(answered).await.unwrap();
        within(director.ended()).await;
        // Whoever still was to serve something has done so by then.
        while !adopter.has_heard_the_end() {
            tokio::task::yield_now().await;
        }
        within(candidate.adopted_accepted(PATIENCE)).await;
        within(stable.adopted_accepted(PATIENCE)).await;
        let twice = clients.iter().filter(|client| {
            client.set_nonblocking(true).unwrap();
            matches!((&mut &**client).read(&mut [0]), Ok(1..))
        });
        let twice = twice.count();
        assert_eq!(twice, 0);
        let total = director.standing().total;
        let by_candidate = first.iter().filter(|word| **word == b'c').count() as u64;
        assert_eq!((by_candidate, total.lost), (total.begun, 0), "{total:?}");
        begun += total.begun;
        taken_back += total.taken_back;
    }
    println!("{ROUNDS} revocations: {begun} connections begun, {taken_back} taken back");
    assert!(begun > 0 && taken_back > 0);
}

/// Four standard deviations of so many coins.
fn error_max(share: f64, count: u64) -> f64 {
    4.0 * (share * (1.0 - share) / count as f64).sqrt()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_50_000_connections_the_candidate_gets_its_share_within_binomial_error() {
    const CONNECTIONS: u64 = 50_000;
    const CLIENTS: u64 = 4;
    let mut pair = pair(NEVER, &plan());
    let _adopter = pair.adopter();
    let address = pair.address();
    let served = pair.serve_both();
    for percent in [1, 10, 50] {
        served.director.set_share(Share::percent(percent));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                std::thread::spawn(move || {
                    let answers = (0..CONNECTIONS / CLIENTS).map(|_| heard_by(&connect(address)));
                    let answers: io::Result<Vec<u8>> = answers.collect();
                    answers.unwrap().iter().filter(|it| **it == b'c').count() as u64
                })
            })
            .collect();
        let joined = tokio::task::spawn_blocking(move || {
            let counts = clients.into_iter().map(|client| client.join().unwrap());
            counts.sum::<u64>()
        });
        let by_candidate = within(joined).await.unwrap();
        let (share, observed) = (
            f64::from(percent) / 100.0,
            by_candidate as f64 / CONNECTIONS as f64,
        );
        let since = served.director.standing().since;
        println!("{percent} %: {:.3} % of {CONNECTIONS}", observed * 100.0);
        assert_eq!(
            (since.accepted, since.kept, since.taken_back, since.lost),
            (CONNECTIONS, 0, 0, 0)
        );
        assert!((observed - share).abs() <= error_max(share, CONNECTIONS));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_changes_side_while_the_share_grows() {
    const CLIENTS: u8 = 200;
    let mut pair = pair(NEVER, &plan().by(By::Client));
    let _adopter = pair.adopter();
    let address = pair.address();
    let served = pair.serve_both();
    let mut before: BTreeSet<u8> = BTreeSet::new();
    for percent in [1, 5, 10, 25, 50, 75, 100] {
        served.director.set_share(Share::percent(percent));
        for _ in 0..3 {
            let asking = tokio::task::spawn_blocking(move || {
                let of = |client: &u8| {
                    heard_by(&connect_from(address, [127, 0, 0, *client])).unwrap() == b'c'
                };
                (1..=CLIENTS).filter(of).collect::<BTreeSet<u8>>()
            });
            let now = within(asking).await.unwrap();
            assert!(now.is_superset(&before), "{percent} %");
            before = now;
        }
    }
    assert_eq!(before.len(), usize::from(CLIENTS));
}

#[tokio::test]
async fn clients_that_are_excluded_stay_with_stable() {
    let plan = plan()
        .include("127.0.0.0/8".parse().unwrap())
        .exclude("127.0.0.9/32".parse().unwrap());
    let mut pair = pair(NEVER, &plan);
    let _adopter = pair.adopter();
    pair.director.set_share(Share::per_10000(1));
    let excluded = connect_from(pair.address(), [127, 0, 0, 9]);
    assert_eq!(peer_of(&pair.ours).await, excluded.local_addr().unwrap());
    let included = pair.pass_on(1).await.remove(0);
    assert_eq!(peer_of(&pair.theirs).await, included.local_addr().unwrap());
}

/// A client that is served by one answer to one word.
#[derive(Default)]
struct Asked {
    by_stable: u64,
    by_candidate: u64,
    failed: u64,
}

impl Asked {
    fn plus(self, other: Self) -> Self {
        Self {
            by_stable: self.by_stable + other.by_stable,
            by_candidate: self.by_candidate + other.by_candidate,
            failed: self.failed + other.failed,
        }
    }

    fn ask(&mut self, address: SocketAddr) {
        let mut client = connect(address);
        match client.write_all(b"q").and_then(|()| heard_by(&client)) {
            Ok(b's') => self.by_stable += 1,
            Ok(b'c') => self.by_candidate += 1,
            _ => self.failed += 1,
        }
    }
}

/// Answers each client's word, as slowly as a word takes.
fn converse(listener: TcpListener, word: u8) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut asked = [0];
                if stream.read_exact(&mut asked).await.is_ok() {
                    // A client that has gone hears nothing.
                    let _ = stream.write_all(&[word]).await;
                }
            });
        }
    });
}

/// A candidate in a process of its own, whose standard input is its end.
async fn be_a_candidate() {
    let end = io::stdin().as_fd().try_clone_to_owned().unwrap();
    let table = Table::default();
    let any = "127.0.0.1:0".parse().unwrap();
    converse(table.tcp("web", &[any], &options()).unwrap(), b'c');
    adopt(end.try_clone().unwrap(), &table).unwrap();
    // It goes when the test does, however that ends.
    let gone = tokio::task::spawn_blocking(move || {
        let mut polled = [PollFd::new(end.as_fd(), PollFlags::empty())];
        nix::poll::poll(&mut polled, PollTimeout::NONE)
    });
    gone.await.unwrap().unwrap();
}

/// A candidate in a process of its own, and the test that it goes through.
struct Candidate(Child);

impl Candidate {
    fn start(test: &str, end: OwnedFd) -> Self {
        let candidate = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("director::tests::{test}")])
            .env(CANDIDATE, "1")
            .stdin(end)
            .stdout(Stdio::null())
            .spawn();
        Self(candidate.unwrap())
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Clients that ask one after the other until they are told to stop.
struct Crowd {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Asked>>,
}

impl Crowd {
    fn begin(address: SocketAddr) -> Self {
        const CLIENTS: usize = 16;
        let stop = Arc::new(AtomicBool::new(false));
        let client = |_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut asked = Asked::default();
                while !stop.load(Ordering::Relaxed) {
                    asked.ask(address);
                }
                asked
            })
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { stop, clients }
    }

    async fn end(self) -> Asked {
        self.stop.store(true, Ordering::Relaxed);
        let joining = tokio::task::spawn_blocking(move || {
            let joined = self
                .clients
                .into_iter()
                .map(|client| client.join().unwrap());
            joined.fold(Asked::default(), Asked::plus)
        });
        within(joining).await.unwrap()
    }
}

async fn until_begun(director: &Director, count: u64) {
    let begun = async {
        while director.standing().total.begun < count {
            tokio::task::yield_now().await;
        }
    };
    within(begun).await;
}

const CANDIDATE: &str = "HANDOVER_TEST_CANDIDATE";

/// Half of the connections go to a candidate of its own process.
fn share_half(
    stable: &Table,
    rollout: u64,
    deadline: Duration,
    test: &str,
) -> (Director, Candidate) {
    let (director, end) = Director::new(
        stable,
        &Splitter::default(),
        Pick::new(rollout, &plan()),
        deadline,
    )
    .unwrap();
    let candidate = Candidate::start(test, end);
    director.set_share(Share::percent(50));
    (director, candidate)
}

fn conversing() -> (Table, SocketAddr) {
    let stable = Table::default();
    let any = "127.0.0.1:0".parse().unwrap();
    let web = stable.tcp("web", &[any], &options()).unwrap();
    let address = web.local_addr();
    stable.open_all().unwrap();
    converse(web, b's');
    (stable, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_candidate_killed_in_the_middle_only_what_it_had_begun_is_lost() {
    const KILLS: u64 = 20;
    if std::env::var_os(CANDIDATE).is_some() {
        return be_a_candidate().await;
    }
    let (stable, address) = conversing();
    let (mut asked, mut total) = (Asked::default(), Counts::default());
    for kill in 0..KILLS {
        let test = "of_a_candidate_killed_in_the_middle_only_what_it_had_begun_is_lost";
        let (director, candidate) = share_half(&stable, kill, NEVER, test);
        let crowd = Crowd::begin(address);
        until_begun(&director, 100 + 37 * kill).await;
        candidate.signal(Signal::SIGKILL);
        assert_eq!(within(director.ended()).await, End::Gone);
        asked = asked.plus(crowd.end().await);
        total = total.plus(director.standing().total);
    }
    println!(
        "{KILLS} kills: {} answered by stable, {} by the candidate, {} taken back, {} died with it",
        asked.by_stable, asked.by_candidate, total.taken_back, asked.failed
    );
    // Each that failed had been begun: nobody else's did.
    let died = total.begun - asked.by_candidate;
    assert_eq!((asked.failed, total.lost), (died, 0));
    assert!(total.taken_back > 0, "no kill was in the middle");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_that_is_stopped_and_goes_on_later_costs_nobody_an_answer() {
    if std::env::var_os(CANDIDATE).is_some() {
        return be_a_candidate().await;
    }
    let (stable, address) = conversing();
    let test = "a_candidate_that_is_stopped_and_goes_on_later_costs_nobody_an_answer";
    let (director, candidate) = share_half(&stable, 1, Duration::from_millis(200), test);
    let crowd = Crowd::begin(address);
    until_begun(&director, 100).await;
    candidate.signal(Signal::SIGSTOP);
    let ended = within(director.ended()).await;
    assert!(matches!(ended, End::Stalled { .. }), "{ended:?}");
    candidate.signal(Signal::SIGCONT);
    let asked = crowd.end().await;
    let total = director.standing().total;
    assert_eq!((asked.failed, total.lost), (0, 0));
    assert_eq!(asked.by_candidate, total.begun);
    assert!(total.taken_back > 0);
}
