//! A share of the requests before the flip, of clients that come through a proxy: one address, few connections.

use std::collections::BTreeSet;
use std::time::Duration;

use handover::control::{Client, ForwardedCounts, ForwardingState, Reply, Request};
use handover::rollout::{By, Rollout, Share};
use handover_load::{Failure, Load, Mix, Signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{
    DEADLINE, Service, Setup, Upload, assert_no_failure, gone, more_answers, signal,
};

/// How many clients there are behind the proxy.
const CLIENTS: u32 = 1_000;

/// A candidate with a share of the requests, until something happens.
struct Split {
    service: Service,
    operator: Client,
    stable: u32,
    candidate: u32,
}

/// A connection that a proxy keeps, for requests of whomever.
struct Pooled(TcpStream);

impl Split {
    async fn begin(percent: u8) -> Self {
        const LONG: Duration = Duration::from_secs(3_600);
        let plan = Rollout::canary([percent])
            .by(By::Request)
            .unguarded()
            .units_min(0)
            .step_min(LONG)
            .step_deadline(LONG)
            .bake(Duration::ZERO);
        let setup = Setup::new();
        let control = setup.room.path().join("control");
        let setup = setup
            .with("TESTD_CONTROL", control.display())
            .with("TESTD_ROLLOUT", serde_json::to_string(&plan).unwrap());
        let service = setup.start().await;
        let stable = service.pid();
        signal(stable, Signal::HUP);
        service.line("event 1 phase 2 standby").await;
        // It says that it is ready when it has something to answer.
        let mut proxy = Pooled::connect(&service).await;
        let picked = async { while proxy.ask_as("").await != 2 {} };
        timeout(DEADLINE, picked).await.unwrap();
        let candidate = service.ready(2).await;
        Self {
            operator: Client::new(control),
            service,
            stable,
            candidate,
        }
    }

    async fn share(&self, percent: u8) {
        let share = Share::percent(percent);
        let reply = self.operator.ask(&Request::Share { share }).await.unwrap();
        assert!(matches!(reply, Reply::Done { .. }), "{reply:?}");
    }

    async fn promote(&self) {
        let promote = Request::Promote {
            wait: false,
            full: true,
        };
        let reply = self.operator.ask(&promote).await.unwrap();
        assert!(matches!(reply, Reply::Begun { .. }), "{reply:?}");
        self.service.line("event 1 committed 2 ").await;
    }

    async fn counts(&self) -> ForwardedCounts {
        self.forwarding().await.total
    }

    async fn forwarding(&self) -> ForwardingState {
        let reply = self.operator.ask(&Request::Status).await.unwrap();
        let Reply::Status(status) = reply else {
            panic!("{reply:?}")
        };
        let rollout = status.upgrade.unwrap().rollout.unwrap();
        assert_eq!(rollout.by, By::Request);
        rollout.forwarding.unwrap()
    }
}

impl Pooled {
    async fn connect(service: &Service) -> Self {
        Self(TcpStream::connect(service.web).await.unwrap())
    }

    async fn ask(&mut self, client: u32) -> u64 {
        self.ask_as(&format!("x-client: {client}\r\n")).await
    }

    /// The generation that answers.
    async fn ask_as(&mut self, client: &str) -> u64 {
        let request = format!("GET / HTTP/1.1\r\nhost: it\r\n{client}\r\n");
        self.0.write_all(request.as_bytes()).await.unwrap();
        let mut received = Vec::new();
        while !received.ends_with(b" hello\n") {
            let read = timeout(DEADLINE, self.0.read_buf(&mut received)).await;
            assert!(read.unwrap().unwrap() > 0);
        }
        let text = String::from_utf8(received).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        body.split_once(' ').unwrap().0.parse().unwrap()
    }

    async fn clients_of_the_candidate(&mut self) -> BTreeSet<u32> {
        let mut clients = BTreeSet::new();
        for client in 0..CLIENTS {
            if self.ask(client).await == 2 {
                clients.insert(client);
            }
        }
        clients
    }
}

#[tokio::test]
async fn on_one_kept_connection_the_share_is_within_binomial_error_and_no_client_changes_side() {
    let split = Split::begin(10).await;
    let mut proxy = Pooled::connect(&split.service).await;
    let (so_far, mut before) = (split.counts().await.accepted, BTreeSet::new());
    for percent in [10, 50] {
        split.share(percent).await;
        let candidates = proxy.clients_of_the_candidate().await;
        assert_eq!(candidates, proxy.clients_of_the_candidate().await);
        let (share, clients) = (f64::from(percent) / 100.0, f64::from(CLIENTS));
        let error = (candidates.len() as f64 / clients - share).abs();
        let error_max = 4.0 * (share * (1.0 - share) / clients).sqrt();
        eprintln!("{percent} %: {} of {CLIENTS} clients", candidates.len());
        assert!(error <= error_max, "{percent} %: {}", candidates.len());
        assert!(candidates.is_superset(&before), "{percent} %");
        before = candidates;
    }
    let counts = split.counts().await;
    assert_eq!(counts.accepted - so_far, 4 * u64::from(CLIENTS));
    assert_eq!(counts.picked, counts.begun);
    assert_eq!((counts.kept, counts.taken_back, counts.lost), (0, 0, 0));

    split.share(0).await;
    assert!(proxy.clients_of_the_candidate().await.is_empty());
}

#[tokio::test]
async fn a_candidate_with_half_of_the_mixed_load_takes_over_and_nobody_notices() {
    let split = Split::begin(50).await;
    let load = Load::start(split.service.web, Mix::standard());
    for generation in [1, 2] {
        load.until_answers(generation, 1_000, DEADLINE)
            .await
            .unwrap();
    }
    let counts = split.counts().await;
    assert_eq!((counts.taken_back, counts.lost), (0, 0));
    assert!(counts.begun >= 1_000, "{counts:?}");
    split.promote().await;
    more_answers(&load, 2).await;
    let report = load.stop().await;
    eprintln!("{counts:?}\n{report}");
    assert_no_failure(&report);
    gone(split.stable).await;
    split.service.assert_alone(split.candidate).await;
}

#[tokio::test]
async fn a_candidate_that_is_given_up_answers_what_it_has_and_nobody_notices() {
    let split = Split::begin(50).await;
    let load = Load::start(split.service.web, Mix::standard());
    load.until_answers(2, 500, DEADLINE).await.unwrap();
    signal(split.stable, Signal::USR2);
    split.service.line("event 1 aborted 2 ").await;
    gone(split.candidate).await;
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
    split.service.assert_alone(split.stable).await;
}

#[tokio::test]
async fn of_a_candidate_that_is_killed_only_requests_fail_that_it_had_begun() {
    let split = Split::begin(50).await;
    // All of them are in its hands for certain: the stable generation has passed their bodies on.
    let mut uploads = Vec::new();
    for _ in 0..16 {
        uploads.push(Upload::begin(split.service.web).await);
    }
    let load = split.service.load(1).await;
    more_answers(&load, 2).await;
    let begun = split.counts().await;
    signal(split.candidate, Signal::KILL);
    split.service.line("event 1 aborted 2 ").await;
    more_answers(&load, 1).await;
    let report = load.stop().await;
    eprintln!("{begun:?}\n{report}");
    // One of each client at most was under way. A client hears of it, and its connection stays.
    for kind in &report.kinds {
        let failed = report.failed(kind.kind, Failure::Status5xx)
            + report.failed(kind.kind, Failure::EofInsideResponse);
        assert_eq!(kind.failed(), failed, "{report}");
        assert!(failed <= 2, "{report}");
    }
    let mut kept = 0;
    for upload in uploads {
        match upload.finish().await {
            Ok(finished) => {
                assert_eq!(finished.generation, 1);
                kept += 1;
            }
            Err(error) => assert!(error.to_string().contains("HTTP/1.1 502 "), "{error}"),
        }
    }
    assert!((1..16).contains(&kept), "{kept}");
    split.service.assert_alone(split.stable).await;
}
