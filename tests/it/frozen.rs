//! What comes in the very moment of a rollback or a commit: one side is frozen there, so that the moment lasts.

use handover_load::{Load, Signal};

use crate::support::{
    Service, Setup, Tether, assert_no_failure, connections, eventually, freeze, gone, more_answers,
    signal, thaw,
};

const LONG_MS: u32 = 60_000;

/// An upgrade that is taken back, but whose successor has not heard of that yet.
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
        let setup = Setup::new()
            .with("TESTD_BAKE_MS", bake_ms)
            .with("TESTD_FLIP_MS", LONG_MS);
        let service = setup.start().await;
        let incumbent = service.pid();
        let load = service.load(1).await;
        signal(incumbent, Signal::HUP);
        let successor = service.ready(2).await;
        service.line("event 1 phase 2 baking").await;
        eventually("clients of the incumbent", || connections(incumbent), 0).await;
        more_answers(&load, 2).await;
        Self {
            service,
            load,
            incumbent,
            successor,
            _tether: Tether::of(incumbent),
        }
    }

    /// The successor is all that is left, and as good as any generation.
    async fn successor_serves_alone(self) {
        more_answers(&self.load, 2).await;
        assert_no_failure(&self.load.stop().await);
        self.service.assert_alone(self.successor).await;
        self.service.upgrade_again(self.successor).await;
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
