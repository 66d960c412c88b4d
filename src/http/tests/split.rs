//! A stable generation and a candidate in one process, with a share of the requests.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use super::*;
use crate::director::{Counts, Director, Splitter, adopt};
use crate::listen::{ListenOptions, Table, TcpListener as Listener};
use crate::observe::Observed;
use crate::rollout::pick::Pick;
use crate::rollout::{By, Rollout, Share};

const CLIENTS: u32 = 1_000;

/// Two generations; only stable's gate is open.
struct Pair {
    stable: Generation,
    candidate: Generation,
    director: Director,
    /// The candidate's end, until it begins.
    end: Option<OwnedFd>,
    /// The candidate's sockets.
    table: Table,
    _stable: Table,
}

struct Generation {
    rig: Rig,
    observed: Observed,
}

/// Clients are known by the field `client`.
fn keyed() -> Server {
    server().split_key(|request| {
        let client = request.headers.get("client")?;
        Some(client.to_str().ok()?.to_owned())
    })
}

impl Pair {
    /// All connections are from one address, as behind a proxy.
    async fn new(server: Server) -> Self {
        let (ours, theirs) = (Table::default(), Table::default());
        let any = "127.0.0.1:0".parse().unwrap();
        let web = ours.tcp("web", &[any], &ListenOptions::new()).unwrap();
        let offer = ours.offer().into_iter();
        let offer = offer.map(|(slot, socket)| (slot, socket.try_clone().unwrap()));
        theirs.adopt(offer.collect()).unwrap();
        let address = web.local_addr();
        let inherited = theirs.tcp("web", &[address], &ListenOptions::new());
        ours.open_all().unwrap();
        let splitter = Splitter::default();
        let pick = Pick::new(1, &Rollout::canary([1]).by(By::Request));
        let (director, end) = Director::new(&ours, &splitter, pick, LONG).unwrap();
        Self {
            stable: Generation::new(server.splitting(&splitter), web, address),
            candidate: Generation::new(super::server(), inherited.unwrap(), address),
            director,
            end: Some(end),
            table: theirs,
            _stable: ours,
        }
    }

    /// With everything given to a candidate that takes it.
    async fn full(server: Server) -> Self {
        let mut pair = Self::new(server).await;
        pair.begin();
        pair.director.set_share(Share::FULL);
        pair
    }

    fn begin(&mut self) {
        adopt(self.end.take().unwrap(), &self.table).unwrap();
    }

    fn counts(&self) -> Counts {
        self.director.watched().standing().unwrap().total
    }

    async fn connect(&self) -> Client {
        self.stable.rig.connect().await
    }

    /// The clients whose requests the candidate answers.
    async fn candidates(&self, client: &mut Client) -> BTreeSet<u32> {
        let mut candidates = BTreeSet::new();
        for number in 0..CLIENTS {
            let before = self.candidate.requests();
            client
                .ask(&format!("GET / HTTP/1.1\r\nHost: test\r\nclient: {number}"))
                .await;
            if self.candidate.requests() > before {
                candidates.insert(number);
            }
        }
        candidates
    }
}

impl Generation {
    fn new(server: Server, listener: Listener, address: SocketAddr) -> Self {
        let (drain, observed) = (Drain::new(LONG, LONG), Observed::default());
        let app = Arc::new(App::default());
        let router = router(Arc::clone(&app))
            .route("/fields", any(fields))
            .route("/broken", any(async || StatusCode::INTERNAL_SERVER_ERROR));
        let server = server.observe(ObserveLayer::new(&observed));
        let server = tokio::spawn({
            let drain = drain.clone();
            async move { server.serve_on(&drain, listener, router).await }
        });
        let rig = Rig {
            drain,
            address,
            app,
            server,
        };
        Self { rig, observed }
    }

    fn requests(&self) -> u64 {
        self.observed.snapshot().counts.requests
    }
}

impl Client {
    async fn ask(&mut self, head: &str) -> Reply {
        self.send(format!("{head}\r\n\r\n")).await;
        self.response().await
    }
}

/// What a request says when it arrives.
async fn fields(request: Request) -> String {
    format!("{:?} {:?}", request.version(), request.headers())
}

#[tokio::test]
async fn a_share_of_the_requests_on_one_connection_is_the_candidates_and_a_client_stays() {
    let mut pair = Pair::new(keyed()).await;
    pair.begin();
    let mut client = pair.connect().await;
    let mut before = BTreeSet::new();
    for percent in [10, 50] {
        pair.director.set_share(Share::percent(percent));
        let candidates = pair.candidates(&mut client).await;
        assert_eq!(candidates, pair.candidates(&mut client).await);
        let (expected, clients) = (f64::from(percent) / 100.0, f64::from(CLIENTS));
        let error = (candidates.len() as f64 / clients - expected).abs();
        let error_max = 4.0 * (expected * (1.0 - expected) / clients).sqrt();
        assert!(error <= error_max, "{percent} %: {}", candidates.len());
        assert!(candidates.is_superset(&before), "{percent} %");
        before = candidates;
    }
    let counts = pair.counts();
    assert_eq!(counts.accepted, 4 * u64::from(CLIENTS));
    assert_eq!((counts.kept, counts.lost), (0, 0));
    // Each is counted by who has answered it.
    assert_eq!(counts.begun, pair.candidate.requests());
    assert_eq!(counts.accepted - counts.begun, pair.stable.requests());
}

#[tokio::test]
async fn requests_of_nobody_known_go_by_a_coin() {
    let mut pair = Pair::new(keyed()).await;
    pair.begin();
    pair.director.set_share(Share::percent(50));
    let mut client = pair.connect().await;
    for _ in 0..100 {
        assert_eq!(
            client.ask("GET / HTTP/1.1\r\nHost: test").await.body,
            "hello"
        );
    }
    let counts = pair.counts();
    assert!((20..=80).contains(&counts.begun), "{counts:?}");
}

#[tokio::test]
async fn without_a_key_all_requests_of_an_address_are_on_one_side() {
    let mut pair = Pair::new(server()).await;
    pair.begin();
    pair.director.set_share(Share::percent(50));
    let mut client = pair.connect().await;
    for _ in 0..20 {
        client.ask("GET / HTTP/1.1\r\nHost: test").await;
    }
    let sides = [pair.stable.requests(), pair.candidate.requests()];
    assert!(sides == [20, 0] || sides == [0, 20], "{sides:?}");
}

#[tokio::test]
async fn the_candidate_is_told_whose_request_it_is_and_nothing_of_the_connection() {
    let pair = Pair::full(keyed()).await;
    let mut client = pair.connect().await;
    let head = "GET /fields HTTP/1.1\r\nHost: test\r\nConnection: x-private\r\nx-private: 1";
    let reply = client.ask(head).await;
    assert!(
        reply.body.contains("\"x-forwarded-for\": \"127.0.0.1\""),
        "{}",
        reply.body
    );
    assert!(!reply.body.contains("private"), "{}", reply.body);
    assert_eq!(pair.candidate.requests(), 1);
}

#[tokio::test]
async fn bodies_stream_in_both_directions() {
    let pair = Pair::full(keyed()).await;
    let mut client = pair.connect().await;
    client.post("/upload", 6, "abc").await;
    within(pair.candidate.rig.app.begun.notified()).await;
    client.send("def").await;
    assert_eq!(client.response().await.body, "6");

    client.get("/stream").await;
    client.read_to("\r\n\r\n").await;
    let mut feed = pair.candidate.rig.feed();
    for chunk in ["one", "two"] {
        within(feed.send_data(chunk.into())).await.unwrap();
        client.read_to(chunk).await;
    }
    drop(feed);
    client.read_to("0\r\n\r\n").await;
    assert_eq!(
        client.ask("GET / HTTP/1.1\r\nHost: test").await.body,
        "hello"
    );
    assert_eq!((pair.candidate.requests(), pair.stable.requests()), (3, 0));
}

#[tokio::test]
async fn what_leaves_http_is_answered_here_and_so_are_questions_of_health() {
    let pair = Pair::full(keyed()).await;
    let mut client = pair.connect().await;
    client.ask("GET /readyz HTTP/1.1\r\nHost: test").await;
    client
        .ask("POST / HTTP/1.1\r\nHost: test\r\nContent-Type: application/grpc")
        .await;
    client
        .send("GET /upgrade HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\n")
        .await;
    let head = client.read_to("\r\n\r\n").await;
    assert!(head.contains("101"), "{head}");
    drop(pair.stable.rig.upgrade().await);
    assert_eq!((pair.candidate.requests(), pair.counts().picked), (0, 0));
}

#[tokio::test]
async fn a_request_that_does_not_reach_the_candidate_is_answered_here() {
    let pair = Pair::new(keyed()).await;
    pair.director.set_share(Share::FULL);
    let mut client = pair.connect().await;
    client.get("/").await;
    within(async {
        while pair.director.watched().standing().unwrap().on_the_way == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // It dies with the connection still waiting.
    drop(pair.end);
    assert_eq!(client.response().await.body, "hello");
    for _ in 0..3 {
        assert_eq!(
            client.ask("GET / HTTP/1.1\r\nHost: test").await.body,
            "hello"
        );
    }
    let counts = pair.director.watched().standing().unwrap().total;
    assert_eq!((counts.kept, counts.forwarded, counts.lost), (1, 0, 0));
    assert_eq!(pair.stable.requests(), 4);
}

#[tokio::test]
async fn a_request_that_the_candidate_has_begun_and_does_not_answer_is_a_502_and_counted() {
    let pair = Pair::full(keyed()).await;
    let mut client = pair.connect().await;
    client.get("/slow").await;
    within(pair.candidate.rig.app.begun.notified()).await;
    pair.candidate.rig.drain.begin();
    pair.candidate.rig.drain.cut_now();
    let reply = client.response().await;
    assert!(reply.head.starts_with("HTTP/1.1 502 "), "{}", reply.head);
    let counts = pair.counts();
    assert_eq!((counts.forwarded, counts.begun, counts.lost), (1, 0, 1));
    assert_eq!(pair.stable.requests(), 0);
}

#[tokio::test]
async fn without_a_share_nothing_new_is_forwarded_and_what_is_under_way_is_answered() {
    let pair = Pair::full(keyed()).await;
    let (mut busy, mut idle) = (pair.connect().await, pair.connect().await);
    idle.ask("GET / HTTP/1.1\r\nHost: test").await;
    busy.get("/slow").await;
    within(pair.candidate.rig.app.begun.notified()).await;
    idle.ask("GET / HTTP/1.1\r\nHost: test").await;
    pair.director.set_share(Share::NONE);
    idle.ask("GET / HTTP/1.1\r\nHost: test").await;
    assert_eq!(pair.stable.requests(), 1);
    pair.candidate.rig.app.release.notify_one();
    assert_eq!(busy.response().await.body, "slow");
    // No connection between them is left, so the candidate drains at once.
    pair.candidate.rig.until_counted("http1", 0).await;
    assert_eq!(pair.candidate.requests(), 3);
}

#[tokio::test]
async fn connections_to_the_candidate_are_used_again() {
    let pair = Pair::full(keyed()).await;
    let mut client = pair.connect().await;
    for _ in 0..50 {
        client.ask("GET / HTTP/1.1\r\nHost: test").await;
    }
    assert_eq!(pair.candidate.requests(), 50);
    // One may not be known to be free yet when the next request comes.
    let open = pair.candidate.rig.counted("http1");
    assert!(open <= 5, "{open}");
}

#[tokio::test]
async fn errors_of_forwarded_requests_count_once_for_each_client() {
    let pair = Pair::full(keyed()).await;
    for last in [1, 1, 2] {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket
            .bind((std::net::Ipv4Addr::new(127, 0, 0, last), 0).into())
            .unwrap();
        let stream = within(socket.connect(pair.stable.rig.address))
            .await
            .unwrap();
        let unread = Vec::new();
        let mut client = Client { stream, unread };
        client.ask("GET /broken HTTP/1.1\r\nHost: test").await;
    }
    let counts = pair.candidate.observed.snapshot().counts;
    assert_eq!((counts.requests, counts.errors), (3, 2));
}

#[tokio::test]
async fn requests_of_http2_are_forwarded() {
    let pair = Pair::full(keyed()).await;
    let stream = within(TcpStream::connect(pair.stable.rig.address))
        .await
        .unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let handshake = hyper::client::conn::http2::handshake(executor, TokioIo::new(stream));
    let (mut sender, connection) = within(handshake).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("http://other.test/fields");
    let request = request.body(String::new()).unwrap();
    let response = within(sender.send_request(request)).await.unwrap();
    let body = within(response.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert!(
        body.starts_with("HTTP/1.1 ") && body.contains("\"host\": \"other.test\""),
        "{body}"
    );
    assert_eq!((pair.candidate.requests(), pair.stable.requests()), (1, 0));
}
