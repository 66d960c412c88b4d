//! Whatever a successor does wrong before it is ready, the incumbent serves as if nothing had happened, says why, keeps
//! nothing of it, and can upgrade again at once.

use std::net::TcpListener;

use handover_load::Signal;
use handover_load::process::descriptors;

use crate::support::{
    DEADLINE, Service, Setup, assert_no_failure, free_address, gone, more_answers, signal,
    successor, until_descriptors,
};

/// Spoils the next generation only, and expects all these words in the verdict.
async fn survives(setup: Setup, spoil: impl FnOnce(&Service), why: &[&str]) {
    let service = setup.start().await;
    let incumbent = service.pid();
    let before = descriptors(incumbent).unwrap();

    let load = service.load(1).await;
    spoil(&service);
    signal(incumbent, Signal::HUP);
    let verdict = service.line("event 1 aborted 2 ").await;
    for word in why {
        assert!(verdict.contains(word), "no {word:?} in: {verdict}");
    }
    assert!(verdict.contains("the incumbent serves on"), "{verdict}");
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
    service.assert_alone(incumbent).await;
    until_descriptors(incumbent, before).await;

    service.heal();
    service.upgrade(1, 3).await;
    service.assert_serving(3).await;
    gone(incumbent).await;
}

fn program(name: &'static str) -> impl FnOnce(&Service) {
    move |service| service.program(&successor(name))
}

fn plan(plan: &'static str) -> impl FnOnce(&Service) {
    move |service| service.plan(plan)
}

#[tokio::test]
async fn a_missing_program_leaves_the_incumbent_serving() {
    let why = ["starting", "as generation 2", "No such file"];
    survives(Setup::new(), program("none"), &why).await;
}

#[tokio::test]
async fn a_program_that_is_not_executable_leaves_the_incumbent_serving() {
    let why = ["as generation 2", "Permission denied"];
    survives(Setup::new(), program("not_executable"), &why).await;
}

#[tokio::test]
async fn a_program_of_a_wrong_format_leaves_the_incumbent_serving() {
    let why = ["as generation 2", "Exec format error"];
    survives(Setup::new(), program("wrong_format"), &why).await;
}

#[tokio::test]
async fn a_program_that_knows_nothing_of_handovers_leaves_the_incumbent_serving() {
    let why = ["exit status: 3", "no such database"];
    survives(Setup::new(), program("nobody_home.sh"), &why).await;
}

#[tokio::test]
async fn a_successor_that_exits_before_its_start_leaves_the_incumbent_serving() {
    let why = ["exit status: 7", "testd: before-start: exit"];
    survives(Setup::new(), plan("before-start=exit:7"), &why).await;
}

#[tokio::test]
async fn a_successor_that_exits_after_its_start_leaves_the_incumbent_serving() {
    let why = [
        "phase warming",
        "exit status: 4",
        "testd: after-start: exit",
    ];
    survives(Setup::new(), plan("after-start=exit:4"), &why).await;
}

#[tokio::test]
async fn a_successor_that_panics_leaves_the_incumbent_serving() {
    let why = ["phase warming", "exit status: 101", "as planned"];
    survives(Setup::new(), plan("before-ready=panic"), &why).await;
}

#[tokio::test]
async fn a_successor_that_aborts_leaves_the_incumbent_serving() {
    let why = ["phase warming", "signal: 6"];
    survives(Setup::new(), plan("before-ready=abort"), &why).await;
}

#[tokio::test]
async fn a_successor_that_never_gets_ready_leaves_the_incumbent_serving() {
    let why = [
        "phase warming",
        "did not get ready in time",
        "signal: 9",
        "testd: before-ready: hang",
    ];
    let setup = Setup::new().with("TESTD_START_MS", 2000);
    survives(setup, plan("before-ready=hang"), &why).await;
}

#[tokio::test]
async fn a_successor_that_never_speaks_leaves_the_incumbent_serving() {
    let why = ["phase launching", "did not say hello in time", "signal: 9"];
    let setup = Setup::new().with("TESTD_START_MS", 2000);
    survives(setup, plan("before-start=hang"), &why).await;
}

#[tokio::test]
async fn a_successor_that_speaks_garbage_leaves_the_incumbent_serving() {
    let why = ["phase launching", "signal: 9", "garbage"];
    survives(Setup::new(), program("garbage.sh"), &why).await;
}

#[tokio::test]
async fn a_successor_of_a_future_version_leaves_the_incumbent_serving() {
    let why = ["it speaks protocol versions 7 to 9", "signal: 9"];
    survives(Setup::new(), program("future.sh"), &why).await;
}

#[tokio::test]
async fn a_successor_that_answers_out_of_turn_leaves_the_incumbent_serving() {
    let why = ["it said \"started\" out of turn", "signal: 9"];
    survives(Setup::new(), program("out_of_turn.sh"), &why).await;
}

#[tokio::test]
async fn a_successor_that_closes_the_channel_and_lives_on_leaves_the_incumbent_serving() {
    let why = ["it closed the channel", "signal: 9"];
    let setup = Setup::new().with("TESTD_EXIT_MS", 200);
    survives(setup, program("closes_channel.sh"), &why).await;
}

#[tokio::test]
async fn a_successor_that_claims_a_name_twice_leaves_the_incumbent_serving() {
    let why = ["claiming \"web\"", "claimed already", "exit status: 1"];
    survives(Setup::new(), plan("claim-again=web"), &why).await;
}

#[tokio::test]
async fn a_successor_whose_port_is_taken_leaves_the_incumbent_serving() {
    let taken = TcpListener::bind(free_address()).unwrap();
    let address = taken.local_addr().unwrap();
    let plan = |service: &Service| service.plan(&format!("listen={address}"));
    let address = address.to_string();
    let why = ["\"web\"", &address, "Address already in use"];
    survives(Setup::new(), plan, &why).await;
}

#[tokio::test]
async fn a_successor_without_room_for_the_sockets_leaves_the_incumbent_serving() {
    let why = ["phase offering"];
    let setup = Setup::new().with("TESTD_MORE", 200);
    survives(setup, program("few_descriptors.sh"), &why).await;
}

#[tokio::test]
async fn a_successor_that_asks_for_more_time_gets_it() {
    let service = Setup::new().with("TESTD_START_MS", 1000).start().await;
    service.plan("extend=60000\nbefore-ready=wait:1500");
    service.upgrade(1, 2).await;
    service.assert_serving(2).await;
}

#[tokio::test]
async fn a_rollout_of_a_good_successor_after_many_bad_ones_keeps_nothing_of_them() {
    let service = Setup::new().start().await;
    let incumbent = service.pid();
    let before = descriptors(incumbent).unwrap();
    service.plan("before-ready=exit:9");
    for failed in 2..12 {
        signal(incumbent, Signal::HUP);
        service.line(&format!("event 1 aborted {failed} ")).await;
    }
    service.assert_alone(incumbent).await;
    until_descriptors(incumbent, before).await;
    service.heal();
    service.upgrade(1, 12).await;
    service.assert_serving(12).await;
    service
        .server
        .wait_for_line("left 1", DEADLINE)
        .await
        .unwrap();
}
