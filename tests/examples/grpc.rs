//! A client of the standard gRPC health service.

use std::error::Error as _;
use std::net::SocketAddr;

use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::load::Client;

pub(crate) struct Grpc(HealthClient<Channel>);

impl Grpc {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        Self(HealthClient::new(endpoint.connect_lazy()))
    }

    /// Hears of every change, from the generation that answers now.
    pub(crate) async fn watch(&mut self) -> Streaming<HealthCheckResponse> {
        let overall = HealthCheckRequest::default();
        self.0.watch(overall).await.unwrap().into_inner()
    }
}

impl Client for Grpc {
    async fn ask(&mut self) -> Result<String, String> {
        loop {
            let answer = match self.0.check(HealthCheckRequest::default()).await {
                Ok(answer) => answer,
                Err(status) if was_never_sent(&status) => continue,
                Err(status) => return Err(format!("{status:?}")),
            };
            let generation = answer.metadata().get("generation").cloned();
            let status = answer.into_inner().status();
            if status != ServingStatus::Serving {
                return Err(format!("{status:?}"));
            }
            let generation = generation.ok_or("no generation in the header")?;
            return Ok(generation.to_str().unwrap_or_default().to_owned());
        }
    }
}

/// tonic gives a request to a connection that may have ended meanwhile; hyper calls it canceled if nothing of it left.
fn was_never_sent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        let is_canceled = |error: &hyper::Error| error.is_canceled();
        if error.downcast_ref().is_some_and(is_canceled) {
            return true;
        }
        cause = error.source();
    }
    false
}
