//! What a generation leaves to the next beside its sockets.

use handover_load::Signal;

use crate::support::{Setup, answer, gone, signal};

#[tokio::test]
async fn a_counter_passed_at_the_flip_is_exact_and_one_passed_at_the_offer_is_older() {
    let service = Setup::new().with("TESTD_STATE", 1).start().await;
    service.plan("before-ready=hold");
    for count in 1..=5 {
        assert_eq!(service.get("/count").await, answer(1, &count.to_string()));
    }
    signal(service.pid(), Signal::HUP);
    let successor = service.held("before-ready").await;
    for count in 6..=9 {
        assert_eq!(service.get("/count").await, answer(1, &count.to_string()));
    }
    signal(successor, Signal::USR1);
    service.line("passed offered Some(5) flipped Some(9)").await;
    service.ready(2).await;
    for count in 10..=12 {
        assert_eq!(service.get("/count").await, answer(2, &count.to_string()));
    }
    service.line("event 1 committed 2 ").await;
    service.heal();
    service.upgrade(2, 3).await;
    service
        .line("passed offered Some(12) flipped Some(12)")
        .await;
    assert_eq!(service.get("/count").await, answer(3, "13"));
}

#[tokio::test]
async fn a_state_of_the_flip_that_is_more_than_a_channel_holds_arrives_whole() {
    let setup = Setup::new()
        .with("TESTD_FLIP_BLOBS", MANY)
        .with("TESTD_FLIP_MS", 20_000);
    let service = setup.start().await;
    service.upgrade(1, 2).await;
    service
        .line(&format!("{MANY} of {MANY} blobs were passed"))
        .await;
    service.assert_serving(2).await;
}

#[tokio::test]
async fn a_descriptor_passed_at_the_offer_reaches_the_successor() {
    let service = Setup::new().with("TESTD_STATE", 1).start().await;
    service.upgrade(1, 2).await;
    service.line("note Some(\"a note from 1\")").await;
    service.upgrade(2, 3).await;
    service.line("note Some(\"a note from 2\")").await;
}

#[tokio::test]
async fn a_counter_is_counted_on_after_a_successor_that_never_served() {
    let service = Setup::new().with("TESTD_STATE", 1).start().await;
    assert_eq!(service.get("/count").await, answer(1, "1"));
    service.plan("before-ready=exit:1");
    signal(service.pid(), Signal::HUP);
    service.line("event 1 aborted 2 ").await;
    assert_eq!(service.get("/count").await, answer(1, "2"));
    service.heal();
    service.upgrade(1, 3).await;
    assert_eq!(service.get("/count").await, answer(3, "3"));
}

#[tokio::test]
async fn standard_error_works_in_every_generation_after_its_incumbent_is_gone() {
    let service = Setup::new().start().await;
    assert_eq!(service.get("/say?one").await, answer(1, "said"));
    service.line("one").await;
    service.upgrade(1, 2).await;
    gone(service.pid()).await;
    assert_eq!(service.get("/say?two").await, answer(2, "said"));
    service.line("two").await;
    let second = service.ready(2).await;
    service.upgrade(2, 3).await;
    gone(second).await;
    assert_eq!(service.get("/say?three").await, answer(3, "said"));
    service.line("three").await;
}

#[tokio::test]
async fn standard_error_works_in_a_successor_whose_incumbent_was_killed() {
    for setup in [
        Setup::new().standby(),
        Setup::new().with("TESTD_BAKE_MS", 60_000),
    ] {
        let service = setup.start().await;
        signal(service.pid(), Signal::HUP);
        let far = if service.standby { "standby" } else { "baking" };
        service.line(&format!("event 1 phase 2 {far}")).await;
        signal(service.pid(), Signal::KILL);
        service.ready(2).await;
        assert_eq!(service.get("/say?alone").await, answer(2, "said"));
        service.line("alone").await;
    }
}

#[tokio::test]
async fn what_a_successor_says_while_it_starts_reaches_the_log() {
    let service = Setup::new().start().await;
    service.plan("before-ready=wait:1");
    service.upgrade(1, 2).await;
    service.line("before-ready").await;
}

/// Together longer than the kernel lets a socket hold (net.core.wmem_default, socket(7)), and fewer than the descriptors
/// that a process may have.
const MANY: usize = 800;
