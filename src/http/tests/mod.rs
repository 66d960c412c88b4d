//! Real sockets on loopback, clients that see every byte.

mod http1;
mod http2;
mod long_lived;
mod observed;
mod server;
mod split;
mod tls;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body as AxumBody;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{any, get, post};
use bytes::Bytes;
use http::StatusCode;
use http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::accept::{Accept, Incoming};
use super::io::Io;
use super::ledger::{Classes, Ledger};
use super::sight::Sight;
use super::*;
use crate::drain::{Drain, Report, Signal};

/// When a test is given up.
const DEADLINE: Duration = Duration::from_secs(20);
/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(600);
/// Short enough to wait for.
const SHORT: Duration = Duration::from_millis(100);

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<Incoming<TcpStream>> {
        let (stream, peer) = Self::accept(self).await?;
        Ok(Incoming {
            stream,
            peer: peer.to_string(),
            already_read: Bytes::new(),
        })
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";

/// A generation that serves on loopback.
struct Rig {
    drain: Drain,
    address: SocketAddr,
    app: Arc<App>,
    server: JoinHandle<()>,
}

/// What the handlers and the test share.
#[derive(Default)]
struct App {
    /// Lets `/slow` answer.
    release: Notify,
    /// Says that a handler has begun.
    begun: Notify,
    /// Feeds the body of `/stream` and `/events`.
    feed: Mutex<Option<Sender<Bytes, Infallible>>>,
    /// The body of `/hold`, which nobody reads.
    held: Mutex<Option<AxumBody>>,
    /// Streams that have left HTTP, each with what its request was told by.
    upgraded: Mutex<Option<mpsc::UnboundedReceiver<Upgrade>>>,
}

type Upgrade = (TokioIo<hyper::upgrade::Upgraded>, Option<Signal>);

impl Rig {
    async fn new(server: Server) -> Self {
        Self::with_drain(server, Drain::new(LONG, LONG)).await
    }

    /// A generation whose graces are soon over.
    async fn brief() -> Self {
        Self::new(server().idle_grace(SHORT)).await
    }

    /// A generation on its way out, with one connection, which is idle.
    async fn leaving() -> (Self, Client) {
        let rig = Self::new(server()).await;
        let client = rig.idle().await;
        rig.drain.begin();
        rig.until_counted("idle", 1).await;
        (rig, client)
    }

    async fn with_drain(server: Server, drain: Drain) -> Self {
        Self::serving(drain, |drain, listener, router| async move {
            server.serve_on(&drain, listener, router).await;
        })
        .await
    }

    /// Serves what a handshake makes of each connection.
    async fn shaking<H, F, S>(server: Server, handshake: H) -> Self
    where
        H: Fn(Rewind<TcpStream>) -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let drain = Drain::new(LONG, LONG);
        Self::serving(drain, |drain, listener, router| async move {
            server
                .serve_with_on(&drain, listener, handshake, router)
                .await;
        })
        .await
    }

    async fn serving<F>(drain: Drain, serve: impl FnOnce(Drain, TcpListener, Router) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Arc::new(App::default());
        let router = router(Arc::clone(&app));
        let server = tokio::spawn(serve(drain.clone(), listener, router));
        Self {
            drain,
            address,
            app,
            server,
        }
    }

    async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }

    /// A connection that was used once.
    async fn idle(&self) -> Client {
        let mut client = self.connect().await;
        client.send(GET).await;
        let response = client.response().await;
        assert!(!response.says_close() && response.body == "hello");
        client
    }

    /// A connection whose request is answered when the application is told to.
    async fn busy(&self) -> Client {
        let mut client = self.connect().await;
        client.get("/slow").await;
        self.app.begun.notified().await;
        client
    }

    /// Begins the drain, and returns when the grace of whatever was idle then is over.
    async fn drain_past_grace(&self) {
        let idle = self.idle().await;
        self.drain.begin();
        idle.closed().await;
    }

    /// The last connection is closed, and the generation leaves.
    async fn ends_with(self, client: Client) -> Report {
        client.closed().await;
        self.gone().await
    }

    fn counted(&self, class: &str) -> usize {
        let progress = self.drain.progress();
        progress
            .classes
            .iter()
            .filter(|it| it.name == class)
            .map(|it| it.in_flight)
            .sum()
    }

    async fn until_counted(&self, class: &str, count: usize) {
        within(async {
            while self.counted(class) != count {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    fn feed(&self) -> Sender<Bytes, Infallible> {
        self.app.feed.lock().unwrap().take().unwrap()
    }

    /// The stream that an upgraded request was given.
    async fn upgrade(&self) -> Upgrade {
        let mut upgraded = self.app.upgraded.lock().unwrap().take().unwrap();
        within(upgraded.recv()).await.unwrap()
    }

    /// Waits for the server's end.
    async fn gone(self) -> Report {
        within(self.server).await.unwrap();
        self.drain.drained().await
    }
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(async || "hello"))
        .route("/slow", get(slow))
        .route("/upload", post(upload))
        .route("/hold", post(hold))
        .route("/ignore", post(async || "did not look"))
        .route("/stream", get(stream))
        .route("/events", get(events))
        .route("/upgrade", any(upgrade))
        .with_state(app)
}

async fn slow(State(app): State<Arc<App>>) -> &'static str {
    app.begun.notify_one();
    app.release.notified().await;
    "slow"
}

async fn upload(State(app): State<Arc<App>>, request: Request) -> String {
    app.begun.notify_one();
    match request.into_body().collect().await {
        Ok(body) => body.to_bytes().len().to_string(),
        Err(error) => format!("failed: {error}"),
    }
}

async fn hold(State(app): State<Arc<App>>, request: Request) -> &'static str {
    *app.held.lock().unwrap() = Some(request.into_body());
    "later"
}

async fn stream(State(app): State<Arc<App>>) -> Response {
    let (feed, body) = Channel::new(1);
    *app.feed.lock().unwrap() = Some(feed);
    Response::new(AxumBody::new(body))
}

async fn events(State(app): State<Arc<App>>) -> Response {
    let mut response = stream(State(app)).await;
    response.headers_mut().insert(
        CONTENT_TYPE,
        "text/event-stream; charset=utf-8".parse().unwrap(),
    );
    response
}

async fn upgrade(State(app): State<Arc<App>>, mut request: Request) -> Response {
    let (sender, receiver) = mpsc::unbounded_channel();
    *app.upgraded.lock().unwrap() = Some(receiver);
    let signal = request.extensions_mut().remove::<Signal>();
    let is_http2 = request.version() == http::Version::HTTP_2;
    tokio::spawn(async move {
        let stream = hyper::upgrade::on(request).await.unwrap();
        sender.send((TokioIo::new(stream), signal)).unwrap();
    });
    if is_http2 {
        return Response::new(AxumBody::empty());
    }
    let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    let response = response
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, "test");
    response.body(AxumBody::empty()).unwrap()
}

/// A client that speaks bytes.
struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
}

struct Reply {
    head: String,
    body: String,
}

impl Reply {
    fn says_close(&self) -> bool {
        self.head
            .to_ascii_lowercase()
            .contains("\r\nconnection: close\r\n")
    }
}

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        let stream = within(TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            unread: Vec::new(),
        }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    async fn get(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
            .await;
    }

    /// A request with a body of this length, of which this much is sent.
    async fn post(&mut self, path: &str, length: usize, sent: &str) {
        let head = format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}");
        self.send(format!("{head}\r\n\r\n{sent}")).await;
    }

    /// Reads until the bytes so far contain `end`, and takes them.
    async fn read_to(&mut self, end: &str) -> String {
        loop {
            let position = self
                .unread
                .windows(end.len())
                .position(|window| window == end.as_bytes());
            if let Some(at) = position {
                let taken = self.unread.drain(..at + end.len()).collect();
                return String::from_utf8(taken).unwrap();
            }
            let read = within(self.stream.read_buf(&mut self.unread))
                .await
                .unwrap();
            assert!(
                read > 0,
                "closed after {:?}",
                String::from_utf8_lossy(&self.unread)
            );
        }
    }

    /// A body in chunks, of more than this length with what is between them.
    async fn read_large(&mut self, length: usize) {
        let mut body = std::mem::take(&mut self.unread);
        while !body.ends_with(b"\r\n0\r\n\r\n") {
            assert!(within(self.stream.read_buf(&mut body)).await.unwrap() > 0);
        }
        assert!(body.len() > length);
    }

    async fn head(&mut self) -> String {
        self.read_to("\r\n\r\n").await
    }

    /// A whole response with a length.
    async fn response(&mut self) -> Reply {
        let head = self.head().await;
        let lower = head.to_ascii_lowercase();
        let length = lower
            .split("content-length: ")
            .nth(1)
            .and_then(|rest| rest.split("\r\n").next());
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        while self.unread.len() < length {
            assert!(
                within(self.stream.read_buf(&mut self.unread))
                    .await
                    .unwrap()
                    > 0
            );
        }
        let body = self.unread.drain(..length).collect();
        Reply {
            head,
            body: String::from_utf8(body).unwrap(),
        }
    }

    /// Whether the server has not closed yet.
    fn is_open(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        let peeked = socket2::SockRef::from(&self.stream).recv_with_flags(&mut byte, flags);
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whatever comes until the connection ends, in whatever way.
    async fn response_or_end(mut self) -> String {
        let mut reply = Vec::new();
        let _ = within(self.stream.read_to_end(&mut reply)).await;
        String::from_utf8(reply).unwrap()
    }

    /// The connection ends, without a reset and without another byte.
    async fn closed(mut self) {
        let mut rest = self.unread;
        within(self.stream.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
    }
}

/// The ledger of a connection that nothing has happened on yet.
pub(super) fn ledger(drain: &Drain) -> Arc<Ledger> {
    let classes = Arc::new(Classes::new(drain));
    Arc::new(Ledger::new(classes, "peer".into()))
}

/// A new connection below which nothing is seen, and that these bytes were read from.
pub(super) fn io<S>(stream: S, read: &'static [u8]) -> Io<S> {
    let ledger = ledger(&Drain::new(LONG, LONG));
    let stream = Rewind::new(stream, read.into());
    Io::new(stream, Sight::Socket(|_| false), ledger)
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(DEADLINE, future)
        .await
        .expect("the test's deadline")
}

fn server() -> Server {
    Server::new().idle_grace(LONG)
}
