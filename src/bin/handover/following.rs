//! Events of a service, over all its generations.

use handover::control::{Client, EventStream, Happened, What};
use handover::{Error, Result};

/// Goes on with the next generation where one ends.
#[derive(Debug)]
pub(crate) struct Following {
    client: Client,
    stream: EventStream,
    is_stopping: bool,
}

/// Why there are no more events.
#[derive(Debug)]
pub(crate) enum End {
    /// The service was stopped, and is gone.
    Stopped,
    /// Nobody answers, and nobody has said why.
    Lost(Error),
}

impl Following {
    pub(crate) async fn begin(client: &Client) -> Result<Self> {
        Ok(Self {
            client: client.clone(),
            stream: client.events().await?,
            is_stopping: false,
        })
    }

    pub(crate) async fn next(&mut self) -> std::result::Result<Happened, End> {
        loop {
            match self.stream.next().await {
                Ok(Some(happened)) => {
                    self.is_stopping |= ends_service(&happened.what);
                    return Ok(happened);
                }
                Ok(None) if self.is_stopping => return Err(End::Stopped),
                Ok(None) => self.stream = self.client.events().await.map_err(End::Lost)?,
                Err(error) => return Err(End::Lost(error)),
            }
        }
    }
}

/// A generation that has handed over drains as well; its reason is another.
fn ends_service(what: &What) -> bool {
    match what {
        What::LameDuck { .. } => true,
        What::Draining { reason, .. } => reason == "stopping",
        _ => false,
    }
}
