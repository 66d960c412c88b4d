use hyper::client::conn::http2::{self as client, SendRequest};
use hyper_util::rt::TokioExecutor;

use super::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_STREAM_AND_HEADERS: u8 = 5;

/// How much a client that says nothing of it has room for (RFC 9113, section 6.9.2).
const WINDOW: usize = 65_535;

/// No stream can have a higher number: a GOAWAY that names it forbids nothing yet.
const ANY_STREAM: u32 = u32::MAX >> 1;

/// A client that sees every frame.
struct FrameClient(Client);

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    /// The last stream that a GOAWAY admits.
    fn last_stream(&self) -> u32 {
        assert_eq!(self.kind, GOAWAY, "{self:?}");
        u32::from_be_bytes(self.payload[..4].try_into().unwrap())
    }

    fn ends(&self, stream: u32) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.stream == stream && self.flags & END_STREAM != 0
    }
}

impl FrameClient {
    async fn connect(rig: &Rig, count: usize) -> Self {
        let mut client = Self(rig.connect().await);
        client.0.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        client.send(SETTINGS, 0, 0, b"").await;
        rig.until_counted("http2", count).await;
        client
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = (payload.len() as u32).to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.send(frame).await;
    }

    async fn get(&mut self, stream: u32, path: &str) {
        // Static table (RFC 7541, appendix A): GET, http, and a literal for the path.
        let mut block = vec![0x82, 0x86, 0x04, path.len() as u8];
        block.extend(path.as_bytes());
        self.send(HEADERS, END_STREAM_AND_HEADERS, stream, &block)
            .await;
    }

    /// The next frame that is not about settings or windows.
    async fn frame(&mut self) -> Frame {
        loop {
            let mut head = [0; 9];
            self.read_exact(&mut head).await;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            self.read_exact(&mut payload).await;
            let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
            let frame = Frame {
                kind: head[3],
                flags: head[4],
                stream,
                payload,
            };
            if !matches!(frame.kind, SETTINGS | WINDOW_UPDATE) {
                return frame;
            }
        }
    }

    async fn read_exact(&mut self, buf: &mut [u8]) {
        within(self.0.stream.read_exact(buf)).await.unwrap();
    }

    async fn until_end_of(&mut self, stream: u32) {
        while !self.frame().await.ends(stream) {}
    }
}

async fn connect(address: SocketAddr) -> SendRequest<AxumBody> {
    let stream = within(TcpStream::connect(address)).await.unwrap();
    let io = TokioIo::new(stream);
    let (sender, connection) = client::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(path: &str) -> http::Request<AxumBody> {
    http::Request::builder()
        .uri(format!("http://test{path}"))
        .body(AxumBody::empty())
        .unwrap()
}

async fn fetch(sender: &mut SendRequest<AxumBody>, path: &str) -> hyper::Result<Bytes> {
    let response = within(sender.send_request(request(path))).await?;
    Ok(within(response.into_body().collect()).await?.to_bytes())
}

#[tokio::test]
async fn goaway_comes_in_two_steps_and_what_crosses_the_first_is_answered() {
    let rig = Rig::new(server()).await;
    let mut client = FrameClient::connect(&rig, 1).await;
    client.get(1, "/slow").await;
    rig.app.begun.notified().await;
    rig.drain.begin();
    assert_eq!(client.frame().await.last_stream(), ANY_STREAM);
    let ping = client.frame().await;
    assert_eq!(ping.kind, PING);
    client.get(3, "/").await;
    client.until_end_of(3).await;
    client.send(PING, ACK, 0, &ping.payload).await;
    assert_eq!(client.frame().await.last_stream(), 3);
    rig.app.release.notify_one();
    client.until_end_of(1).await;
    client.0.closed().await;
    rig.gone().await;
}

#[tokio::test]
async fn an_idle_client_that_says_goodbye_is_let_go_at_once() {
    let rig = Rig::new(server()).await;
    let mut sender = connect(rig.address).await;
    assert_eq!(fetch(&mut sender, "/").await.unwrap(), "hello");
    rig.drain.begin();
    let report = rig.gone().await;
    assert!(report.stragglers.is_empty() && report.took < crate::config::LINGER_DEADLINE);
}

#[tokio::test]
async fn a_client_that_does_not_hear_the_goaway_is_closed_after_its_grace() {
    let rig = Rig::brief().await;
    let mut client = FrameClient::connect(&rig, 1).await;
    rig.drain.begin();
    assert_eq!(client.frame().await.last_stream(), ANY_STREAM);
    assert!(rig.gone().await.took >= SHORT);
}

#[tokio::test]
async fn an_answer_that_the_client_has_not_made_room_for_outlives_the_grace() {
    const SIZE: usize = 200_000;
    let rig = Rig::brief().await;
    let mut client = FrameClient::connect(&rig, 1).await;
    client.get(1, "/stream").await;
    while client.frame().await.kind != HEADERS {}
    let mut feed = rig.feed();
    feed.send_data(Bytes::from(vec![b'x'; SIZE])).await.unwrap();
    drop(feed);
    let mut received = 0;
    while received < WINDOW {
        received += client.frame().await.payload.len();
    }
    // The application is done, and the client is busy elsewhere for longer than a grace.
    rig.drain.begin();
    for _ in 0..3 {
        Rig::brief().await.drain_past_grace().await;
    }
    let room = (SIZE as u32).to_be_bytes();
    client.send(WINDOW_UPDATE, 0, 0, &room).await;
    client.send(WINDOW_UPDATE, 0, 1, &room).await;
    while received < SIZE {
        let frame = client.frame().await;
        if frame.kind == DATA {
            received += frame.payload.len();
        }
    }
    assert_eq!(received, SIZE);
}

#[tokio::test]
async fn what_is_left_at_the_deadline_is_cut() {
    let rig = Rig::with_drain(server(), Drain::new(SHORT, LONG)).await;
    let mut sender = connect(rig.address).await;
    let slow = tokio::spawn(async move { fetch(&mut sender, "/slow").await.is_err() });
    rig.app.begun.notified().await;
    rig.drain.begin();
    assert!(within(slow).await.unwrap());
    rig.gone().await;
}

#[tokio::test]
async fn a_rollback_serves_new_connections_as_before() {
    let rig = Rig::new(server()).await;
    let mut sender = connect(rig.address).await;
    fetch(&mut sender, "/").await.unwrap();
    rig.drain.quiesce();
    within(async {
        while sender.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    rig.drain.resume();
    let mut sender = connect(rig.address).await;
    for _ in 0..2 {
        assert_eq!(fetch(&mut sender, "/").await.unwrap(), "hello");
    }
}

/// Asks for `/` until it is told to open no more streams, and returns how many it has opened.
async fn ask_on(mut client: FrameClient) -> u32 {
    for opened in 1.. {
        client.get(2 * opened - 1, "/").await;
        let mut is_told = false;
        loop {
            let frame = client.frame().await;
            match frame.kind {
                GOAWAY => is_told = true,
                PING => client.send(PING, ACK, 0, &frame.payload).await,
                _ if frame.ends(2 * opened - 1) => break,
                _ => {}
            }
        }
        if is_told {
            return opened;
        }
    }
    unreachable!("streams end before numbers do")
}

// Not with hyper's client, which fails a request that it has sent if a GOAWAY arrives at once (hyper 1.12,
// `proto/h2/client.rs`, "Check poll_ready() again").
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_that_races_with_the_goaway_is_lost() {
    const TRIALS: u32 = 50;
    const CLIENTS: usize = 4;
    for trial in 0..TRIALS {
        let rig = Rig::new(server()).await;
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(tokio::spawn(ask_on(
                FrameClient::connect(&rig, clients.len() + 1).await,
            )));
        }
        for _ in 0..trial * 10 {
            tokio::task::yield_now().await;
        }
        rig.drain.begin();
        for client in clients {
            assert!(within(client).await.unwrap() > 0);
        }
        rig.gone().await;
    }
}

#[tokio::test]
async fn an_event_stream_ends_at_its_deadline_and_its_neighbour_goes_on() {
    let rig = Rig::new(server().stream_deadline(SHORT)).await;
    let mut sender = connect(rig.address).await;
    let events = within(sender.send_request(request("/events")))
        .await
        .unwrap();
    rig.until_counted("stream", 1).await;
    let slow = tokio::spawn(async move { fetch(&mut sender, "/slow").await });
    rig.app.begun.notified().await;
    rig.until_counted("http2", 1).await;
    rig.drain.begin();
    assert!(
        within(events.into_body().collect())
            .await
            .unwrap()
            .to_bytes()
            .is_empty()
    );
    assert_eq!(rig.counted("http2"), 1);
    rig.app.release.notify_one();
    assert_eq!(within(slow).await.unwrap().unwrap(), "slow");
    rig.gone().await;
}

#[tokio::test]
async fn an_event_stream_that_is_alone_on_its_connection_is_ended_whole() {
    for _ in 0..5 {
        let rig = Rig::new(server().idle_grace(SHORT).stream_deadline(SHORT)).await;
        let mut client = FrameClient::connect(&rig, 1).await;
        client.get(1, "/events").await;
        rig.until_counted("stream", 1).await;
        rig.drain.begin();
        client.until_end_of(1).await;
        rig.gone().await;
    }
}

#[tokio::test]
async fn a_tunnel_outlives_the_grace_and_is_cut_at_its_deadline() {
    let rig = Rig::new(server().idle_grace(SHORT).upgrade_deadline(SHORT * 4)).await;
    let mut sender = connect(rig.address).await;
    fetch(&mut sender, "/").await.unwrap();
    let mut connect = request("/upgrade");
    *connect.method_mut() = http::Method::CONNECT;
    connect
        .extensions_mut()
        .insert(hyper::ext::Protocol::from_static("websocket"));
    let response = within(sender.send_request(connect)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut tunnel = TokioIo::new(within(hyper::upgrade::on(response)).await.unwrap());
    rig.drain_past_grace().await;
    let (mut inner, signal) = rig.upgrade().await;
    assert!(signal.unwrap().is_draining());
    tunnel.write_all(b"ping").await.unwrap();
    within(inner.read_exact(&mut [0; 4])).await.unwrap();
    // Only the server's cut ends this: both ends of the tunnel are alive.
    within(tunnel.read_to_end(&mut Vec::new()))
        .await
        .unwrap_or_default();
    assert_eq!(rig.gone().await.took.as_millis() / 400, 1);
}
