//! Every way in which a server can fail is seen, and counted as what it is: each test has a server that is bad on
//! purpose.

#![expect(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::Response;
use handover_load::{Failure, Kind, Load, Mix, Report, routes};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time;

const DEADLINE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(200);
const HELLO: &str = "HTTP/1.1 200 OK\r\nx-generation: 1\r\ncontent-length: 8\r\n\r\n1 hello\n";

#[tokio::test]
async fn a_refused_connection_is_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    expect_only(nobody, one(Kind::Fresh), Failure::ConnectRefused).await;
}

#[tokio::test]
async fn a_connection_that_is_never_established_is_a_failure() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let server = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = time::timeout(SHORT, TcpStream::connect(server)).await {
        queued.push(stream.unwrap());
    }
    let mix = Mix {
        connect_deadline: SHORT,
        ..one(Kind::Fresh)
    };
    expect_only(server, mix, Failure::ConnectTimeout).await;
}

#[tokio::test]
async fn a_reset_under_a_request_is_a_failure() {
    let server = serve(async |mut stream| {
        read_request(&mut stream).await?;
        stream.set_zero_linger()
    });
    expect_only(server.await, one(Kind::Fresh), Failure::Reset).await;
}

#[tokio::test]
async fn a_connection_closed_instead_of_an_answer_is_a_failure() {
    let server = serve(async |mut stream| read_request(&mut stream).await);
    expect_only(server.await, one(Kind::Fresh), Failure::EofBeforeResponse).await;
}

#[tokio::test]
async fn a_second_request_met_by_the_end_of_its_connection_is_an_idle_race() {
    let server = serve(async |mut stream| {
        answer(&mut stream, HELLO).await?;
        read_request(&mut stream).await
    });
    expect_only(server.await, one(Kind::KeepAlive), Failure::IdleRace).await;
}

#[tokio::test]
async fn a_second_request_met_by_a_reset_is_an_idle_race() {
    let server = serve(async |mut stream| {
        answer(&mut stream, HELLO).await?;
        read_request(&mut stream).await?;
        stream.set_zero_linger()
    });
    expect_only(server.await, one(Kind::KeepAlive), Failure::IdleRace).await;
}

#[tokio::test]
async fn an_idle_connection_closed_without_notice_is_an_idle_race() {
    let server = serve(async |mut stream| answer(&mut stream, HELLO).await);
    expect_only(server.await, one(Kind::KeepAlive), Failure::IdleRace).await;
}

#[tokio::test]
async fn a_client_that_looks_sees_an_idle_close_in_time() {
    let server = serve(async |mut stream| answer(&mut stream, HELLO).await);
    let mix = Mix {
        notices_idle_close: true,
        ..one(Kind::KeepAlive)
    };
    let report = expect_reconnects(server.await, mix.paced(Kind::KeepAlive, 20.0)).await;
    assert!(report.answers() >= 10);
}

#[tokio::test]
async fn connection_close_is_honoured_and_no_failure() {
    let server = serve(async |mut stream| {
        answer(&mut stream, HELLO).await?;
        answer(
            &mut stream,
            &HELLO.replace("200 OK\r\n", "200 OK\r\nconnection: close\r\n"),
        )
        .await
    });
    expect_reconnects(server.await, one(Kind::KeepAlive)).await;
}

#[tokio::test]
async fn a_cut_answer_is_a_failure_wherever_it_is_cut() {
    let chunked = "HTTP/1.1 200 OK\r\nx-generation: 1\r\ntransfer-encoding: chunked\r\n\r\n";
    let cuts = [
        "H".to_owned(),
        HELLO[..20].to_owned(),
        HELLO[..HELLO.len() - 1].to_owned(),
        chunked.to_owned(),
        format!("{chunked}8"),
        format!("{chunked}8\r\n1 hel"),
        format!("{chunked}8\r\n1 hello\n\r\n"),
        format!("{chunked}8\r\n1 hello\n\r\n0\r\n"),
    ];
    for cut in cuts {
        let server = always(cut).await;
        expect_only(server, one(Kind::Fresh), Failure::EofInsideResponse).await;
    }
}

#[tokio::test]
async fn a_reset_inside_an_answer_is_a_failure() {
    let server = serve(async |mut stream| {
        answer(&mut stream, &HELLO[..HELLO.len() - 1]).await?;
        stream.set_zero_linger()
    });
    expect_only(server.await, one(Kind::KeepAlive), Failure::Reset).await;
}

#[tokio::test]
async fn a_reset_under_an_upload_is_a_failure() {
    let server = serve(async |mut stream| {
        read_request(&mut stream).await?;
        stream.set_zero_linger()
    });
    expect_only(server.await, one(Kind::Upload), Failure::Reset).await;
}

#[tokio::test]
async fn another_status_than_200_is_a_failure() {
    let cases = [
        ("503 Service Unavailable", Failure::Status5xx),
        ("404 Not Found", Failure::OtherStatus),
        ("302 Found", Failure::OtherStatus),
    ];
    for (status, failure) in cases {
        let server = always(HELLO.replace("200 OK", status)).await;
        expect_only(server, one(Kind::Fresh), failure).await;
    }
}

#[tokio::test]
async fn an_answer_that_never_comes_is_a_failure() {
    for kind in [Kind::Fresh, Kind::Upload, Kind::Http2, Kind::WebSocket] {
        let server = serve(async |stream| forever(stream).await).await;
        let mix = Mix {
            deadline: SHORT,
            ..one(kind)
        };
        expect_only(server, mix, Failure::TimedOut).await;
    }
}

#[tokio::test]
async fn an_answer_that_is_not_the_one_asked_for_is_a_failure() {
    let answers = [
        "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(),
        HELLO.replace("x-generation: 1\r\n", ""),
        HELLO.replace("x-generation: 1", "x-generation: 2"),
        HELLO.replace("1 hello\n", "1 other\n"),
        HELLO.replace("content-length: 8\r\n", ""),
        HELLO.replace("content-length: 8", "content-length: 9999999"),
        format!("{HELLO}{HELLO}"),
        HELLO.replace("content-length: 8", "transfer-encoding: chunked"),
    ];
    for text in answers {
        let server = always(text).await;
        expect_only(server, one(Kind::Fresh), Failure::Protocol).await;
    }
}

#[tokio::test]
async fn a_stream_that_ends_early_but_properly_is_a_failure() {
    let text = "HTTP/1.1 200 OK\r\nx-generation: 1\r\ntransfer-encoding: chunked\r\n\r\n\
                d\r\n1 chunk 1/20\n\r\n0\r\n\r\n";
    let server = always(text.to_owned()).await;
    expect_only(server, one(Kind::Stream), Failure::Protocol).await;
}

#[tokio::test]
async fn a_lost_http2_connection_is_a_failure_of_its_requests() {
    let server = serve(async |mut stream| {
        stream.read_exact(&mut [0; 64]).await?;
        Ok(())
    });
    expect_only(server.await, one(Kind::Http2), Failure::H2).await;
}

#[tokio::test]
async fn http2_requests_rejected_by_a_goaway_are_failures() {
    let server = serve(async |mut stream| {
        stream.read_exact(&mut [0; 64]).await?;
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        // Last stream 0, NO_ERROR: nothing was or will be processed.
        let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        stream.write_all(&settings).await?;
        stream.write_all(&goaway).await?;
        forever(stream).await
    });
    expect_only(server.await, one(Kind::Http2), Failure::H2).await;
}

#[tokio::test]
async fn http2_requests_lost_by_a_goaway_in_two_steps_are_failures() {
    let server = serve(async |mut stream| {
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        stream.write_all(&settings).await?;
        read_until_headers(&mut stream).await?;
        let warning = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 255, 255, 255, 0, 0, 0, 0];
        let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        stream.write_all(&warning).await?;
        stream.write_all(&ping).await?;
        while read_frame(&mut stream).await? != (6, 1) {}
        let last = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        stream.write_all(&last).await?;
        forever(stream).await
    });
    expect_only(server.await, one(Kind::Http2), Failure::H2).await;
}

#[tokio::test]
async fn http2_statuses_and_bodies_are_checked() {
    let rejecting = Router::new().fallback(async || StatusCode::SERVICE_UNAVAILABLE);
    let server = serve_app(rejecting).await;
    expect_only(server, one(Kind::Http2), Failure::Status5xx).await;
    let anonymous = Router::new().fallback(async || "1 hello\n");
    let server = serve_app(anonymous).await;
    expect_only(server, one(Kind::Http2), Failure::Protocol).await;
}

#[tokio::test]
async fn a_graceful_goaway_is_a_reconnect() {
    let server = serve(async |stream| serve_http2_until_third_request(stream).await);
    expect_reconnects(server.await, one(Kind::Http2)).await;
}

#[tokio::test]
async fn a_websocket_that_ends_without_a_close_frame_is_a_failure() {
    let server = serve(async |mut stream| {
        answer(&mut stream, "HTTP/1.1 101 Switching Protocols\r\n\r\n").await?;
        stream.read_exact(&mut [0; 18]).await.map(drop)
    });
    expect_only(
        server.await,
        one(Kind::WebSocket),
        Failure::EofInsideResponse,
    )
    .await;
}

#[tokio::test]
async fn a_websocket_that_is_refused_is_a_failure() {
    let server = always("HTTP/1.1 503 Service Unavailable\r\n\r\n".to_owned()).await;
    expect_only(server, one(Kind::WebSocket), Failure::Status5xx).await;
    let server = serve(async |mut stream| read_request(&mut stream).await);
    expect_only(
        server.await,
        one(Kind::WebSocket),
        Failure::EofBeforeResponse,
    )
    .await;
}

#[tokio::test]
async fn another_websocket_message_than_the_echo_is_a_failure() {
    let server = serve(async |mut stream| {
        answer(
            &mut stream,
            "HTTP/1.1 101 Switching Protocols\r\n\r\n\u{1}\u{1}x",
        )
        .await?;
        forever(stream).await
    });
    expect_only(server.await, one(Kind::WebSocket), Failure::Protocol).await;
}

#[tokio::test]
async fn a_websocket_that_drains_is_a_reconnect() {
    let (drain, draining) = watch::channel(false);
    let app = routes::app_with(1, move || {
        let mut draining = draining.clone();
        async move { drop(draining.wait_for(|draining| *draining).await) }
    });
    let load = Load::start(serve_app(app).await, one(Kind::WebSocket));
    load.until_answers(1, 3, DEADLINE).await.unwrap();
    drain.send_replace(true);
    load.until_reconnects(1, DEADLINE).await.unwrap();
    let report = load.stop().await;
    assert_eq!(report.failures(), 0, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_server_fails_no_client_and_neither_does_the_stop() {
    let mix = Kind::ALL
        .into_iter()
        .fold(Mix::none(), |mix, kind| mix.with(kind, 2));
    let mix = Mix {
        slow_for: SHORT,
        upload_for: SHORT,
        stream_for: SHORT,
        ..mix
    };
    let load = Load::start(serve_app(routes::app(7)).await, mix);
    load.until_answers(7, 300, DEADLINE).await.unwrap();
    let report = load.stop().await;
    assert_eq!(report.failures(), 0, "{report}");
    assert_eq!(report.kinds.len(), Kind::ALL.len(), "{report}");
    assert!(report.kinds.iter().all(|kind| kind.answers > 0), "{report}");
    assert_eq!(report.generations.len(), 1);
    assert_eq!(report.generations[0].answers, report.requests());
}

#[tokio::test]
async fn what_is_in_flight_at_the_stop_is_counted_as_it_ends() {
    let begun = Arc::new(Notify::new());
    let begin = Arc::clone(&begun);
    let app = Router::new().fallback(move || {
        begin.notify_one();
        std::future::pending::<String>()
    });
    let mix = Mix {
        deadline: SHORT,
        ..one(Kind::Fresh)
    };
    let load = Load::start(serve_app(app).await, mix);
    begun.notified().await;
    let report = load.stop().await;
    assert_eq!(report.failed(Kind::Fresh, Failure::TimedOut), 1, "{report}");
}

#[tokio::test]
async fn a_load_ends_by_itself_when_it_has_asked_enough() {
    let mix = Mix {
        requests_max: 5,
        ..one(Kind::Fresh)
    };
    let load = Load::start(serve_app(routes::app(1)).await, mix);
    load.until_answers(1, 5, DEADLINE).await.unwrap();
    assert!(load.until_answers(1, 6, SHORT).await.is_err());
}

#[tokio::test]
async fn json_names_what_was_counted() {
    let load = Load::start(serve_app(routes::app(3)).await, one(Kind::Fresh));
    load.until_answers(3, 5, DEADLINE).await.unwrap();
    let json = load.stop().await.to_json();
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["kinds"][0]["kind"], "new connection");
    assert_eq!(value["generations"][0]["generation"], 3);
    assert!(value["kinds"][0]["latency"]["p99_ms"].as_f64().unwrap() > 0.0);
}

fn one(kind: Kind) -> Mix {
    let mix = Mix::none().with(kind, 1).paced(kind, 200.0);
    Mix {
        upload_for: SHORT,
        stream_for: SHORT,
        ..mix
    }
}

/// Every failure of the only kind of client is `failure`, and there are some.
async fn expect_only(server: SocketAddr, mix: Mix, failure: Failure) -> Report {
    let load = Load::start(server, mix);
    load.until_failures(3, DEADLINE).await.unwrap();
    let report = load.stop().await;
    assert_eq!(
        report.failed(report.kinds[0].kind, failure),
        report.failures(),
        "not only {failure}:\n{report}"
    );
    report
}

async fn expect_reconnects(server: SocketAddr, mix: Mix) -> Report {
    let load = Load::start(server, mix);
    load.until_answers(1, 10, DEADLINE).await.unwrap();
    load.until_reconnects(2, DEADLINE).await.unwrap();
    let report = load.stop().await;
    assert_eq!(report.failures(), 0, "{report}");
    report
}

/// A server that does the same to one connection after another, and then drops it. It has a thread of its own.
async fn serve(behave: impl AsyncFn(TcpStream) -> io::Result<()> + Send + 'static) -> SocketAddr {
    let (bound, address) = oneshot::channel();
    thread::spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            bound.send(listener.local_addr().unwrap()).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // A client that gives up first is no concern of a bad server.
                let _ = behave(stream).await;
            }
        });
    });
    address.await.unwrap()
}

async fn always(text: String) -> SocketAddr {
    serve(async move |mut stream| answer(&mut stream, &text).await).await
}

async fn serve_app(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, app).into_future());
    server
}

async fn serve_http2_until_third_request(stream: TcpStream) -> io::Result<()> {
    let third = Arc::new(Notify::new());
    let app = routes::app(1).layer(middleware::from_fn_with_state(
        (Arc::new(AtomicUsize::new(0)), Arc::clone(&third)),
        count_to_three,
    ));
    let connection = http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended.map_err(io::Error::other),
        () = third.notified() => connection.as_mut().graceful_shutdown(),
    }
    connection.await.map_err(io::Error::other)
}

async fn count_to_three(
    State((count, third)): State<(Arc<AtomicUsize>, Arc<Notify>)>,
    request: Request,
    next: Next,
) -> Response {
    if count.fetch_add(1, Ordering::Relaxed) == 2 {
        third.notify_one();
    }
    next.run(request).await
}

async fn answer(stream: &mut TcpStream, text: &str) -> io::Result<()> {
    read_request(stream).await?;
    stream.write_all(text.as_bytes()).await
}

async fn read_request(stream: &mut TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(())
}

/// Reads and says nothing until the client has had enough.
async fn forever(mut stream: TcpStream) -> io::Result<()> {
    tokio::io::copy(&mut stream, &mut tokio::io::sink())
        .await
        .map(drop)
}

async fn read_until_headers(stream: &mut TcpStream) -> io::Result<()> {
    stream.read_exact(&mut [0; 24]).await?;
    while read_frame(stream).await?.0 != 1 {}
    Ok(())
}

/// The type and flags of an HTTP/2 frame.
async fn read_frame(stream: &mut TcpStream) -> io::Result<(u8, u8)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    stream.read_exact(&mut vec![0; length as usize]).await?;
    Ok((head[3], head[4]))
}
