//! HTTP over rustls, by a client that sends its records byte by byte if it wants to.

use std::io::{Read, Write};

use futures_util::FutureExt;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

use super::super::sight::Arrivals;
use super::*;

/// A client that blocks its thread only for the handshake and when it reads.
struct TlsClient {
    session: ClientConnection,
    socket: std::net::TcpStream,
}

impl TlsClient {
    async fn connect(address: SocketAddr, config: Arc<ClientConfig>) -> Self {
        let connecting = tokio::task::spawn_blocking(move || {
            let name = ServerName::try_from("localhost").unwrap();
            let mut session = ClientConnection::new(config, name).unwrap();
            let mut socket = std::net::TcpStream::connect(address).unwrap();
            while session.is_handshaking() {
                session.complete_io(&mut socket).unwrap();
            }
            Self { session, socket }
        });
        within(connecting).await.unwrap()
    }

    /// What would be sent.
    fn records(&mut self, text: &str) -> Vec<u8> {
        self.session.writer().write_all(text.as_bytes()).unwrap();
        self.pending_records()
    }

    fn key_update(&mut self) -> Vec<u8> {
        self.session.refresh_traffic_keys().unwrap();
        self.pending_records()
    }

    fn pending_records(&mut self) -> Vec<u8> {
        let mut records = Vec::new();
        while self.session.wants_write() {
            self.session.write_tls(&mut records).unwrap();
        }
        records
    }

    /// In the kernel, and perhaps unknown to the reactor, when this returns.
    fn send(&mut self, records: &[u8]) {
        self.socket.write_all(records).unwrap();
    }

    /// What comes until the connection is closed properly.
    async fn rest(mut self) -> String {
        let reading = tokio::task::spawn_blocking(move || {
            let mut received = String::new();
            let mut stream = tokio_rustls::rustls::Stream::new(&mut self.session, &mut self.socket);
            stream.read_to_string(&mut received).unwrap();
            received
        });
        within(reading).await.unwrap()
    }
}

/// Both ends trust one new certificate.
fn ends() -> (TlsAcceptor, Arc<ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let server = ServerConfig::builder().with_no_client_auth();
    let server = server
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = ClientConfig::builder().with_root_certificates(roots);
    (
        Arc::new(server).into(),
        Arc::new(client.with_no_client_auth()),
    )
}

type Server = Rewind<TlsStream<Rewind<TcpStream>>>;

/// A connection whose handshake is over, from both sides.
async fn pair() -> (TlsClient, Server, Sight<TlsStream<Rewind<TcpStream>>>) {
    let (acceptor, config) = ends();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = async {
        let mut stream = Rewind::new(listener.accept().await.unwrap().0, Bytes::new());
        let wire = stream.watched();
        (acceptor.accept(stream).await.unwrap(), wire)
    };
    let (client, (server, wire)) = tokio::join!(TlsClient::connect(address, config), accepting);
    let server = Rewind::new(server, Bytes::new());
    (client, server, Sight::through(wire))
}

/// Until the reactor knows of what was sent.
async fn heard(server: &Server) {
    let socket = server.get_ref().get_ref().0.get_ref();
    within(socket.readable()).await.unwrap();
}

async fn read(server: &mut Server) -> String {
    let mut bytes = [0; GET.len()];
    within(server.read_exact(&mut bytes)).await.unwrap();
    String::from_utf8(bytes.into()).unwrap()
}

#[tokio::test]
async fn what_the_reactor_has_not_heard_of_is_seen_below_the_stream() {
    let (mut client, mut server, sight) = pair().await;
    assert_eq!(sight.look(&mut server), Arrivals::Nothing);
    let request = client.records(GET);
    client.send(&request);
    assert_eq!(sight.look(&mut server), Arrivals::Unclear);
    assert_eq!(read(&mut server).await, GET);
}

#[tokio::test]
async fn a_whole_record_that_can_be_read_is_a_request_and_not_lost() {
    let (mut client, mut server, sight) = pair().await;
    let request = client.records(GET);
    client.send(&request);
    heard(&server).await;
    assert_eq!(sight.look(&mut server), Arrivals::Request);
    assert_eq!(read(&mut server).await, GET);
}

#[tokio::test]
async fn half_a_record_is_unclear_once_whoever_has_read_it() {
    let (mut client, mut server, sight) = pair().await;
    let request = client.records(GET);
    let (first, second) = request.split_at(request.len() / 2);
    client.send(first);
    heard(&server).await;
    assert!(server.read(&mut [0]).now_or_never().is_none());
    assert_eq!(sight.look(&mut server), Arrivals::Unclear);
    assert_eq!(sight.look(&mut server), Arrivals::Nothing);
    client.send(second);
    assert_eq!(read(&mut server).await, GET);
}

#[tokio::test]
async fn a_key_update_is_unclear_once() {
    let (mut client, mut server, sight) = pair().await;
    let update = client.key_update();
    client.send(&update);
    heard(&server).await;
    assert_eq!(sight.look(&mut server), Arrivals::Unclear);
    assert_eq!(sight.look(&mut server), Arrivals::Nothing);
    let request = client.records(GET);
    client.send(&request);
    assert_eq!(read(&mut server).await, GET);
}

#[tokio::test]
async fn nothing_is_unclear_about_bytes_that_have_become_a_request() {
    let (mut client, server, sight) = pair().await;
    let ledger = ledger(&Drain::new(LONG, LONG));
    let mut io = Io::new(server, sight, ledger);
    let request = client.records(GET);
    client.send(&request);
    within(io.read_exact(&mut [0; GET.len()])).await.unwrap();
    assert_eq!(io.look(), Arrivals::Nothing);
}

async fn rig(server: super::Server) -> (Rig, Arc<ClientConfig>) {
    let (acceptor, config) = ends();
    let rig = Rig::shaking(server, move |stream| acceptor.accept(stream)).await;
    (rig, config)
}

#[tokio::test]
async fn half_a_record_buys_one_more_grace_and_no_more() {
    let (rig, config) = rig(server().idle_grace(SHORT * 5)).await;
    let mut late = TlsClient::connect(rig.address, Arc::clone(&config)).await;
    let mut never = TlsClient::connect(rig.address, Arc::clone(&config)).await;
    let silent = TlsClient::connect(rig.address, config).await;
    rig.until_counted("http1", 3).await;
    let request = late.records(GET);
    late.send(&request[..9]);
    let half = never.records(GET);
    never.send(&half[..9]);
    rig.drain.begin();
    assert_eq!(silent.rest().await, "");
    late.send(&request[9..]);
    let answer = late.rest().await;
    assert!(answer.contains("connection: close") && answer.ends_with("hello"));
    assert_eq!(never.rest().await, "");
    assert!(rig.gone().await.took >= SHORT * 10);
}
