//! The record over connections of the application's own making: with TLS, and lost in the middle of something.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{future::Future, io};

use handover::schema::{Change, Postgres, Store, StoreError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_postgres::Client;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::postgres::Server;
use crate::support::{DEADLINE, free_address};

/// A server that nobody reaches over its address without TLS, and who is sure that it is this one.
struct Encrypted {
    server: Server,
    address: SocketAddr,
    trust: Arc<ClientConfig>,
}

impl Encrypted {
    async fn start() -> Option<Self> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let address = SocketAddr::new(free_address().ip(), 5432);
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let server = Server::start_with_tls(address.ip(), &certificate, &key).await?;
        server.database("app").await;
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let trust = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let trust = Arc::new(trust);
        Some(Self {
            server,
            address,
            trust,
        })
    }

    fn store(&self) -> Postgres {
        let (address, trust) = (self.address, Arc::clone(&self.trust));
        Postgres::with(move || connect(address, Arc::clone(&trust)))
    }

    /// How many sessions there are with TLS.
    async fn sessions(&self) -> i64 {
        self.ask("SELECT count(*) FROM pg_stat_ssl WHERE ssl").await
    }

    /// Ends every one of them, as a restart or a network would; how many it was.
    async fn cut(&self) -> i64 {
        self.ask("SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_ssl WHERE ssl")
            .await
    }

    async fn ask(&self, sql: &str) -> i64 {
        let client = self.server.connect("app").await;
        client.query_one(sql, &[]).await.unwrap().get(0)
    }
}

async fn connect(address: SocketAddr, trust: Arc<ClientConfig>) -> Result<Client, StoreError> {
    let stream = TcpStream::connect(address).await?;
    let mut config = tokio_postgres::Config::new();
    config.user("app").dbname("app");
    config.ssl_mode(SslMode::Require);
    let (client, connection) = config.connect_raw(stream, Tls(trust)).await?;
    // It ends with its client, who sees an error too.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

/// What the certificate is for.
const NAME: &str = "localhost";

/// How long whoever is not to get something waits for it.
const IMPATIENCE: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_record_is_kept_over_connections_with_tls_of_the_applications_own_making() {
    let Some(of) = Encrypted::start().await else {
        return;
    };
    let plain = format!("host={} user=app dbname=app", of.address.ip());
    let refused = Postgres::new(plain).read().await.unwrap_err();
    let refused = format!("{refused:?}");
    assert!(refused.contains("no encryption"), "{refused}");

    let store = of.store();
    assert_eq!(store.read().await.unwrap().version, 0);
    let mut transaction = store.begin(DEADLINE).await.unwrap();
    assert_eq!(of.sessions().await, 1);
    transaction.write(&Change::Expanded(1)).await.unwrap();
    transaction
        .execute("CREATE TABLE t (x INT)", DEADLINE)
        .await
        .unwrap();
    assert_eq!(store.read().await.unwrap().version, 0);
    transaction.commit().await.unwrap();
    assert_eq!(store.read().await.unwrap().version, 1);

    let claim = store.claim(DEADLINE).await.unwrap();
    assert!(store.claim(IMPATIENCE).await.is_err());
    drop(claim);
    store.claim(DEADLINE).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_lost_undoes_what_it_was_at_and_the_next_question_has_another() {
    let Some(of) = Encrypted::start().await else {
        return;
    };
    let store = of.store();
    let mut transaction = store.begin(DEADLINE).await.unwrap();
    transaction.write(&Change::Expanded(1)).await.unwrap();
    transaction
        .execute("CREATE TABLE t (x INT)", DEADLINE)
        .await
        .unwrap();
    assert_eq!(of.cut().await, 1);
    assert!(transaction.write(&Change::Expanded(2)).await.is_err());
    assert!(transaction.commit().await.is_err());

    assert_eq!(store.read().await.unwrap().version, 0);
    let mut transaction = store.begin(DEADLINE).await.unwrap();
    transaction
        .execute("CREATE TABLE t (x INT)", DEADLINE)
        .await
        .unwrap();
    transaction.write(&Change::Expanded(1)).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(store.read().await.unwrap().version, 1);
}

#[tokio::test]
async fn a_claim_whose_connection_is_lost_is_anybody_s() {
    let Some(of) = Encrypted::start().await else {
        return;
    };
    let store = of.store();
    let lost = store.claim(DEADLINE).await.unwrap();
    assert_eq!(of.cut().await, 1);
    let _claim = store.claim(DEADLINE).await.unwrap();
    drop(lost);
    assert!(store.claim(IMPATIENCE).await.is_err());
}

#[tokio::test]
async fn what_keeps_the_application_from_connecting_is_the_reason() {
    let store = Postgres::with(|| async { Err("the certificate has expired".into()) });
    let error = store.read().await.unwrap_err();
    assert_eq!(error.to_string(), "the certificate has expired");
}

/// TLS as a program's own library speaks it.
struct Tls(Arc<ClientConfig>);

struct Stream(tokio_rustls::client::TlsStream<TcpStream>);

impl TlsConnect<TcpStream> for Tls {
    type Stream = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn connect(self, stream: TcpStream) -> Self::Future {
        let name = ServerName::try_from(NAME).unwrap();
        let connecting = TlsConnector::from(self.0).connect(name, stream);
        Box::pin(async { Ok(Stream(connecting.await?)) })
    }
}

impl TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
