use std::collections::VecDeque;
use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;
use tower_layer::Layer;
use tower_service::Service;

use super::*;
use crate::config::LINGER_DEADLINE;

/// Yields what it was given, and then nothing more.
struct Script(VecDeque<io::Result<Incoming<TcpStream>>>);

impl Accept for Script {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<Incoming<TcpStream>> {
        match self.0.pop_front() {
            Some(next) => next,
            None => std::future::pending().await,
        }
    }
}

/// Two ends of a connection.
async fn pair() -> (Client, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::connect(listener.local_addr().unwrap()).await;
    (client, listener.accept().await.unwrap().0)
}

fn accepted(stream: TcpStream, already_read: &'static str) -> io::Result<Incoming<TcpStream>> {
    Ok(Incoming {
        stream,
        peer: "test".into(),
        already_read: already_read.into(),
    })
}

fn spawn_script(drain: &Drain, script: Vec<io::Result<Incoming<TcpStream>>>) -> JoinHandle<()> {
    let drain = drain.clone();
    let source = Script(script.into());
    tokio::spawn(async move {
        server()
            .serve_on(&drain, source, router(Arc::default()))
            .await
    })
}

#[tokio::test]
async fn a_drain_with_nothing_left_ends_at_once() {
    let rig = Rig::new(server()).await;
    let client = rig.idle().await;
    drop(client);
    rig.until_counted("http1", 0).await;
    rig.drain.begin();
    assert!(rig.gone().await.took < LINGER_DEADLINE);
}

#[tokio::test]
async fn nothing_is_accepted_once_the_drain_has_begun() {
    let rig = Rig::new(server()).await;
    let mut busy = rig.busy().await;
    rig.drain.begin();
    // The rig's listener is dropped together with the source.
    within(async { while TcpStream::connect(rig.address).await.is_ok() {} }).await;
    rig.app.release.notify_one();
    assert_eq!(busy.response().await.body, "slow");
    rig.gone().await;
}

#[tokio::test]
async fn bytes_that_another_generation_has_read_are_served() {
    let drain = Drain::new(LONG, LONG);
    let (mut client, stream) = pair().await;
    let _server = spawn_script(&drain, vec![accepted(stream, "GET / HT")]);
    client.send("TP/1.1\r\nHost: test\r\n\r\n").await;
    assert_eq!(client.response().await.body, "hello");
}

#[tokio::test]
async fn accepting_goes_on_after_every_kind_of_error() {
    let drain = Drain::new(LONG, LONG);
    let (mut client, stream) = pair().await;
    let errors = [
        libc::ECONNABORTED,
        libc::EMFILE,
        libc::ENOBUFS,
        libc::EPROTO,
    ];
    let errors = errors.map(|code| Err(io::Error::from_raw_os_error(code)));
    let _server = spawn_script(
        &drain,
        errors.into_iter().chain([accepted(stream, "")]).collect(),
    );
    client.get("/").await;
    assert_eq!(client.response().await.body, "hello");
}

#[tokio::test(start_paused = true)]
async fn accepting_pauses_when_there_are_no_descriptors() {
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let stream = std::net::TcpStream::from(std::os::fd::OwnedFd::from(stream));
    stream.set_nonblocking(true).unwrap();
    let error = || Err(io::Error::from_raw_os_error(libc::EMFILE));
    let stream = accepted(TcpStream::from_std(stream).unwrap(), "");
    let begun = tokio::time::Instant::now();
    super::super::server::next(&mut Script([error(), error(), stream].into())).await;
    assert_eq!(begun.elapsed(), crate::config::ACCEPT_PAUSE * 2);
}

/// A stream of letters that are shifted by one on the wire.
struct Shifted<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for Shifted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.0).poll_read(cx, buf);
        buf.filled_mut()[before..]
            .iter_mut()
            .for_each(|byte| *byte -= 1);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Shifted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let shifted: Vec<u8> = buf.iter().map(|byte| byte + 1).collect();
        Pin::new(&mut self.0).poll_write(cx, &shifted)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The client greets with one byte before everything else.
async fn handshake(mut stream: Rewind<TcpStream>) -> io::Result<Shifted<Rewind<TcpStream>>> {
    match stream.read_u8().await? {
        b'!' => Ok(Shifted(stream)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn shifted(text: &str) -> Vec<u8> {
    text.bytes().map(|byte| byte + 1).collect()
}

#[tokio::test]
async fn a_handshake_that_is_under_way_is_waited_for_and_its_request_answered() {
    let rig = Rig::shaking(server(), handshake).await;
    let mut client = rig.connect().await;
    rig.until_counted("handshake", 1).await;
    rig.drain.begin();
    client.send("!").await;
    client.send(shifted(GET)).await;
    let mut answer = Vec::new();
    within(client.stream.read_to_end(&mut answer))
        .await
        .unwrap();
    let answer: Vec<u8> = answer.iter().map(|byte| byte - 1).collect();
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.contains("connection: close") && answer.ends_with("hello"),
        "{answer}"
    );
    rig.gone().await;
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_given_up_and_keeps_nobody_waiting() {
    let rig = Rig::shaking(server().handshake_deadline(SHORT), handshake).await;
    let silent = rig.connect().await;
    let mut wrong = rig.connect().await;
    wrong.send("?").await;
    wrong.closed().await;
    silent.closed().await;
    rig.until_counted("handshake", 0).await;
}

#[tokio::test]
async fn a_handshake_is_cut_by_a_second_stop() {
    let rig = Rig::shaking(server().handshake_deadline(LONG), handshake).await;
    let silent = rig.connect().await;
    rig.until_counted("handshake", 1).await;
    rig.drain.begin();
    rig.drain.cut_now();
    silent.closed().await;
    rig.gone().await;
}

#[tokio::test]
async fn an_idle_connection_behind_a_handshake_is_closed_after_its_grace() {
    let rig = Rig::shaking(server().idle_grace(SHORT), handshake).await;
    let mut client = rig.connect().await;
    client.send("!").await;
    rig.until_counted("http1", 1).await;
    rig.drain.begin();
    client.closed().await;
    assert!(rig.gone().await.took >= SHORT);
}

/// A stream with a hook that runs whenever it was read in vain.
struct Hooked<S, H>(S, H);

impl<S: AsyncRead + Unpin, H: FnMut() + Unpin> AsyncRead for Hooked<S, H> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.0).poll_read(cx, buf);
        if read.is_pending() {
            (self.1)();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin, H: Unpin> AsyncWrite for Hooked<S, H> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Serves a connection that is new or idle, and sends a request over it when it is read in vain for the `nth` time on
/// the way out.
async fn answered_late(is_new: bool, nth: u32) {
    let late = Arc::new(Mutex::new(None::<std::net::TcpStream>));
    let handshake = {
        let late = Arc::clone(&late);
        move |stream| {
            let (late, mut reads) = (Arc::clone(&late), 0);
            let hook = move || {
                if let Some(client) = &mut *late.lock().unwrap() {
                    reads += 1;
                    if reads == nth {
                        client.write_all(GET.as_bytes()).unwrap();
                    }
                }
            };
            std::future::ready(Ok(Hooked(stream, hook)))
        }
    };
    let rig = Rig::shaking(server().idle_grace(SHORT), handshake).await;
    let mut client = match is_new {
        true => rig.connect().await,
        false => rig.idle().await,
    };
    rig.until_counted("http1", 1).await;
    let socket = socket2::SockRef::from(&client.stream).try_clone().unwrap();
    *late.lock().unwrap() = Some(socket.into());
    rig.drain.begin();
    assert!(client.response().await.says_close());
    rig.gone().await;
}

#[tokio::test]
async fn a_request_behind_a_handshake_is_answered_however_late_in_the_grace_it_comes() {
    // When the connection learns of the drain, when its grace ends, and after the reactor's last turn.
    for nth in 1..=3 {
        answered_late(false, nth).await;
        answered_late(true, nth).await;
    }
}

async fn call(
    service: &mut DrainService<Router>,
    request: http::Request<AxumBody>,
) -> http::Response<Body<AxumBody>> {
    within(service.call(request)).await.unwrap()
}

fn request(path: &str) -> http::Request<AxumBody> {
    http::Request::builder()
        .uri(path)
        .body(AxumBody::empty())
        .unwrap()
}

#[tokio::test]
async fn the_layer_counts_a_request_until_its_body_is_gone() {
    let drain = Drain::new(LONG, LONG);
    let mut service = DrainLayer::new(&drain).layer(router(Arc::default()));
    let response = call(&mut service, request("/")).await;
    assert_eq!(drain.in_flight(), 1);
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "hello"
    );
    assert_eq!(drain.in_flight(), 0);
}

#[tokio::test]
async fn the_layer_says_close_to_http1_from_the_flip_on() {
    let drain = Drain::new(LONG, LONG);
    let mut service = DrainLayer::new(&drain).layer(router(Arc::default()));
    let closes =
        |response: http::Response<Body<AxumBody>>| response.headers().contains_key(CONNECTION);
    assert!(!closes(call(&mut service, request("/")).await));
    drain.quiesce();
    assert!(closes(call(&mut service, request("/")).await));
    let mut http2 = request("/");
    *http2.version_mut() = http::Version::HTTP_2;
    assert!(!closes(call(&mut service, http2).await));
}

#[tokio::test]
async fn the_layer_counts_event_streams_apart() {
    let drain = Drain::new(LONG, LONG);
    let mut service = DrainLayer::new(&drain).layer(router(Arc::default()));
    let _response = call(&mut service, request("/events")).await;
    let progress = drain.progress();
    let counts: Vec<_> = progress
        .classes
        .iter()
        .map(|class| (class.name, class.in_flight))
        .collect();
    assert_eq!(counts, [("request", 0), ("stream", 1)]);
}
