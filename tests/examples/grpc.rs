//! A client of the standard gRPC health service.

use std::net::SocketAddr;

use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::load::{Client, was_not_processed};

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
                Err(status) if was_not_processed(&status) => continue,
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
