//! Whoever is killed, and whenever: the other one serves, and only what the killed one had in flight is lost, which is
//! nothing where it does not serve.

use handover_load::process::descriptors;
use handover_load::{Load, Report, Signal};

use crate::support::{
    DEADLINE, Service, Setup, assert_lost_only_what_was_in_flight, assert_no_failure, connections,
    eventually, gone, more_answers, settled, signal, until_descriptors,
};

const LONG_MS: u32 = 60_000;

/// A service with an upgrade under way that goes no further than this.
struct Stuck {
    service: Service,
    load: Load,
    successor: u32,
    before: Vec<String>,
}

impl Stuck {
    /// The successor waits at this point of its plan.
    async fn at(point: &str) -> Self {
        let service = Setup::new().start().await;
        service.plan(&format!("{point}=hold"));
        let (before, load) = Self::begin(&service).await;
        let successor = service.held(point).await;
        Self {
            service,
            load,
            successor,
            before,
        }
    }

    async fn in_phase(phase: &str, setup: Setup) -> Self {
        let service = setup.start().await;
        let (before, load) = Self::begin(&service).await;
        service.line(&format!("event 1 phase 2 {phase}")).await;
        let live = service.server.live();
        let successor = live.into_iter().find(|pid| *pid != service.pid()).unwrap();
        Self {
            service,
            load,
            successor,
            before,
        }
    }

    async fn begin(service: &Service) -> (Vec<String>, Load) {
        let before = descriptors(service.pid()).unwrap();
        let load = service.load(1).await;
        signal(service.pid(), Signal::HUP);
        (before, load)
    }

    /// Before it had served, so that nobody notices.
    async fn kill_successor(self) {
        signal(self.successor, Signal::KILL);
        let verdict = self.service.line("event 1 aborted 2 ").await;
        assert!(verdict.contains("signal: 9"), "{verdict}");
        more_answers(&self.load, 1).await;
        assert_no_failure(&self.load.stop().await);
        let incumbent = self.service.pid();
        self.service.assert_alone(incumbent).await;
        until_descriptors(incumbent, self.before).await;
        self.service.heal();
        self.service.upgrade_again(incumbent).await;
    }

    /// With what its clients had in flight.
    async fn kill_incumbent(self) {
        let report = self.kill_incumbent_under_load().await;
        assert_lost_only_what_was_in_flight(&report);
    }

    /// Once its gates are shut and it has told every client to go elsewhere: nobody notices.
    async fn kill_idle_incumbent(self) {
        let incumbent = self.service.pid();
        eventually("clients of the incumbent", || connections(incumbent), 0).await;
        assert_no_failure(&self.kill_incumbent_under_load().await);
    }

    async fn kill_incumbent_under_load(self) -> Report {
        let incumbent = self.service.pid();
        signal(incumbent, Signal::KILL);
        gone(incumbent).await;
        // Where it is not held, nobody asked for this signal and it is only one more way to be killed.
        if self.service.server.log().contains("held ") {
            signal(self.successor, Signal::USR1);
        }
        more_answers(&self.load, 2).await;
        let report = self.load.stop().await;
        self.service.heal();
        assert_eq!(self.service.ready(2).await, self.successor);
        self.service.assert_alone(self.successor).await;
        self.service.upgrade_again(self.successor).await;
        report
    }
}

fn standby() -> Setup {
    Setup::new().standby()
}

fn flipping() -> Setup {
    Setup::new()
        .with("TESTD_FLIP_MS", LONG_MS)
        .with("TESTD_FLIP_HOLD_MS", 1000)
}

fn baking() -> Setup {
    Setup::new().with("TESTD_BAKE_MS", LONG_MS)
}

#[tokio::test]
async fn a_successor_killed_at_its_launch_is_not_missed() {
    Stuck::at("before-start").await.kill_successor().await;
}

#[tokio::test]
async fn a_successor_killed_with_the_sockets_is_not_missed() {
    Stuck::at("after-start").await.kill_successor().await;
}

#[tokio::test]
async fn a_successor_killed_while_it_warms_up_is_not_missed() {
    Stuck::at("before-ready").await.kill_successor().await;
}

#[tokio::test]
async fn a_successor_killed_in_standby_is_not_missed() {
    let stuck = Stuck::in_phase("standby", standby()).await;
    stuck.kill_successor().await;
}

#[tokio::test]
async fn a_successor_killed_in_the_middle_of_a_flip_is_not_missed() {
    let stuck = Stuck::in_phase("flipping", flipping()).await;
    stuck.kill_successor().await;
}

#[tokio::test]
async fn a_successor_killed_in_the_bake_is_replaced_by_the_incumbent() {
    let stuck = Stuck::in_phase("baking", baking()).await;
    more_answers(&stuck.load, 2).await;
    signal(stuck.successor, Signal::KILL);
    let verdict = stuck.service.line("event 1 rolled-back 2 ").await;
    assert!(verdict.contains("signal: 9"), "{verdict}");
    more_answers(&stuck.load, 1).await;
    assert_lost_only_what_was_in_flight(&stuck.load.stop().await);
    let incumbent = stuck.service.pid();
    stuck.service.assert_alone(incumbent).await;
    until_descriptors(incumbent, stuck.before).await;
    stuck.service.upgrade_again(incumbent).await;
}

#[tokio::test]
async fn a_successor_that_dies_by_itself_in_the_bake_is_replaced_by_the_incumbent() {
    let service = baking().start().await;
    service.plan("after-ready=abort-after:50");
    let load = service.load(1).await;
    signal(service.pid(), Signal::HUP);
    let verdict = service.line("event 1 rolled-back 2 ").await;
    assert!(verdict.contains("signal: 6"), "{verdict}");
    more_answers(&load, 1).await;
    assert_lost_only_what_was_in_flight(&load.stop().await);
    service.assert_alone(service.pid()).await;
}

#[tokio::test]
async fn an_incumbent_killed_at_the_launch_is_replaced_by_the_successor() {
    let mut stuck = Stuck::at("before-start").await;
    let incumbent = stuck.service.pid();
    // Nobody has the sockets but the incumbent, so nobody is served until the successor has bound its own.
    drop(stuck.load);
    // The successor may have come this far before the incumbent has greeted it, and would not know its number then.
    settled(incumbent).await;
    signal(incumbent, Signal::KILL);
    // Collected as well, so that its number means nobody any more.
    stuck.service.server.exit_status(DEADLINE).await.unwrap();
    signal(stuck.successor, Signal::USR1);
    assert_eq!(stuck.service.ready(2).await, stuck.successor);
    stuck.service.assert_serving(2).await;
    stuck.service.heal();
    stuck.service.upgrade_again(stuck.successor).await;
}

#[tokio::test]
async fn an_incumbent_killed_after_its_offer_is_replaced_by_the_successor() {
    Stuck::at("after-start").await.kill_incumbent().await;
}

#[tokio::test]
async fn an_incumbent_killed_while_the_successor_warms_up_is_replaced_by_it() {
    Stuck::at("before-ready").await.kill_incumbent().await;
}

#[tokio::test]
async fn an_incumbent_killed_in_standby_is_replaced_by_the_successor() {
    let stuck = Stuck::in_phase("standby", standby()).await;
    stuck.kill_incumbent().await;
}

#[tokio::test]
async fn an_incumbent_killed_in_the_middle_of_a_flip_is_replaced_by_the_successor() {
    let stuck = Stuck::in_phase("flipping", flipping()).await;
    stuck.kill_idle_incumbent().await;
}

#[tokio::test]
async fn an_incumbent_killed_in_the_bake_is_not_missed() {
    let stuck = Stuck::in_phase("baking", baking()).await;
    more_answers(&stuck.load, 2).await;
    stuck.kill_idle_incumbent().await;
}

#[tokio::test]
async fn an_incumbent_killed_while_it_drains_costs_only_what_it_had_in_flight() {
    let service = Setup::new().start().await;
    let request = crate::support::Upload::begin(service.web).await;
    let successor = service.upgrade(1, 2).await;
    signal(service.pid(), Signal::KILL);
    assert!(request.finish().await.is_err());
    service.line("event 2 ElderGone { generation: 1").await;
    service.assert_serving(2).await;
    service
        .server
        .wait_for_line(&format!("ready 2 pid {successor}"), DEADLINE)
        .await
        .unwrap();
}
