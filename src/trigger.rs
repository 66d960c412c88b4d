//! Signals become one value.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What somebody outside wants of this generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// Hand over to a successor.
    Upgrade,
    /// Stop, and the service with it. A second one means at once.
    Stop,
}

/// The signals a generation listens to.
///
/// The upgrade signal is taken at the very start, the stop signals once the generation is ready: before that their
/// default action ends a process that nobody needs yet.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    upgrade: Option<Signal>,
    stop: Vec<Signal>,
}

impl Signals {
    /// Takes over the upgrade signal of this process for good (tokio never gives a signal back).
    pub(crate) fn listen_upgrade(&mut self, number: Option<i32>) -> io::Result<()> {
        self.upgrade = number.map(listen).transpose()?;
        Ok(())
    }

    /// Takes over the stop signals of this process for good.
    pub(crate) fn listen_stop(&mut self, numbers: &[i32]) -> io::Result<()> {
        self.stop = numbers
            .iter()
            .map(|number| listen(*number))
            .collect::<io::Result<_>>()?;
        Ok(())
    }

    /// The next trigger. Pends for ever where no signal is listened to.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: tokio keeps one pending notification for each signal.
    pub(crate) async fn next(&mut self) -> Trigger {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Trigger> {
        if self
            .stop
            .iter_mut()
            .any(|signal| signal.poll_recv(context).is_ready())
        {
            return Poll::Ready(Trigger::Stop);
        }
        match &mut self.upgrade {
            Some(signal) => signal.poll_recv(context).map(|_| Trigger::Upgrade),
            None => Poll::Pending,
        }
    }
}

fn listen(number: i32) -> io::Result<Signal> {
    signal(SignalKind::from_raw(number))
}
