//! What comes in the very moment of a rollback or a commit: one side is frozen there, so that the moment lasts.

use handover_load::{Load, Signal};

use crate::support::{
    Asked, DEADLINE, Service, Setup, Tether, answer, assert_lost_only_what_was_in_flight,
    assert_no_failure, connections, duplicates, eventually, freeze, get, gone, more_answers,
    settled, signal, thaw,
};

const LONG_MS: u32 = 60_000;

/// An upgrade under load, in which one side has not heard yet what the other has decided.
struct Moment {
    service: Service,
    load: Load,
    incumbent: u32,
    successor: u32,
    _tether: Tether,
}

impl Moment {
    async fn of_rollback() -> Self {
        let baking = Self::in_the_bake(LONG_MS).await;
        freeze(baking.successor).await;
        signal(baking.incumbent, Signal::USR2);
        baking.service.line("event 1 phase 2 reverting").await;
        baking
    }

    /// Every client is with the successor.
    async fn in_the_bake(bake_ms: u32) -> Self {
        let baking = Self::early_in_the_bake(bake_ms).await;
        baking.clients_have_left_the_incumbent().await;
        baking
    }

    async fn early_in_the_bake(bake_ms: u32) -> Self {
        let setup = Setup::new()
            .with("TESTD_ROLLOUT", UNNOTICED)
            .with("TESTD_BAKE_MS", bake_ms)
            .with("TESTD_FLIP_MS", LONG_MS);
        let service = setup.start().await;
        let incumbent = service.pid();
        let load = service.load(1).await;
        signal(incumbent, Signal::HUP);
        let successor = service.ready(2).await;
        service.line("event 1 phase 2 baking").await;
        more_answers(&load, 2).await;
        Self {
            service,
            load,
            incumbent,
            successor,
            _tether: Tether::of(incumbent),
        }
    }

    /// Or wait for the successor.
    async fn clients_have_left_the_incumbent(&self) {
        let connections = || connections(self.incumbent);
        eventually("clients of the incumbent", connections, 0).await;
    }

    /// The bake is over, and the successor has not heard so yet.
    async fn of_commit() -> Self {
        // Clients may take longer to leave than the bake does.
        let baking = Self::early_in_the_bake(BAKE_MS).await;
        freeze(baking.successor).await;
        baking.clients_have_left_the_incumbent().await;
        baking.service.line("event 1 phase 2 committing").await;
        baking
    }

    /// The successor is all that is left, nobody has noticed, and it is as good as any generation.
    async fn successor_serves_alone(self) {
        more_answers(&self.load, 2).await;
        assert_no_failure(&self.load.stop().await);
        self.service.assert_alone(self.successor).await;
        self.service.upgrade_again(self.successor).await;
    }

    /// The incumbent serves on, and is as good as before.
    async fn incumbent_serves_alone(&self) {
        gone(self.successor).await;
        more_answers(&self.load, 1).await;
        self.service.assert_alone(self.incumbent).await;
        self.service.upgrade_again(self.incumbent).await;
    }

    async fn nobody_is_left(mut self) {
        let status = self.service.server.exit_status(DEADLINE).await.unwrap();
        assert!(status.success(), "{status}");
        self.service.server.wait_all_gone(DEADLINE).await.unwrap();
        assert!(get(self.service.web, "/").await.is_err());
    }
}

#[tokio::test]
async fn an_incumbent_killed_in_a_rollback_before_it_serves_again_is_replaced_by_the_successor() {
    let moment = Moment::of_rollback().await;
    signal(moment.incumbent, Signal::KILL);
    gone(moment.incumbent).await;
    thaw(moment.successor);
    moment.successor_serves_alone().await;
}

#[tokio::test]
async fn a_successor_killed_in_a_rollback_is_replaced_by_the_incumbent() {
    let moment = Moment::of_rollback().await;
    signal(moment.successor, Signal::KILL);
    let verdict = moment.service.line("event 1 rolled-back 2 ").await;
    assert!(verdict.contains("an operator asked for it"), "{verdict}");
    moment.incumbent_serves_alone().await;
    assert_lost_only_what_was_in_flight(&moment.load.stop().await);
}

#[tokio::test]
async fn a_stop_of_the_incumbent_in_a_rollback_ends_both_and_finishes_what_they_had_begun() {
    let moment = Moment::of_rollback().await;
    let waiting = Asked::begin(moment.service.web).await;
    signal(moment.incumbent, Signal::TERM);
    settled(moment.incumbent).await;
    thaw(moment.successor);
    let answered = waiting.answer().await.unwrap();
    assert_eq!(answered.text, "hello\n");
    moment.service.line("event 1 Draining").await;
    moment.nobody_is_left().await;
}

#[tokio::test]
async fn a_stop_of_the_successor_in_a_rollback_leaves_the_incumbent_serving() {
    let moment = Moment::of_rollback().await;
    signal(moment.successor, Signal::TERM);
    thaw(moment.successor);
    moment.service.line("event 1 rolled-back 2 ").await;
    moment.incumbent_serves_alone().await;
    assert_no_failure(&moment.load.stop().await);
}

#[tokio::test]
async fn a_stopped_successor_whose_incumbent_dies_unheard_answers_whoever_waits_before_it_leaves() {
    let moment = Moment::in_the_bake(LONG_MS).await;
    let Moment {
        service,
        load,
        incumbent,
        successor,
        _tether,
    } = moment;
    assert_no_failure(&load.stop().await);
    freeze(incumbent).await;
    let open = duplicates(successor);
    signal(successor, Signal::TERM);
    // An open gate has a second descriptor of its socket.
    eventually("its sockets", || duplicates(successor), open - 1).await;
    let waiting = Asked::begin(service.web).await;
    signal(incumbent, Signal::KILL);
    assert_eq!(waiting.answer().await.unwrap(), answer(2, "hello\n"));
    service.server.wait_all_gone(DEADLINE).await.unwrap();
    assert!(get(service.web, "/").await.is_err());
}

#[tokio::test]
async fn an_incumbent_killed_at_the_commit_is_replaced_by_the_successor() {
    let moment = Moment::of_commit().await;
    signal(moment.incumbent, Signal::KILL);
    gone(moment.incumbent).await;
    thaw(moment.successor);
    moment.successor_serves_alone().await;
}

#[tokio::test]
async fn a_successor_killed_at_the_commit_is_replaced_by_the_incumbent() {
    let moment = Moment::of_commit().await;
    signal(moment.successor, Signal::KILL);
    let verdict = moment.service.line("event 1 rolled-back 2 ").await;
    assert!(verdict.contains("phase committing"), "{verdict}");
    assert!(verdict.contains("signal: 9"), "{verdict}");
    moment.incumbent_serves_alone().await;
    assert_lost_only_what_was_in_flight(&moment.load.stop().await);
}

#[tokio::test]
async fn a_stop_of_the_incumbent_at_the_commit_ends_both_and_finishes_what_they_had_begun() {
    let moment = Moment::of_commit().await;
    let waiting = Asked::begin(moment.service.web).await;
    signal(moment.incumbent, Signal::TERM);
    settled(moment.incumbent).await;
    thaw(moment.successor);
    let answered = waiting.answer().await.unwrap();
    assert_eq!(answered.text, "hello\n");
    moment.nobody_is_left().await;
}

/// A successor that does not accept is not undone for it while the moment lasts.
const UNNOTICED: &str = r#"{"stall_after": {"secs": 60, "nanos": 0}}"#;
/// Time to freeze the successor in, and to wait for.
const BAKE_MS: u32 = 6_000;
