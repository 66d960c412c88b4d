//! gRPC with tonic: the standard health service, on the generation's own listener. A client that watches hears that its
//! generation drains, and its stream ends.
//!
//! ```sh
//! cargo run --example grpc
//! grpcurl -plaintext -v 127.0.0.1:8080 grpc.health.v1.Health/Check    # in the header: generation: 1
//! kill -HUP $(pgrep -n grpc)              # upgrade
//! grpcurl -plaintext -v 127.0.0.1:8080 grpc.health.v1.Health/Check    # generation: 2
//! kill -TERM $(pgrep -n grpc)             # stop
//! ```

use std::time::Duration;

use axum::middleware::map_response;
use axum::response::Response;
use tonic::service::Routes;
use tonic_health::ServingStatus::NotServing;
use tonic_health::server::health_reporter;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8080".into());
    // The default is ten seconds; one is for trying this out.
    let bake = Duration::from_secs(1);
    let mut starting = handover::builder().bake(bake).start().await?;
    let web = starting.listen_tcp("web", address).await?;
    println!("listening on {}", web.local_addr());
    let (mut reporter, health) = health_reporter();
    let generation = starting.ready().await?;

    let draining = generation.draining();
    tokio::spawn(async move {
        draining.await;
        reporter.set_service_status("", NotServing).await;
        // What is not reported any more ends the streams that watch it: nothing else would, before the deadline.
        reporter.clear_service_status("").await;
    });
    let number = generation.number();
    let name_generation = map_response(move |mut response: Response| async move {
        response.headers_mut().insert("generation", number.into());
        response
    });
    let app = Routes::new(health)
        .into_axum_router()
        .layer(name_generation);
    handover::http::serve(&generation, web, app).await?;
    Ok(())
}
