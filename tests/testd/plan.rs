//! What a generation is to do wrong, as the file says that `TESTD_PLAN` names.

use std::fs;
use std::future::pending;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::setting;

/// Lines of `key=value`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan(String);

impl Plan {
    pub(crate) fn read() -> Self {
        let text = setting("TESTD_PLAN").and_then(|path| fs::read_to_string(path).ok());
        Self(text.unwrap_or_default())
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }

    pub(crate) fn millis(&self, key: &str) -> Option<Duration> {
        self.get(key)?.parse().ok().map(Duration::from_millis)
    }

    /// `exit:CODE`, `abort`, `panic`, `hang`, `hold` until SIGUSR1, `wait:MS` or `abort-after:MS`.
    pub(crate) async fn act(&self, point: &str) {
        let Some(action) = self.get(point) else {
            return;
        };
        let (action, number) = action.split_once(':').unwrap_or((action, "0"));
        let number: u64 = number.parse().unwrap_or(0);
        eprintln!("testd: {point}: {action}");
        match action {
            "exit" => exit(i32::try_from(number).unwrap_or(1)),
            "abort" => std::process::abort(),
            "panic" => panic!("as planned"),
            "hang" => pending().await,
            "hold" => hold(point).await,
            "wait" => tokio::time::sleep(Duration::from_millis(number)).await,
            "abort-after" => {
                tokio::time::sleep(Duration::from_millis(number)).await;
                std::process::abort();
            }
            other => panic!("testd cannot {other}"),
        }
    }
}

async fn hold(point: &str) {
    let mut released = match signal(SignalKind::user_defined1()) {
        Ok(released) => released,
        Err(error) => panic!("holding {point}: {error}"),
    };
    println!("held {point} pid {}", std::process::id());
    released.recv().await;
}

#[expect(
    clippy::exit,
    clippy::disallowed_methods,
    reason = "it misbehaves on purpose"
)]
fn exit(code: i32) -> ! {
    std::process::exit(code)
}
