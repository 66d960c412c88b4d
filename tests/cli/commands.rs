//! Each command and each exit code.

use std::time::Duration;

use handover::control::{Condition, Verdict};
use handover_load::Signal;
use handover_load::process::is_alive;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use crate::operated::{Operated, ended, program, run};
use crate::support::{DEADLINE, Setup, Upload, gone, signal};

#[tokio::test]
async fn status_says_who_serves_what_and_since_when() {
    let setup = Setup::new().with("TESTD_BUILD", "a1b2c3");
    let operated = Operated::start(setup).await;
    let _upload = Upload::begin(operated.service.web).await;
    let ran = operated.run(&["status"]).await;
    ran.assert_code(0);
    let pid = format!("pid {}", operated.service.pid());
    let web = format!("web (tcp {})", operated.service.web);
    let said = [
        "generation 1 (incumbent for ",
        ", ready, ",
        &pid,
        &web,
        "build a1b2c3",
        "1 http1, oldest ",
    ];
    ran.assert_says(&said);
    assert!(
        !ran.stdout.contains('\u{1b}'),
        "colours without a terminal: {ran:?}"
    );

    let (code, status) = operated.json(&["status"]).await;
    assert_eq!(code, 0);
    assert_eq!(status["version"], 1);
    assert_eq!(status["reply"], "status");
    assert_eq!(status["role"], "incumbent");
    assert_eq!(status["pid"], operated.service.pid());
    assert_eq!(status["upgrade"], serde_json::Value::Null);
    assert_eq!(status["sockets"].as_array().unwrap().len(), 1);
    let classes = status["classes"].as_array().unwrap();
    let in_flight = |name: &str| classes.iter().find(|class| class["name"] == name);
    assert_eq!(in_flight("http1").unwrap()["in_flight"], 1);
    assert_eq!(
        in_flight("control"),
        None,
        "who asks is not what is in flight"
    );
}

#[tokio::test]
async fn upgrade_comes_back_with_0_when_the_successor_is_committed() {
    let operated = Operated::start(Setup::new()).await;
    let (code, verdict) = operated.json(&["upgrade"]).await;
    assert_eq!(code, 0, "{verdict}");
    let upgrade = &verdict["upgrade"];
    assert_eq!(verdict["reply"], "verdict");
    assert_eq!(upgrade["verdict"], "committed");
    assert_eq!(
        (&upgrade["from"], &upgrade["generation"]),
        (&1.into(), &2.into())
    );
    assert_eq!(upgrade["pid"], operated.service.ready(2).await);
    assert!(upgrade["flip_took_us"].as_u64().unwrap() > 0);
    assert_eq!(operated.status().await.generation, 2);
    let ran = operated.run(&["upgrade", "--wait"]).await;
    ran.assert_code(0);
    ran.assert_says(&["2 -> 3 committed", "flip "]);
}

#[tokio::test]
async fn upgrade_without_waiting_comes_back_with_the_number_of_the_successor() {
    let operated = Operated::start_with_a_bake().await;
    let (code, begun) = operated.json(&["upgrade", "--no-wait"]).await;
    assert_eq!((code, &begun["reply"]), (0, &"begun".into()));
    assert_eq!(begun["generation"], 2);
    operated.phase(1, 2, "baking").await;
    operated
        .run(&["status"])
        .await
        .assert_says(&["to generation 2: baking"]);
    let ran = operated.run(&["generations"]).await;
    ran.assert_says(&["incumbent\n", "successor, baking"]);
}

#[tokio::test]
async fn a_second_upgrade_is_refused_with_2() {
    let operated = Operated::start_with_a_bake().await;
    operated.run(&["upgrade", "--no-wait"]).await.assert_code(0);
    operated.phase(1, 2, "baking").await;
    let ran = operated.run(&["upgrade"]).await;
    ran.assert_code(2);
    ran.assert_says(&["an upgrade is under way (baking)"]);
    let (code, refusal) = operated.json(&["upgrade"]).await;
    assert_eq!((code, &refusal["kind"]), (2, &"refused".into()));
}

#[tokio::test]
async fn an_upgrade_to_a_bad_release_ends_with_3_and_is_explained_with_its_last_words() {
    let operated = Operated::start(Setup::new()).await;
    let ran = operated.run(&["explain"]).await;
    ran.assert_code(0);
    ran.assert_says(&["no upgrade is known"]);

    operated.service.plan("before-ready=exit:7");
    let ran = operated.run(&["upgrade"]).await;
    ran.assert_code(3);
    let said = [
        "1 -> 2 aborted (warming)",
        "exit status: 7",
        "testd: before-ready: exit",
        "generation 1, as before",
    ];
    ran.assert_says(&said);

    let (code, explained) = operated.json(&["explain"]).await;
    assert_eq!(code, 0);
    let upgrade = &explained["upgrade"];
    assert_eq!(upgrade["phase"], "warming");
    assert_eq!(upgrade["exit"], "exit status: 7");
    assert_eq!(upgrade["incumbent_serves"], true);
    let last_words = upgrade["last_words"].as_str().unwrap();
    assert!(
        last_words.contains("testd: before-ready: exit"),
        "{upgrade}"
    );
    operated.service.assert_serving(1).await;
}

#[tokio::test]
async fn an_upgrade_to_a_release_that_crashes_in_its_bake_ends_with_3_after_the_rollback() {
    let operated = Operated::start_with_a_bake().await;
    let upgrade = operated.begin(&["upgrade", "--json"]);
    operated.phase(1, 2, "baking").await;
    signal(operated.service.ready(2).await, Signal::KILL);
    let ran = ended(upgrade).await;
    ran.assert_code(3);
    let verdict = ran.json();
    assert_eq!(verdict["upgrade"]["verdict"], "rolled_back");
    assert_eq!(verdict["upgrade"]["phase"], "baking");
    operated.service.assert_serving(1).await;
}

#[tokio::test]
async fn a_wait_that_is_too_short_ends_with_5_and_the_upgrade_goes_on_until_it_is_rolled_back() {
    let operated = Operated::start_with_a_bake().await;
    let ran = operated.run(&["upgrade", "--timeout", "1ms"]).await;
    ran.assert_code(5);
    operated.phase(1, 2, "baking").await;
    operated.service.assert_serving(2).await;
    let ran = operated.run(&["rollback", "--reason", "too slow"]).await;
    ran.assert_code(0);
    ran.assert_says(&["1 -> 2 rolled back", "too slow"]);
    operated.service.assert_serving(1).await;
}

#[tokio::test]
async fn blue_green_ends_with_6_in_standby_and_a_promotion_ends_it_with_0() {
    let operated = Operated::start(Setup::new()).await;
    let blue_green = ["upgrade", "--strategy", "blue-green"];
    let briefly = ["--unguarded", "--units-min", "0", "--bake", "10ms"];
    let ran = operated.run(&[&blue_green[..], &briefly].concat()).await;
    ran.assert_code(6);
    ran.assert_says(&["generation 2 (pid ", "promote it, or abort"]);
    operated.service.assert_serving(1).await;
    assert_eq!(operated.status().await.upgrade.unwrap().phase, "standby");
    let ran = operated.run(&["promote"]).await;
    ran.assert_code(0);
    ran.assert_says(&["1 -> 2 committed"]);
    operated.service.assert_serving(2).await;
    // The strategy was that upgrade's alone.
    operated.run(&["upgrade"]).await.assert_code(0);
}

#[tokio::test]
async fn a_successor_that_stands_by_is_aborted_with_0() {
    let operated = Operated::start(Setup::new()).await;
    operated
        .run(&["upgrade", "--strategy", "blue-green"])
        .await
        .assert_code(6);
    let successor = operated.status().await.upgrade.unwrap().pid.unwrap();
    let ran = operated.run(&["abort"]).await;
    ran.assert_code(0);
    ran.assert_says(&["1 -> 2 aborted (standby)", "an operator aborted it"]);
    gone(successor).await;
    operated.service.assert_serving(1).await;
}

#[tokio::test]
async fn immediate_does_not_stand_by_where_the_builder_would() {
    let operated = Operated::start(Setup::new().standby()).await;
    let ran = operated.run(&["upgrade", "--strategy", "immediate"]).await;
    ran.assert_code(0);
    operated.service.assert_serving(2).await;
}

#[tokio::test]
async fn what_there_is_nothing_to_do_about_is_refused_with_2() {
    let operated = Operated::start_with_a_bake().await;
    for command in ["promote", "abort", "rollback"] {
        let ran = operated.run(&[command]).await;
        ran.assert_code(2);
        ran.assert_says(&["no upgrade is under way"]);
    }
    operated.run(&["upgrade", "--no-wait"]).await.assert_code(0);
    operated.phase(1, 2, "baking").await;
    let ran = operated.run(&["abort"]).await;
    ran.assert_code(2);
    ran.assert_says(&["only a rollback undoes that"]);
    operated.service.assert_serving(2).await;
}

#[tokio::test]
async fn an_upgrade_whose_incumbent_dies_ends_with_4_and_names_who_serves() {
    let operated = Operated::start_with_a_bake().await;
    let upgrade = operated.begin(&["upgrade"]);
    operated.phase(1, 2, "baking").await;
    signal(operated.service.pid(), Signal::KILL);
    let ran = ended(upgrade).await;
    ran.assert_code(4);
    ran.assert_says(&["gone without a verdict; generation 2 (pid "]);
}

#[tokio::test]
async fn an_upgrade_that_waits_for_an_elder_is_seen_and_can_be_aborted() {
    let operated = Operated::start(Setup::new().with("TESTD_GENERATIONS", 2)).await;
    let upload = Upload::begin(operated.service.web).await;
    operated.run(&["upgrade"]).await.assert_code(0);
    let waiting = operated.begin(&["upgrade"]);
    operated
        .service
        .line("an upgrade waits for one of these")
        .await;
    assert_eq!(operated.status().await.upgrade.unwrap().phase, "waiting");
    let ran = operated.run(&["abort", "--reason", "not today"]).await;
    ran.assert_code(0);
    let ran = ended(waiting).await;
    ran.assert_code(2);
    ran.assert_says(&["2 -> 3 refused", "not today"]);
    upload.finish().await.unwrap();
}

#[tokio::test]
async fn drain_shows_the_elders_and_waits_until_they_have_left() {
    let operated = Operated::start(Setup::new()).await;
    let upload = Upload::begin(operated.service.web).await;
    operated.run(&["upgrade"]).await.assert_code(0);
    let elder = format!("generation 1, pid {}, gone in ", operated.service.pid());
    operated
        .run(&["drain"])
        .await
        .assert_says(&["generation 2 serves: nothing", &elder]);
    operated
        .run(&["generations"])
        .await
        .assert_says(&["draining"]);
    operated
        .run(&["drain", "--wait", "--timeout", "1ms"])
        .await
        .assert_code(5);

    let waiting = operated.begin(&["drain", "--wait"]);
    upload.finish().await.unwrap();
    let ran = ended(waiting).await;
    ran.assert_code(0);
    ran.assert_says(&["no older generation is alive"]);
    assert!(!is_alive(operated.service.pid()));
}

#[tokio::test]
async fn a_wait_for_elders_goes_over_to_the_next_generation() {
    let operated = Operated::start(Setup::new().with("TESTD_GENERATIONS", 4)).await;
    let upload = Upload::begin(operated.service.web).await;
    operated.run(&["upgrade"]).await.assert_code(0);
    let waiting = operated.begin(&["drain", "--wait", "--json"]);
    operated.run(&["upgrade"]).await.assert_code(0);
    upload.finish().await.unwrap();
    let ran = ended(waiting).await;
    ran.assert_code(0);
    assert_eq!(ran.json()["generation"], 3);
}

#[tokio::test]
async fn history_has_the_upgrades_of_generations_that_are_gone() {
    let operated = Operated::start(Setup::new()).await;
    let (_, first) = operated.json(&["upgrade"]).await;
    operated.service.plan("before-ready=exit:7");
    let (_, second) = operated.json(&["upgrade"]).await;
    operated.service.heal();
    let (_, third) = operated.json(&["upgrade"]).await;
    gone(operated.service.pid()).await;
    let (code, history) = operated.json(&["history"]).await;
    assert_eq!(code, 0);
    let upgrades = history["upgrades"].as_array().unwrap();
    assert_eq!(upgrades.len(), 3, "{history}");
    assert_eq!(upgrades[1], second["upgrade"]);
    for (kept, told) in [
        (&upgrades[0], &first["upgrade"]),
        (&upgrades[2], &third["upgrade"]),
    ] {
        for field in [
            "generation",
            "from",
            "verdict",
            "pid",
            "asked_at_ms",
            "ready_after_ms",
            "flip_took_us",
        ] {
            assert_eq!(kept[field], told[field], "{field} of {kept}");
        }
    }
    let ran = operated.run(&["history"]).await;
    ran.assert_says(&[
        "1 -> 2 committed",
        "2 -> 3 aborted (warming)",
        "2 -> 4 committed",
    ]);
}

#[tokio::test]
async fn stop_stops_the_service_and_a_second_one_harms_nobody_unless_it_says_now() {
    let setup = Setup::new().with("TESTD_LAME_DUCK_MS", 60_000);
    let operated = Operated::start(setup).await;
    let upload = Upload::begin(operated.service.web).await;
    let ran = operated.run(&["stop"]).await;
    ran.assert_code(0);
    operated.service.line("LameDuck").await;
    operated.run(&["status"]).await.assert_says(&["lame duck"]);
    let ran = operated.run(&["stop"]).await;
    ran.assert_code(2);
    ran.assert_says(&["stopping already"]);
    let ran = operated.run(&["upgrade"]).await;
    ran.assert_code(2);
    operated.service.assert_serving(1).await;
    operated.run(&["stop", "--now"]).await.assert_code(0);
    operated
        .service
        .server
        .wait_all_gone(DEADLINE)
        .await
        .unwrap();
    assert!(upload.finish().await.is_err());
}

/// What the program prints of what happens.
struct Listener(Child, Lines<BufReader<ChildStdout>>);

impl Listener {
    fn begin(operated: &Operated) -> Self {
        let mut events = operated.begin(&["events", "--json"]);
        let lines = BufReader::new(events.stdout.take().unwrap()).lines();
        Self(events, lines)
    }

    async fn next(&mut self, wanted: &str) -> serde_json::Value {
        loop {
            let line = timeout(DEADLINE, self.1.next_line()).await.unwrap();
            let line = line.unwrap().unwrap_or_else(|| panic!("no {wanted}"));
            let event: serde_json::Value = serde_json::from_str(&line).unwrap();
            if event["event"] == wanted {
                return event;
            }
        }
    }

    /// Until it listens to whoever is the incumbent. It may miss what happens before, so that happens again and again.
    async fn until_it_listens(&mut self, operated: &Operated) {
        let incumbent = operated.status().await.generation;
        operated.service.plan("before-ready=exit:1");
        loop {
            operated.run(&["upgrade"]).await.assert_code(3);
            let heard = timeout(Duration::from_millis(500), self.next("aborted")).await;
            if heard.is_ok_and(|aborted| aborted["to"] == incumbent) {
                return operated.service.heal();
            }
        }
    }
}

#[tokio::test]
async fn events_go_on_with_the_successor_and_end_with_0_when_the_service_stops() {
    let setup = Setup::new().with("TESTD_LAME_DUCK_MS", 200);
    let operated = Operated::start(setup).await;
    let mut listener = Listener::begin(&operated);
    listener.until_it_listens(&operated).await;
    operated.run(&["upgrade"]).await.assert_code(0);
    assert_eq!(listener.next("committed").await["to"], 1);
    assert_eq!(listener.next("draining").await["reason"], "handed over");
    listener.until_it_listens(&operated).await;
    operated.run(&["stop"]).await.assert_code(0);
    listener.next("lame_duck").await;
    ended(listener.0).await.assert_code(0);
}

#[tokio::test]
async fn events_end_with_4_when_the_service_is_gone_without_a_word() {
    let operated = Operated::start(Setup::new()).await;
    let mut listener = Listener::begin(&operated);
    listener.until_it_listens(&operated).await;
    signal(operated.service.pid(), Signal::KILL);
    ended(listener.0).await.assert_code(4);
}

#[tokio::test]
async fn a_service_that_cannot_be_asked_and_wrong_arguments_end_with_1() {
    let nobody = ["--control", "/nonexistent/control.sock"];
    for arguments in [
        &["status"][..],
        &["status", nobody[0], nobody[1]],
        &["upgrade", nobody[0], nobody[1]],
        &["events", nobody[0], nobody[1]],
        &["watch", nobody[0], nobody[1]],
        &["dance"],
        &[],
        &["upgrade", "--timeout", "soon"],
        &["upgrade", "--strategy", "yolo"],
    ] {
        let ran = run(program(arguments)).await;
        ran.assert_code(1);
        assert!(!ran.stderr.is_empty(), "{ran:?}");
    }
    let ran = run(program(&["status", "--json"])).await;
    assert_eq!((ran.code, &ran.json()["reply"]), (1, &"error".into()));
}

#[tokio::test]
async fn the_live_view_without_a_terminal_ends_with_1() {
    let operated = Operated::start(Setup::new()).await;
    let ran = operated.run(&["watch"]).await;
    ran.assert_code(1);
    ran.assert_says(&["needs a terminal"]);
}

#[tokio::test]
async fn a_successor_left_alone_in_its_bake_serves_and_is_degraded_until_somebody_says_it_is_good()
{
    let operated = Operated::start_with_a_bake().await;
    operated.run(&["upgrade", "--no-wait"]).await.assert_code(0);
    operated.phase(1, 2, "baking").await;
    assert_eq!(operated.status().await.condition, Condition::Progressing);
    let incumbent = operated.service.pid();
    signal(incumbent, Signal::KILL);
    operated.service.line("event 2 Incumbent").await;
    operated.service.assert_serving(2).await;
    gone(incumbent).await;
    let status = operated.status().await;
    assert_eq!(status.condition, Condition::Degraded);
    assert_eq!(status.last.unwrap().verdict, Verdict::Degraded);
    let ran = operated.run(&["status"]).await;
    ran.assert_says(&["degraded", "generation 1 ended before its rollout"]);
    operated.run(&["promote"]).await.assert_code(0);
    assert_eq!(operated.status().await.condition, Condition::Healthy);
    operated.run(&["promote"]).await.assert_code(2);
}
