//! HTTP clients: over a new connection each time, over one that is kept, and over HTTP/2, with TLS or without.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::load::{Client, was_not_processed};

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Connections {
    Fresh,
    Kept,
    Http2,
}

pub(crate) struct Http {
    address: SocketAddr,
    /// Where it comes from, if it matters.
    own: Option<IpAddr>,
    connections: Connections,
    tls: Option<Arc<ClientConfig>>,
    open: Option<Sender>,
}

type Body = Empty<Bytes>;

enum Sender {
    One(http1::SendRequest<Body>),
    Two(http2::SendRequest<Body>),
}

impl Http {
    pub(crate) fn new(address: SocketAddr, connections: Connections) -> Self {
        Self {
            address,
            own: None,
            connections,
            tls: None,
            open: None,
        }
    }

    /// Comes from this address.
    pub(crate) fn from(mut self, own: impl Into<IpAddr>) -> Self {
        self.own = Some(own.into());
        self
    }

    pub(crate) fn over_tls(mut self, config: &Arc<ClientConfig>) -> Self {
        let mut config = ClientConfig::clone(config);
        config.alpn_protocols = match self.connections {
            Connections::Http2 => vec![b"h2".to_vec()],
            _ => vec![b"http/1.1".to_vec()],
        };
        self.tls = Some(Arc::new(config));
        self
    }

    async fn connect(&self) -> Result<Sender, String> {
        let socket = TcpSocket::new_v4().map_err(failed("a socket"))?;
        if let Some(own) = self.own {
            socket.bind((own, 0).into()).map_err(failed("binding"))?;
        }
        let stream = socket
            .connect(self.address)
            .await
            .map_err(failed("connecting"))?;
        match &self.tls {
            None => self.speak(stream).await,
            Some(config) => {
                let name = ServerName::try_from("localhost").unwrap();
                let connecting = TlsConnector::from(Arc::clone(config)).connect(name, stream);
                self.speak(connecting.await.map_err(failed("TLS"))?).await
            }
        }
    }

    async fn speak<S>(&self, stream: S) -> Result<Sender, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(stream);
        // What ends a connection shows in the requests that it takes along.
        if self.connections == Connections::Http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
                .await
                .map_err(failed("HTTP/2"))?;
            tokio::spawn(connection);
            return Ok(Sender::Two(sender));
        }
        let (sender, connection) = http1::handshake(io).await.map_err(failed("HTTP/1"))?;
        tokio::spawn(connection);
        Ok(Sender::One(sender))
    }
}

impl Client for Http {
    async fn ask(&mut self) -> Result<String, String> {
        loop {
            let mut sender = match self.open.take() {
                Some(sender) => sender,
                None => self.connect().await?,
            };
            let response = match sender.send(request("/", "*/*")).await {
                Ok(response) => response,
                Err(None) => continue,
                Err(Some(error)) => return Err(format!("asking: {error:?}")),
            };
            let body = response.into_body().collect().await;
            let body = body.map_err(failed("reading the answer"))?.to_bytes();
            if self.connections != Connections::Fresh {
                self.open = Some(sender);
            }
            return Ok(String::from_utf8_lossy(&body).trim_end().to_owned());
        }
    }
}

impl Sender {
    async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, Option<hyper::Error>> {
        let sent = match self {
            Self::One(sender) => {
                sender.ready().await.map_err(|_| None)?;
                sender.try_send_request(request).await
            }
            Self::Two(sender) => {
                sender.ready().await.map_err(|_| None)?;
                sender.try_send_request(request).await
            }
        };
        sent.map_err(lost)
    }
}

/// An event stream: each event is an answer, and after a stream's proper end comes the next stream.
pub(crate) struct Events {
    address: SocketAddr,
    open: Option<Incoming>,
}

impl Events {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            open: None,
        }
    }

    async fn begin(&self) -> Result<Incoming, String> {
        let mut sender = Http::new(self.address, Connections::Fresh)
            .connect()
            .await?;
        let response = sender.send(request("/events", "text/event-stream")).await;
        let response = response.map_err(|error| format!("asking for events: {error:?}"))?;
        assert!(response.status().is_success(), "{response:?}");
        Ok(response.into_body())
    }

    /// Whether the stream that is open comes to its proper end.
    pub(crate) async fn ends(mut self) -> bool {
        let Some(mut stream) = self.open.take() else {
            return false;
        };
        while let Some(frame) = stream.frame().await {
            if frame.is_err() {
                return false;
            }
        }
        true
    }
}

impl Client for Events {
    async fn ask(&mut self) -> Result<String, String> {
        loop {
            let mut stream = match self.open.take() {
                Some(stream) => stream,
                None => self.begin().await?,
            };
            let Some(frame) = stream.frame().await else {
                continue;
            };
            let event = frame.map_err(failed("reading an event"))?.into_data();
            self.open = Some(stream);
            let event = event.map_err(|frame| format!("not an event: {frame:?}"))?;
            return Ok(String::from_utf8_lossy(&event).trim_end().to_owned());
        }
    }
}

fn request(path: &str, accept: &str) -> Request<Body> {
    Request::get(format!("http://localhost{path}"))
        .header("host", "localhost")
        .header("accept", accept)
        .body(Empty::new())
        .unwrap()
}

/// The error, or nothing if it was over with the connection before it was with the request.
fn lost(error: TrySendError<Request<Body>>) -> Option<hyper::Error> {
    let is_unsent = error.message().is_some();
    let error = error.into_error();
    (!is_unsent && !was_not_processed(&error)).then_some(error)
}

fn failed<E: Display>(doing: &str) -> impl Fn(E) -> String {
    move |error| format!("{doing}: {error}")
}
