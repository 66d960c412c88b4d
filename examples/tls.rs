//! HTTPS with rustls. The certificate is made at the first start and passed on, so that all generations show the same.
//!
//! Sessions are not passed on: after an upgrade a returning client makes a full handshake.
//!
//! ```sh
//! cargo run --example tls
//! curl -k https://127.0.0.1:8443  # hello from process 4711, generation 1
//! kill -HUP 4711                  # upgrade
//! curl -k https://127.0.0.1:8443  # hello from process 4712, generation 2, with the same certificate
//! kill -TERM 4712                 # stop
//! ```

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::{Router, routing::get};
use handover::{Starting, http::Server};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8443".into());
    // The default is ten seconds; one is for trying this out.
    let bake = Duration::from_secs(1);
    let mut starting = handover::builder().bake(bake).start().await?;
    let web = starting.listen_tcp("web", address).await?;
    println!("listening on {}", web.local_addr());
    let (certificate, key) = identity(&mut starting)?;
    let generation = starting.ready().await?;

    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.clone().into()],
            PrivatePkcs8KeyDer::from(key.clone()).into(),
        )?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    generation.on_offer(move |offer| {
        offer.blob("certificate", &certificate).blob("key", &key);
        Ok(())
    });
    let (pid, number) = (std::process::id(), generation.number());
    let hello = format!("hello from process {pid}, generation {number}\n");
    let app = Router::new().route("/", get(|| async { hello }));
    let handshake = move |stream| acceptor.accept(stream);
    Server::new()
        .serve_with(&generation, web, handshake, app)
        .await;
    Ok(())
}

/// The incumbent's certificate and key; new ones in a fresh generation.
fn identity(starting: &mut Starting) -> Result<(Vec<u8>, Vec<u8>), Box<dyn Error>> {
    let state = starting.state();
    if let (Some(certificate), Some(key)) = (state.blob("certificate")?, state.blob("key")?) {
        return Ok((certificate, key));
    }
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    Ok((made.cert.der().to_vec(), made.signing_key.serialize_der()))
}
