//! A contraction waits for everybody who could miss what it drops, and says for whom.

use std::fs;

use handover_load::Signal;

use crate::operated::Operated;
use crate::rig::{
    Database, aborts, assert_refused, contract, release, replaced, state, until, until_alone,
};
use crate::support::{Upload, gone, signal};

#[tokio::test]
async fn a_contraction_waits_for_a_download_of_an_older_generation_and_runs_once_though_ten_ask() {
    let database = Database::new();
    let of = database.start("web1").await;
    let upload = Upload::begin(of.service.web).await;
    release(&of, 1, "2:2").await;
    until(&of, "generation 1 drains", |state| {
        state.generations.iter().any(|it| it.state == "draining")
    })
    .await;
    let refused = contract(&of, 2).await;
    assert_refused(
        &refused,
        &["web1 generation 1 (draining) knows schema 1 only"],
    );
    assert_eq!(database.columns(), ["after", "before", "id"]);
    assert_eq!(upload.finish().await.unwrap().generation, 1);
    until_alone(&of).await;

    let dry = of.run(&["schema", "contract", "2"]).await;
    assert_eq!(dry.code, 0, "{dry:?}");
    assert!(dry.stdout.contains("would be contracted to"), "{dry:?}");
    assert_eq!(database.record(), (2, 0, None, None));
    assert_eq!(database.columns(), ["after", "before", "id"]);

    let mut asking: Vec<_> = (0..10)
        .map(|_| {
            of.program(&["schema", "contract", "2", "--confirm"])
                .output()
        })
        .map(tokio::spawn)
        .collect();
    let mut done = 0;
    for asked in asking.drain(..) {
        let output = asked.await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        done += usize::from(said.contains("is contracted to now"));
    }
    assert!(done >= 1);
    // The statement fails where the column is gone, so it has run once.
    assert_eq!(database.record(), (2, 2, None, None));
    assert_eq!(database.columns(), ["after", "id"]);
}

#[tokio::test]
async fn a_contraction_waits_for_a_download_of_a_generation_that_has_declared_no_schema() {
    let database = Database::new();
    let setup = database.setup("web1");
    fs::write(setup.room.path().join("plan"), "schema=none").unwrap();
    let of = Operated::start(setup).await;
    let upload = Upload::begin(of.service.web).await;
    release(&of, 1, "2:2").await;
    let refused = contract(&of, 2).await;
    assert_refused(
        &refused,
        &["web1 generation 1 (draining) knows schema 0 only"],
    );
    assert_eq!(database.columns(), ["after", "before", "id"]);
    assert_eq!(upload.finish().await.unwrap().generation, 1);
    until_alone(&of).await;
    assert_eq!(contract(&of, 2).await.code, 0);
}

#[tokio::test]
async fn a_contraction_waits_for_the_end_of_the_bake_and_for_a_candidate_in_standby() {
    let database = Database::new();
    let setup = database.setup("web1").with("TESTD_BAKE_MS", 60_000);
    let of = Operated::start(setup).await;
    of.service.plan("schema=2:2");
    assert_eq!(
        of.run(&["upgrade", "--no-wait", "--strategy", "blue-green"])
            .await
            .code,
        0
    );
    of.service.line("phase 2 standby").await;
    assert_refused(
        &contract(&of, 2).await,
        &[
            "an upgrade to generation 2 is under way here (standby)",
            "web1 generation 1 (active) knows",
        ],
    );
    assert_eq!(of.run(&["promote", "--no-wait"]).await.code, 0);
    of.service.line("event 1 phase 2 baking").await;
    until(&of, "generation 1 is warm", |state| {
        state.generations.iter().any(|it| it.state == "warm")
    })
    .await;
    assert_refused(
        &contract(&of, 2).await,
        &[
            "an upgrade to generation 2 is under way here (baking)",
            "web1 generation 1 (warm) knows",
        ],
    );
    assert_eq!(of.run(&["promote", "--full"]).await.code, 0);
    until_alone(&of).await;
    assert_eq!(contract(&of, 2).await.code, 0);
    assert_eq!(database.record(), (2, 2, None, None));
}

#[tokio::test]
async fn a_contraction_waits_until_whoever_knew_less_has_been_gone_for_long() {
    let database = Database::new();
    let setup = database
        .setup("web1")
        .with("TESTD_CONTRACT_AFTER_MS", 3_600_000);
    let of = Operated::start(setup).await;
    replaced(&of, 1, "2:2").await;
    assert_refused(&contract(&of, 2).await, &["has been gone for", "of 3600s"]);
    assert_eq!(database.record(), (2, 0, None, None));
}

#[tokio::test]
async fn without_its_store_a_service_serves_and_nothing_is_changed() {
    let database = Database::new();
    let of = database.start("web1").await;
    replaced(&of, 1, "2:2").await;
    let (there, away) = (database.path(), database.path().with_extension("away"));
    fs::rename(&there, &away).unwrap();
    // Nothing can be opened there, and nothing made.
    fs::create_dir(&there).unwrap();

    for wish in [
        &["schema", "contract", "2", "--confirm"][..],
        &["schema", "expand"],
        &["schema", "activate", "3"],
        &["schema", "status"],
    ] {
        assert_refused(&of.run(wish).await, &["unable to open database file"]);
    }
    let upgraded = of.run(&["upgrade"]).await;
    assert_eq!(upgraded.code, 3, "{upgraded:?}");
    of.service.assert_serving(2).await;

    fs::remove_dir(&there).unwrap();
    fs::rename(&away, &there).unwrap();
    until(&of, "it is itself again", |state| {
        state.generations.len() == 1
    })
    .await;
    assert_eq!(database.record(), (2, 0, None, None));
    let contracted = contract(&of, 2).await;
    assert_eq!(contracted.code, 0, "{contracted:?}");
}

#[tokio::test]
async fn a_new_form_is_written_when_everybody_knows_it_and_contracted_to_when_everybody_has_heard()
{
    let database = Database::new();
    let of = database.start("web1").await;
    replaced(&of, 1, "2:2").await;
    assert_refused(
        &of.run(&["schema", "activate", "3"]).await,
        &[
            "there is no schema 3 yet",
            "web1 generation 2 (active) knows schema 2 only",
        ],
    );
    replaced(&of, 2, "3:2").await;
    assert_refused(
        &contract(&of, 3).await,
        &["schema 3 has not been activated"],
    );
    assert_eq!(of.run(&["schema", "activate", "3"]).await.code, 0);
    let sentence = "knows schema 2, and schema 3 is active";
    aborts(&of, "schema=2:2", sentence).await;
    until(&of, "it may be contracted", |state| {
        let gate = state.contractions.iter().find(|gate| gate.version == 3);
        gate.is_some_and(|gate| gate.blockers.is_empty())
    })
    .await;
    assert_eq!(contract(&of, 3).await.code, 0);
    assert_eq!(state(&of).await.active, 3);
    assert_eq!(database.record(), (3, 3, None, None));
}

#[tokio::test]
async fn a_drill_is_one_of_a_release_that_fits_and_changes_nothing() {
    let database = Database::new();
    let of = database.start("web1").await;
    let drilled = of.run(&["drill"]).await;
    assert_eq!(drilled.code, 0, "{drilled:?}");
    until(&of, "the candidate has left", |state| {
        state.generations.len() == 1 && state.generations[0].state == "active"
    })
    .await;
    assert_eq!(database.record(), (1, 0, None, None));
    let (_, status) = of.json(&["status"]).await;
    assert_eq!(status["schema"]["version"], 1);
}

#[tokio::test]
async fn a_service_that_declares_no_schema_says_so() {
    let of = Operated::start(crate::support::Setup::new()).await;
    let refused = of.run(&["schema", "status"]).await;
    assert_refused(&refused, &["this service declares no schema"]);
}

#[tokio::test]
async fn a_generation_that_is_stopped_leaves_the_record_and_one_that_was_killed_is_seen_to_be_gone()
{
    let database = Database::new();
    let of = database.start("web1").await;
    signal(of.service.pid(), Signal::TERM);
    of.service
        .server
        .wait_all_gone(crate::support::DEADLINE)
        .await
        .unwrap();
    let count = || -> u32 {
        let connection = database.connection();
        let sql = "SELECT count(*) FROM handover_generations";
        connection.query_one(sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(count(), 0);

    let of = database.start("web1").await;
    signal(of.service.pid(), Signal::KILL);
    gone(of.service.pid()).await;
    assert_eq!(count(), 1);
    let of = database.start("web1").await;
    assert_eq!(state(&of).await.generations.len(), 1);
}
