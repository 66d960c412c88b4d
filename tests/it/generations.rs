//! Several generations at once: who is alive, who is waited for, and who is in the PID file.

use std::fs;
use std::path::Path;

use handover_load::Signal;
use handover_load::process::is_alive;

use crate::support::{DEADLINE, Service, Setup, Upload, answer, get, gone, signal};

/// Generation 3 serves, and 1 and 2 have a request to finish.
async fn three_alive(setup: Setup) -> (Service, [Upload; 2], [u32; 3]) {
    let service = setup.start().await;
    let first = Upload::begin(service.web).await;
    let two = service.upgrade(1, 2).await;
    let second = Upload::begin(service.web).await;
    let three = service.upgrade(2, 3).await;
    let pids = [service.pid(), two, three];
    assert!(pids.into_iter().all(is_alive));
    (service, [first, second], pids)
}

#[tokio::test]
async fn a_fourth_generation_is_refused_with_the_list_of_elders() {
    let setup = Setup::new().with("TESTD_CAPACITY_MS", 100);
    let (service, [first, second], [one, two, three]) = three_alive(setup).await;
    let verdict = service.get("/upgrade").await;
    let elders = format!("too many generations are alive: 1 (pid {one}), 2 (pid {two})");
    assert_eq!(verdict.generation, 3);
    assert!(verdict.text.starts_with("Refused "), "{verdict:?}");
    assert!(verdict.text.contains(&elders), "{verdict:?}");
    service.line(&format!("event 3 refused {elders}")).await;

    assert_eq!(second.finish().await.unwrap(), answer(2, "upload 4\n"));
    assert_eq!(first.finish().await.unwrap(), answer(1, "upload 4\n"));
    gone(one).await;
    gone(two).await;
    service.line("event 3 ElderGone { generation: 1").await;
    service.line("event 3 ElderGone { generation: 2").await;
    // The number of the generation that was refused is not used again.
    service.upgrade(3, 5).await;
    service.assert_serving(5).await;
    gone(three).await;
}

#[tokio::test]
async fn a_fourth_generation_waits_for_an_elder_to_leave() {
    let (service, [first, second], [one, two, three]) = three_alive(Setup::new()).await;
    signal(three, Signal::HUP);
    let waits = service.line("an upgrade waits for one of these").await;
    assert!(
        waits.contains(&format!("1 (pid {one}), 2 (pid {two})")),
        "{waits}"
    );
    service.assert_serving(3).await;
    assert_eq!(first.finish().await.unwrap(), answer(1, "upload 4\n"));
    service.line("event 3 committed 4 ").await;
    service.assert_serving(4).await;
    assert!(!is_alive(one) && is_alive(two));
    assert_eq!(second.finish().await.unwrap(), answer(2, "upload 4\n"));
    gone(two).await;
    service.line("event 4 ElderGone { generation: 2").await;
}

#[tokio::test]
async fn a_generation_is_gone_when_its_last_request_ends() {
    let mut service = Setup::new().start().await;
    let requests = [
        Upload::begin(service.web).await,
        Upload::begin(service.web).await,
    ];
    service.upgrade(1, 2).await;
    service.line("event 1 Draining { in_flight: 2").await;
    for request in requests {
        assert!(is_alive(service.pid()));
        assert_eq!(request.finish().await.unwrap(), answer(1, "upload 4\n"));
    }
    let status = service.server.exit_status(DEADLINE).await.unwrap();
    assert!(status.success(), "{status}");
    service.assert_serving(2).await;
}

#[tokio::test]
async fn a_request_that_outstays_the_drain_deadline_is_cut_off_and_named() {
    let mut service = Setup::new().with("TESTD_DRAIN_MS", 200).start().await;
    let request = Upload::begin(service.web).await;
    service.upgrade(1, 2).await;
    assert!(
        service
            .server
            .exit_status(DEADLINE)
            .await
            .unwrap()
            .success()
    );
    let drained = service.line("event 1 Drained").await;
    assert!(drained.contains("http1 127.0.0.1:"), "{drained}");
    assert!(request.finish().await.is_err());
}

/// Long enough to stop a successor in, short enough to wait for.
const BAKE_MS: u32 = 6_000;
/// It never leaves by itself, and none of the others has so short a deadline.
const HANGS: &str = "hard-stop=100\nbefore-leave=hang";

#[tokio::test]
async fn an_elder_that_hangs_is_killed_at_its_own_hard_stop_whatever_that_of_the_others_is() {
    let setup = Setup::new().with("TESTD_EXIT_MS", 100);
    let service = setup.start().await;
    let first = Upload::begin(service.web).await;
    service.plan(HANGS);
    let two = service.upgrade(1, 2).await;
    let second = Upload::begin(service.web).await;
    service.heal();
    signal(two, Signal::HUP);
    let three = service.ready(3).await;
    service
        .line("generation 2 outstayed its hard stop and was killed")
        .await;
    service.line("event 3 ElderGone { generation: 2").await;
    assert!(second.finish().await.is_err());
    assert_eq!(first.finish().await.unwrap(), answer(1, "upload 4\n"));
    service.line("event 3 ElderGone { generation: 1").await;
    service.assert_alone(three).await;
}

#[tokio::test]
async fn an_elder_that_hangs_is_killed_at_its_own_hard_stop_by_a_generation_that_came_later() {
    let setup = Setup::new().with("TESTD_EXIT_MS", 100);
    // Long enough for the second generation to be gone by then.
    fs::write(
        setup.room.path().join("plan"),
        "hard-stop=2000\nbefore-leave=hang",
    )
    .unwrap();
    let service = setup.start().await;
    service.heal();
    let two = service.upgrade(1, 2).await;
    service.upgrade(2, 3).await;
    gone(two).await;
    let killed = service.line("generation 1 outstayed its hard stop").await;
    assert!(killed.starts_with("event 3 "), "{killed}");
    gone(service.pid()).await;
}

#[tokio::test]
async fn a_successor_that_hangs_after_its_stop_is_killed_at_its_own_hard_stop() {
    let setup = Setup::new()
        .with("TESTD_EXIT_MS", 100)
        .with("TESTD_BAKE_MS", 60_000);
    let service = setup.start().await;
    service.plan(HANGS);
    signal(service.pid(), Signal::HUP);
    let successor = service.ready(2).await;
    service.line("event 1 phase 2 baking").await;
    let request = Upload::begin(service.web).await;
    signal(successor, Signal::TERM);
    service.line("event 1 rolled-back 2 ").await;
    service
        .line("generation 2 outstayed its hard stop and was killed")
        .await;
    assert!(request.finish().await.is_err());
    service.assert_serving(1).await;
    service.assert_alone(service.pid()).await;
}

#[tokio::test]
async fn an_upgrade_from_code_gets_its_verdict_as_a_value() {
    let service = Setup::new().start().await;
    let verdict = service.get("/upgrade").await;
    let successor = service.ready(2).await;
    let upgraded = format!("Upgraded {{ generation: 2, pid: {successor}, ");
    assert_eq!(verdict.generation, 1);
    assert!(verdict.text.starts_with(&upgraded), "{verdict:?}");

    service.plan("before-ready=exit:7");
    let verdict = service.get("/upgrade").await;
    assert_eq!(verdict.generation, 2);
    assert!(verdict.text.starts_with("Aborted "), "{verdict:?}");
    for word in [
        "exit status: 7",
        "testd: before-ready: exit",
        "the incumbent serves on",
    ] {
        assert!(verdict.text.contains(word), "{verdict:?}");
    }
    service.assert_serving(2).await;
}

#[tokio::test]
async fn an_upgrade_from_code_during_another_one_is_refused() {
    let service = Setup::new().with("TESTD_BAKE_MS", 60_000).start().await;
    let first = tokio::spawn(get(service.web, "/upgrade"));
    service.line("event 1 phase 2 baking").await;
    signal(service.pid(), Signal::HUP);
    service
        .line("event 1 refused an upgrade is under way (baking)")
        .await;
    let successor = service.ready(2).await;
    signal(successor, Signal::KILL);
    let verdict = first.await.unwrap().unwrap();
    assert!(verdict.text.starts_with("RolledBack "), "{verdict:?}");
    assert!(verdict.text.contains("signal: 9"), "{verdict:?}");
}

#[tokio::test]
async fn the_pid_file_names_the_incumbent_after_abort_rollback_success_and_is_gone_after_the_stop()
{
    let room = tempfile::tempdir().unwrap();
    let file = room.path().join("testd.pid");
    let named = || named_in(&file);
    let setup = Setup::new()
        .with("TESTD_PID_FILE", file.display())
        .with("TESTD_BAKE_MS", BAKE_MS);
    let service = setup.start().await;
    assert_eq!(named(), service.pid());

    service.plan("before-ready=exit:1");
    signal(service.pid(), Signal::HUP);
    service.line("event 1 aborted 2 ").await;
    assert_eq!(named(), service.pid());

    service.heal();
    signal(service.pid(), Signal::HUP);
    service.line("event 1 phase 3 baking").await;
    assert_eq!(named(), service.pid());
    let successor = service.ready(3).await;
    signal(successor, Signal::TERM);
    service.line("event 1 rolled-back 3 ").await;
    gone(successor).await;
    assert_eq!(named(), service.pid());

    let successor = service.upgrade(1, 4).await;
    assert_eq!(named(), successor);
    gone(service.pid()).await;
    assert_eq!(named(), successor);

    signal(successor, Signal::TERM);
    service.server.wait_all_gone(DEADLINE).await.unwrap();
    assert_eq!(fs::read_dir(room.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn the_pid_file_names_a_successor_whose_incumbent_was_killed() {
    let room = tempfile::tempdir().unwrap();
    let file = room.path().join("testd.pid");
    let setup = Setup::new()
        .with("TESTD_PID_FILE", file.display())
        .with("TESTD_BAKE_MS", 60_000);
    let service = setup.start().await;
    signal(service.pid(), Signal::HUP);
    let successor = service.ready(2).await;
    signal(service.pid(), Signal::KILL);
    service.line("event 2 Incumbent").await;
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{successor}\n"));
}

/// The process that a pid file names.
fn named_in(file: &Path) -> u32 {
    fs::read_to_string(file).unwrap().trim().parse().unwrap()
}
