//! A process that is frozen in the middle of a step keeps everybody from theirs. They say so within their deadlines, and
//! serve.

use handover_load::Signal;

use crate::operated::Operated;
use crate::rig::{Database, aborts, assert_refused, contract, state, until_locked_by};
use crate::support::{freeze, gone, signal};

/// Two hosts, and the candidate of the second is to come to schema 2 in this way.
async fn expanding(database: &Database, how: &str) -> [Operated; 2] {
    // Whoever is to be frozen has all the time in the world.
    let patient = database.setup("web2").with("TESTD_STEP_MS", 600_000);
    let impatient = database.setup("web1").with("TESTD_STEP_MS", 500);
    let impatient = impatient.with("TESTD_LOCK_MS", 200);
    let [web1, web2] = [
        Operated::start(impatient).await,
        Operated::start(patient).await,
    ];
    web2.service
        .plan(&format!("schema=2:2\nexpand={how}\nafter-start=hold"));
    assert_eq!(web2.run(&["upgrade", "--no-wait"]).await.code, 0);
    [web1, web2]
}

/// Once it is gone.
async fn expands(web1: &Operated, web2: &Operated, frozen: u32) {
    signal(frozen, Signal::KILL);
    gone(frozen).await;
    web2.service.line("event 1 aborted 2 ").await;
    web1.service.plan("schema=2:2");
    web1.service.upgrade(1, 3).await;
    let state = state(web1).await;
    assert_eq!((state.version, state.expanding), (2, None));
}

#[tokio::test]
async fn beside_one_that_is_frozen_in_its_transaction_all_is_refused_in_time_and_everybody_serves()
{
    let database = Database::new();
    let [web1, web2] = expanding(&database, "endless").await;
    let frozen = web2.service.held("after-start").await;
    signal(frozen, Signal::USR1);
    until_locked_by(frozen).await;
    freeze(frozen).await;

    let reason = "database is locked";
    assert_refused(
        &contract(&web1, 2).await,
        &["contracting to schema 2", reason],
    );
    for wish in [
        &["schema", "activate", "3"][..],
        &["schema", "expunge", "web2", "--confirm"],
    ] {
        assert_refused(&web1.run(wish).await, &[reason]);
    }
    aborts(&web1, "schema=2:2", reason).await;
    for of in [&web1, &web2] {
        let warning = "the store of the schema cannot be asked";
        let warning = of.service.line(warning).await;
        assert!(warning.contains("this generation serves on"), "{warning}");
        of.service.assert_serving(1).await;
    }
    assert_eq!(database.record(), (1, 0, None, None));
    expands(&web1, &web2, frozen).await;
    assert_eq!(database.columns(), ["after", "before", "id"]);
}

#[tokio::test]
async fn beside_one_that_is_frozen_in_a_step_outside_of_a_transaction_no_other_step_begins() {
    let database = Database::new();
    let [web1, web2] = expanding(&database, "hold").await;
    let frozen = web2.service.held("after-start").await;
    signal(frozen, Signal::USR1);
    assert_eq!(web2.service.held("expand").await, frozen);
    freeze(frozen).await;

    aborts(
        &web1,
        "schema=2:2\nexpand=tell",
        "another process is at a step",
    )
    .await;
    assert!(!web1.service.server.log().contains("ran expand"));
    assert_eq!(database.record(), (1, 0, Some(2), None));
    web1.service.assert_serving(1).await;
    expands(&web1, &web2, frozen).await;
}
