//! One client: its pace, its end, and how it opens connections.

mod http1;
mod http2;
mod websocket;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time;

use crate::kind::{Failure, Kind};
use crate::mix::Mix;
use crate::recorder::{Failed, Outcome, Recorder};

pub(crate) struct Client {
    kind: Kind,
    server: SocketAddr,
    mix: Arc<Mix>,
    recorder: Arc<Recorder>,
    stopping: watch::Receiver<bool>,
    dice: Dice,
}

impl Client {
    pub(crate) fn new(
        index: usize,
        kind: Kind,
        server: SocketAddr,
        mix: &Arc<Mix>,
        recorder: &Arc<Recorder>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self {
            kind,
            server,
            mix: Arc::clone(mix),
            recorder: Arc::clone(recorder),
            stopping,
            dice: Dice(mix.seed.wrapping_add(index as u64)),
        }
    }

    pub(crate) async fn run(self) {
        match self.kind {
            Kind::Http2 => http2::run(self).await,
            Kind::WebSocket => websocket::run(self).await,
            _ => http1::run(self).await,
        }
    }

    /// Pauses before the next request; false once the load stops.
    async fn turn(&mut self) -> bool {
        let pause = self.dice.pause(self.mix.pause(self.kind));
        let mut stopping = self.stopping.clone();
        tokio::select! {
            biased;
            // A load that is gone stops its clients too.
            _ = stopping.wait_for(|stop| *stop) => false,
            () = time::sleep(pause) => !self.is_exhausted(),
        }
    }

    fn is_exhausted(&self) -> bool {
        self.recorder.elapsed() > self.mix.duration_max
            || self.recorder.requests() >= self.mix.requests_max
    }

    /// Runs one request to its end or to its deadline, and counts it.
    async fn attempt(&self, request: impl Future<Output = Outcome>) {
        let start = Instant::now();
        let outcome = self.bounded(request).await;
        self.recorder.record(self.kind, start, outcome);
    }

    async fn bounded<T>(
        &self,
        request: impl Future<Output = Result<T, Failed>>,
    ) -> Result<T, Failed> {
        let deadline = self.mix.deadline;
        time::timeout(deadline, request)
            .await
            .unwrap_or_else(|_| Err(timed_out(deadline)))
    }

    async fn connect(&self) -> Result<TcpStream, Failed> {
        let stream = time::timeout(self.mix.connect_deadline, TcpStream::connect(self.server))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(connect_failure)?;
        stream
            .set_nodelay(true)
            .map_err(|error| Failed::new(Failure::Local, error))?;
        Ok(stream)
    }

    fn reconnects(&self) {
        self.recorder.record_reconnect(self.kind);
    }
}

fn timed_out(deadline: Duration) -> Failed {
    Failed::new(
        Failure::TimedOut,
        format!("no whole answer in {deadline:?}"),
    )
}

fn connect_failure(error: io::Error) -> Failed {
    let failure = match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::ConnectRefused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Failure::ConnectReset,
        io::ErrorKind::TimedOut => Failure::ConnectTimeout,
        _ => Failure::Local,
    };
    Failed::new(failure, format!("connecting: {error}"))
}

/// SplitMix64: pauses that differ between clients and repeat between runs.
struct Dice(u64);

impl Dice {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Mostly short and now and then long, so that at any instant some connections are idle; `mean` on average.
    fn pause(&mut self, mean: Duration) -> Duration {
        let is_long = self.unit() < 0.125;
        let factor = if is_long {
            2.0 + 5.0 * self.unit()
        } else {
            self.unit()
        };
        mean.mul_f64(factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_vary_around_their_mean() {
        let mut dice = Dice(1);
        let mean = Duration::from_millis(20);
        let pauses: Vec<_> = (0..10_000).map(|_| dice.pause(mean)).collect();
        let average = pauses.iter().sum::<Duration>() / 10_000;
        assert!((19..=21).contains(&average.as_millis()), "{average:?}");
        assert!(pauses.iter().any(|pause| *pause > 6 * mean));
        assert!(pauses.iter().any(|pause| *pause < mean / 10));
    }

    #[test]
    fn connect_errors_are_told_apart() {
        let cases = [
            (io::ErrorKind::ConnectionRefused, Failure::ConnectRefused),
            (io::ErrorKind::ConnectionReset, Failure::ConnectReset),
            (io::ErrorKind::ConnectionAborted, Failure::ConnectReset),
            (io::ErrorKind::TimedOut, Failure::ConnectTimeout),
            (io::ErrorKind::AddrNotAvailable, Failure::Local),
        ];
        for (kind, failure) in cases {
            assert_eq!(connect_failure(kind.into()).failure, failure);
        }
    }
}
