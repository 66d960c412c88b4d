//! The control socket over handovers: who answers, and whose path it is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use handover::control::{Reply, Request, Role};
use handover_load::process::descriptors;
use handover_load::{Server, Signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::operated::Operated;
use crate::support::{DEADLINE, Setup, gone, signal};

#[tokio::test]
async fn the_same_path_is_answered_through_five_upgrades_and_a_rollback_and_is_gone_after_the_stop()
{
    let operated = Operated::start(Setup::new()).await;
    let inode = || fs::metadata(&operated.path).unwrap().ino();
    let first = inode();
    for generation in 1..=5 {
        assert_eq!(operated.status().await.generation, generation);
        operated.run(&["upgrade"]).await.assert_code(0);
        assert_eq!(inode(), first);
    }
    let six = operated.status().await;
    assert_eq!((six.generation, six.role), (6, Role::Incumbent));
    operated.service.assert_alone(six.pid).await;
    let before = descriptors(six.pid).unwrap();

    operated
        .run(&["upgrade", "--strategy", "blue-green"])
        .await
        .assert_code(6);
    operated.run(&["rollback"]).await.assert_code(0);
    operated.service.assert_alone(six.pid).await;
    assert_eq!((operated.status().await.generation, inode()), (6, first));
    crate::support::until_descriptors(six.pid, before).await;

    operated.run(&["stop"]).await.assert_code(0);
    operated
        .service
        .server
        .wait_all_gone(DEADLINE)
        .await
        .unwrap();
    assert!(!operated.path.exists());
}

#[tokio::test]
async fn in_the_bake_the_incumbent_answers_and_after_a_rollback_too() {
    let operated = Operated::start_with_a_bake().await;
    operated.run(&["upgrade", "--no-wait"]).await.assert_code(0);
    operated.phase(1, 2, "baking").await;
    operated.service.assert_serving(2).await;
    for _ in 0..20 {
        let status = operated.status().await;
        assert_eq!((status.generation, status.role), (1, Role::Incumbent));
        assert_eq!(status.upgrade.unwrap().phase, "baking");
    }
    operated.run(&["rollback"]).await.assert_code(0);
    assert_eq!(operated.status().await.generation, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_left_without_an_answer_while_generations_hand_over() {
    let operated = Operated::start(Setup::new()).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = (0..4)
        .map(|_| {
            let (client, is_over) = (operated.client(), is_over.clone());
            tokio::spawn(async move {
                let (mut last, mut answers) = (1, 0_u64);
                while !is_over.load(Ordering::Relaxed) {
                    let reply = client.ask(&Request::Status).await.unwrap();
                    let Reply::Status(status) = reply else {
                        panic!("{reply:?}")
                    };
                    // Once the successor has answered, no older one does.
                    assert!(
                        status.generation >= last,
                        "{} after {last}",
                        status.generation
                    );
                    last = status.generation;
                    answers += 1;
                }
                answers
            })
        })
        .collect();
    for _ in 0..8 {
        operated.run(&["upgrade"]).await.assert_code(0);
    }
    is_over.store(true, Ordering::Relaxed);
    for asking in asking {
        assert!(asking.await.unwrap() > 8);
    }
    assert_eq!(operated.status().await.generation, 9);
}

#[tokio::test]
async fn whoever_speaks_after_the_commit_to_the_one_before_is_sent_to_the_next() {
    let operated = Operated::start(Setup::new()).await;
    // It answers as long as it finishes something.
    let upload = crate::support::Upload::begin(operated.service.web).await;
    let mut early = UnixStream::connect(&operated.path).await.unwrap();
    operated.run(&["upgrade"]).await.assert_code(0);
    early
        .write_all(b"{\"request\":\"status\"}\n")
        .await
        .unwrap();
    let mut said = String::new();
    timeout(DEADLINE, early.read_to_string(&mut said))
        .await
        .unwrap()
        .unwrap();
    assert!(said.contains(r#""kind":"moved""#), "{said}");
    upload.finish().await.unwrap();
}

#[tokio::test]
async fn a_stale_path_is_replaced_and_a_live_one_is_an_error() {
    let operated = Operated::start(Setup::new()).await;
    let second = || {
        let setup = Setup::new().with("TESTD_CONTROL", operated.path.display());
        (setup.command, setup.room)
    };
    let (command, _room) = second();
    let mut refused = Server::spawn(command).unwrap();
    let reason = refused.wait_for_line("handover.control", DEADLINE).await;
    assert!(reason.unwrap().contains("address in use"));
    assert!(!refused.exit_status(DEADLINE).await.unwrap().success());
    assert_eq!(operated.status().await.pid, operated.service.pid());

    signal(operated.service.pid(), Signal::KILL);
    gone(operated.service.pid()).await;
    assert!(operated.path.exists());
    let (command, _room) = second();
    let fresh = Server::spawn(command).unwrap();
    fresh.wait_for_line("ready 1 pid ", DEADLINE).await.unwrap();
    assert_eq!(operated.status().await.pid, fresh.pid());
}

#[tokio::test]
async fn a_successor_that_wants_no_control_socket_leaves_no_path_that_nobody_answers() {
    let operated = Operated::start(Setup::new()).await;
    operated.service.plan("control=none");
    operated.run(&["upgrade"]).await.assert_code(0);
    gone(operated.service.pid()).await;
    assert!(!operated.path.exists());
    operated.run(&["status"]).await.assert_code(1);
    operated.service.assert_serving(2).await;
}

#[tokio::test]
async fn a_successor_that_survives_its_incumbent_answers() {
    let operated = Operated::start_with_a_bake().await;
    operated.run(&["upgrade", "--no-wait"]).await.assert_code(0);
    operated.phase(1, 2, "baking").await;
    signal(operated.service.pid(), Signal::KILL);
    let status = operated.status().await;
    assert_eq!((status.generation, status.role), (2, Role::Incumbent));
}
