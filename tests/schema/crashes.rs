//! What a crash leaves half done is finished, or is as if it had never been begun.

use handover_load::Signal;

use crate::operated::Operated;
use crate::rig::{Database, aborts, assert_refused, contract, release, replaced, state};
use crate::support::{gone, signal};

#[tokio::test]
async fn a_contraction_that_was_killed_between_floor_and_drop_is_finished_by_the_next_start() {
    let database = Database::new();
    let of = database.start("web1").await;
    replaced(&of, 1, "2:2\ncontract=hold").await;
    let _asking = of.begin(&["schema", "contract", "2", "--confirm"]);
    let contracting = of.service.held("contract").await;
    assert_eq!(database.record(), (2, 2, None, Some(2)));
    assert_eq!(database.columns(), ["after", "before", "id"]);
    signal(contracting, Signal::KILL);
    gone(contracting).await;

    // One that needs what is about to go never serves.
    let setup = database.setup("web1");
    let refused = Refused::start(setup).await;
    refused
        .says("knows schema 1, and the store has been contracted to 2")
        .await;
    assert_eq!(database.record(), (2, 2, None, Some(2)));

    let setup = database.setup("web1");
    std::fs::write(setup.room.path().join("plan"), "schema=2:2").unwrap();
    let of = Operated::start(setup).await;
    assert_eq!(database.record(), (2, 2, None, None));
    assert_eq!(database.columns(), ["after", "id"]);
    assert_eq!(state(&of).await.contracting, None);
}

#[tokio::test]
async fn an_expansion_that_was_killed_outside_of_a_transaction_is_finished_by_the_next_start() {
    let database = Database::new();
    let of = database.start("web1").await;
    of.service.plan("schema=2:2\nexpand=hold");
    assert_eq!(of.run(&["upgrade", "--no-wait"]).await.code, 0);
    let expanding = of.service.held("expand").await;
    assert_eq!(state(&of).await.expanding, Some(2));
    signal(expanding, Signal::KILL);
    of.service.line("event 1 aborted 2 ").await;
    assert_eq!(database.record(), (1, 0, Some(2), None));
    of.service.assert_serving(1).await;

    of.service.plan("schema=2:2\nexpand=tell");
    let successor = of.service.upgrade(1, 3).await;
    of.service.line(&format!("ran expand in {successor}")).await;
    assert_eq!(database.record(), (2, 0, None, None));
}

#[tokio::test]
async fn an_expansion_that_was_killed_in_its_transaction_has_left_nothing() {
    let database = Database::new();
    let of = database.start("web1").await;
    of.service
        .plan("schema=2:2\nexpand=endless\nafter-start=hold");
    assert_eq!(of.run(&["upgrade", "--no-wait"]).await.code, 0);
    let expanding = of.service.held("after-start").await;
    signal(expanding, Signal::USR1);
    database.until_written().await;
    signal(expanding, Signal::KILL);
    of.service.line("event 1 aborted 2 ").await;
    assert_eq!(database.record(), (1, 0, None, None));
    assert_eq!(database.columns(), ["before", "id"]);
    of.service.plan("schema=2:2");
    of.service.upgrade(1, 3).await;
    assert_eq!(database.columns(), ["after", "before", "id"]);
}

#[tokio::test]
async fn an_expansion_that_fails_aborts_the_start_and_has_left_nothing() {
    let database = Database::new();
    let of = database.start("web1").await;
    aborts(&of, "schema=2:2\nexpand=fail", "expanding to schema 2").await;
    assert_eq!(database.record(), (1, 0, None, None));
    assert_eq!(database.columns(), ["before", "id"]);
    of.service.assert_serving(1).await;
}

#[tokio::test]
async fn an_expansion_by_hand_whose_step_fails_ends_with_4_and_has_left_nothing() {
    let database = Database::new();
    let of = database.start("web1").await;
    release(&of, 1, "2:1\nexpand=fail\nexpand-at=hand").await;
    let failed = of.run(&["schema", "expand"]).await;
    assert_eq!(failed.code, 4, "{failed:?}");
    assert!(
        failed.stderr.contains("expanding to schema 2"),
        "{failed:?}"
    );
    assert_eq!(database.record(), (1, 0, None, None));
    assert_eq!(database.columns(), ["before", "id"]);
}

#[tokio::test]
async fn a_contraction_whose_step_fails_ends_with_4_and_is_finished_when_that_is_repaired() {
    let database = Database::new();
    let of = database.start("web1").await;
    replaced(&of, 1, "2:2").await;
    // What uses the column keeps it from being dropped.
    let index = "CREATE INDEX busy ON thing (before)";
    database.connection().execute_batch(index).unwrap();
    let failed = contract(&of, 2).await;
    assert_eq!(failed.code, 4, "{failed:?}");
    assert!(failed.stderr.contains("dropping what lies below schema 2"));
    assert_eq!(database.record(), (2, 2, None, Some(2)));
    let status = of.run(&["schema", "status"]).await;
    let unfinished = "the contraction to schema 2 has not been finished";
    assert!(status.stdout.contains(unfinished), "{status:?}");
    // It is known to be unfinished, and whoever only asks has not changed anything.
    let (there, away) = (database.path(), database.path().with_extension("away"));
    std::fs::rename(&there, &away).unwrap();
    assert_refused(&of.run(&["schema", "status"]).await, &["asking the store"]);
    std::fs::rename(&away, &there).unwrap();

    database
        .connection()
        .execute_batch("DROP INDEX busy")
        .unwrap();
    assert_eq!(contract(&of, 2).await.code, 0);
    assert_eq!(database.record(), (2, 2, None, None));
    assert_eq!(database.columns(), ["after", "id"]);
}

#[tokio::test]
async fn a_drop_that_fails_again_and_again_keeps_nobody_from_starting() {
    let database = Database::new();
    let of = database.start("web1").await;
    replaced(&of, 1, "2:2").await;
    let index = "CREATE INDEX busy ON thing (before)";
    database.connection().execute_batch(index).unwrap();
    assert_eq!(contract(&of, 2).await.code, 4);
    let killed = of.service.ready(2).await;
    signal(killed, Signal::KILL);
    gone(killed).await;

    let setup = database.setup("web1");
    std::fs::write(setup.room.path().join("plan"), "schema=2:2").unwrap();
    let of = Operated::start(setup).await;
    of.service.assert_serving(1).await;
    assert_eq!(state(&of).await.contracting, Some(2));
    let unfinished = database.connection();
    unfinished.execute_batch("DROP INDEX busy").unwrap();
    assert_eq!(contract(&of, 2).await.code, 0);
    assert_eq!(database.record(), (2, 2, None, None));
    assert_eq!(database.columns(), ["after", "id"]);
}

/// A testd that does not come up.
struct Refused(handover_load::Server);

impl Refused {
    async fn start(setup: crate::support::Setup) -> Self {
        Self(handover_load::Server::spawn(setup.command).unwrap())
    }

    async fn says(&self, sentence: &str) {
        let line = self.0.wait_for_line(sentence, crate::support::DEADLINE);
        line.await.unwrap();
    }
}
