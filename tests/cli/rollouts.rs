//! Rollouts by the operator's commands: steps, pauses, shares, and who decides.

use handover::control::{Condition, Status};
use handover::rollout::{By, PauseReason, Share, Stage};
use serde_json::Value;

use crate::operated::Operated;
use crate::support::Setup;

/// Steps that last until somebody ends them.
const CANARY: [&str; 10] = [
    "upgrade",
    "--strategy",
    "canary",
    "--steps",
    "5,50",
    "--step-min",
    "1h",
    "--bake",
    "1h",
    "--no-wait",
];

async fn shifting(more: &[&str]) -> Operated {
    let operated = Operated::start(Setup::new()).await;
    operated
        .run(&[&CANARY[..], more].concat())
        .await
        .assert_code(0);
    let line = "event 1 Stage { successor: 2, stage: Shifting";
    operated.service.line(line).await;
    operated
}

fn rollout(status: &Status) -> &handover::control::RolloutState {
    let upgrade = status.upgrade.as_ref().unwrap();
    upgrade.rollout.as_ref().unwrap()
}

#[tokio::test]
async fn a_canary_has_the_steps_that_were_asked_for_and_is_promoted_step_by_step() {
    let operated = shifting(&[]).await;
    let status = operated.status().await;
    let first = &rollout(&status).explanation;
    assert_eq!(
        (first.stage, first.step, first.share),
        (Stage::Shifting, (1, 2), Share::percent(5))
    );
    assert_eq!(rollout(&status).takes_ms, Some(3_600_000));
    let ran = operated.run(&["explain"]).await;
    ran.assert_code(0);
    ran.assert_says(&["shifting at 5 %, step 1 of 2, 0 of 300 requests"]);
    operated.run(&["promote", "--no-wait"]).await.assert_code(0);
    let status = operated.status().await;
    assert_eq!(rollout(&status).explanation.share, Share::percent(50));
    operated.run(&["abort"]).await.assert_code(0);
    operated.service.assert_serving(1).await;
}

#[tokio::test]
async fn promote_full_skips_every_step_and_the_bake_and_ends_with_0() {
    let operated = shifting(&[]).await;
    let ran = operated.run(&["promote", "--full"]).await;
    ran.assert_code(0);
    ran.assert_says(&["1 -> 2 committed", "promoted all the way"]);
    operated.service.assert_serving(2).await;
}

#[tokio::test]
async fn pause_holds_a_rollout_and_resume_lets_it_go_and_each_is_refused_with_2_where_it_is_so_already()
 {
    let operated = shifting(&[]).await;
    operated.run(&["resume"]).await.assert_code(2);
    let (code, done) = operated.json(&["pause"]).await;
    assert_eq!((code, &done["generation"]), (0, &2.into()));
    let status = operated.status().await;
    assert_eq!(status.condition, Condition::Paused);
    let pause = rollout(&status).pause.unwrap();
    assert_eq!(pause.reason, PauseReason::Manual);
    let ran = operated.run(&["status"]).await;
    ran.assert_says(&["paused      by the operator, until somebody decides"]);
    let ran = operated.run(&["pause"]).await;
    ran.assert_code(2);
    ran.assert_says(&["paused already"]);
    operated.run(&["resume"]).await.assert_code(0);
    assert_eq!(operated.status().await.condition, Condition::Progressing);
    operated.run(&["abort"]).await.assert_code(0);
    for command in ["pause", "resume"] {
        let ran = operated.run(&[command]).await;
        ran.assert_code(2);
        ran.assert_says(&["no upgrade is under way"]);
    }
}

#[tokio::test]
async fn a_share_by_hand_is_given_and_holds_and_all_of_it_is_refused_with_2() {
    let operated = shifting(&[]).await;
    operated.run(&["share", "25"]).await.assert_code(0);
    let status = operated.status().await;
    assert_eq!(rollout(&status).explanation.share, Share::percent(25));
    assert_eq!(status.condition, Condition::Paused);
    let (_, json) = operated.json(&["status"]).await;
    let rollout = &json["status"]["upgrade"]["rollout"];
    let rollout = match rollout {
        Value::Null => &json["upgrade"]["rollout"],
        rollout => rollout,
    };
    assert_eq!(rollout["forwarding"]["desired"], 2_500, "{json}");
    assert_eq!(rollout["by"], "client");
    let ran = operated.run(&["share", "100"]).await;
    ran.assert_code(2);
    ran.assert_says(&["promote it"]);
    operated.run(&["share", "101"]).await.assert_code(1);
    operated.run(&["abort"]).await.assert_code(0);
    operated.run(&["share", "5"]).await.assert_code(2);
}

#[tokio::test]
async fn the_flags_of_an_upgrade_are_its_plan_and_wrong_ones_end_with_1() {
    let plan = [
        "--by",
        "connection",
        "--include",
        "10.0.0.0/8",
        "--exclude",
        "127.0.0.1/32",
        "--promotion",
        "by-hand",
        "--units-min",
        "7",
        "--step-deadline",
        "2h",
        "--unguarded",
    ];
    let operated = shifting(&plan).await;
    let status = operated.status().await;
    assert_eq!(rollout(&status).by, By::Connection);
    assert_eq!(rollout(&status).explanation.units_min, 7);
    operated.run(&["abort"]).await.assert_code(0);
    for wrong in [
        ["--steps", "5,much"],
        ["--by", "moon"],
        ["--include", "10.0.0.0/99"],
        ["--bake", "soon"],
        ["--promotion", "maybe"],
    ] {
        let ran = operated.run(&[&["upgrade"], &wrong[..]].concat()).await;
        ran.assert_code(1);
    }
}

#[tokio::test]
async fn a_canary_without_traffic_pauses_with_6_and_its_abort_ends_with_0() {
    let operated = Operated::start(Setup::new()).await;
    let silent = [
        "upgrade",
        "--strategy",
        "canary",
        "--steps",
        "50",
        "--step-min",
        "10ms",
        "--step-deadline",
        "20ms",
    ];
    let (code, paused) = operated.json(&silent).await;
    assert_eq!((code, &paused["reply"]), (6, &"paused".into()), "{paused}");
    assert_eq!(paused["rollout"]["pause"]["reason"], "not_enough_data");
    operated.run(&["abort"]).await.assert_code(0);
    operated.service.assert_serving(1).await;
}

#[tokio::test]
async fn blue_green_by_flags_is_promoted_by_itself_with_0() {
    let operated = Operated::start(Setup::new()).await;
    let by_itself = [
        "upgrade",
        "--strategy",
        "blue-green",
        "--promotion",
        "automatic",
        "--unguarded",
        "--units-min",
        "0",
        "--bake",
        "10ms",
        "--automatic",
    ];
    operated.run(&by_itself).await.assert_code(0);
    operated.service.assert_serving(2).await;
}
