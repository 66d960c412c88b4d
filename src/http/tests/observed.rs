use http::StatusCode;

use super::*;
use crate::observe::{Observed, Snapshot};

/// A generation whose requests are counted; what is not found is a failure.
async fn observed() -> (Rig, Observed) {
    let observed = Observed::default();
    let layer = ObserveLayer::new(&observed)
        .generation(3)
        .failed_if(|status, _| status == StatusCode::NOT_FOUND);
    (Rig::new(server().observe(layer)).await, observed)
}

async fn until(observed: &Observed, is_so: impl Fn(Snapshot) -> bool) {
    within(async {
        while !is_so(observed.snapshot()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn requests_on_a_connection_are_counted_and_errors_once_for_a_client() {
    let (rig, observed) = observed().await;
    for _ in 0..2 {
        let mut client = rig.connect().await;
        for (path, status) in [("/", "200"), ("/nowhere", "404"), ("/nowhere", "404")] {
            client.get(path).await;
            assert!(client.response().await.head.contains(status));
        }
    }
    let Snapshot { counts, .. } = observed.snapshot();
    assert_eq!((counts.requests, counts.errors), (6, 1));
}

#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_of_a_request_is_no_error() {
    let (rig, observed) = observed().await;
    let busy = rig.busy().await;
    assert_eq!(observed.snapshot().in_flight, 1);
    drop(busy);
    until(&observed, |snapshot| snapshot.cancelled == 1).await;
    let snapshot = observed.snapshot();
    assert_eq!(
        (
            snapshot.in_flight,
            snapshot.counts.requests,
            snapshot.counts.errors
        ),
        (0, 0, 0)
    );
}

#[tokio::test]
async fn a_response_whose_body_is_still_being_sent_is_answered() {
    let (rig, observed) = observed().await;
    let mut client = rig.connect().await;
    client.get("/stream").await;
    client.head().await;
    let snapshot = observed.snapshot();
    assert_eq!((snapshot.in_flight, snapshot.counts.requests), (0, 1));
}

#[tokio::test]
async fn an_unobserved_server_counts_nothing_and_answers_nobody_who_asks() {
    let rig = Rig::new(server().unobserved()).await;
    let mut client = rig.connect().await;
    let request = "GET / HTTP/1.1\r\nHost: test\r\nx-handover: 1\r\n\r\n";
    client.send(request).await;
    assert!(
        !client
            .response()
            .await
            .head
            .contains("x-handover-generation")
    );
    let (rig, _) = observed().await;
    let mut client = rig.connect().await;
    client.send(request).await;
    assert!(
        client
            .response()
            .await
            .head
            .contains("x-handover-generation: 3\r\n")
    );
}
