//! What a generation is started from, and what it hands on to processes that are no generations.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::process::{self, Command};

use handover_load::Server;

use crate::support::{DEADLINE, Setup, eventually, testd};

#[tokio::test]
async fn an_upgrade_follows_the_link_to_the_current_release() {
    let room = tempfile::tempdir().unwrap();
    for release in ["1", "2"] {
        let directory = room.path().join("releases").join(release);
        fs::create_dir_all(&directory).unwrap();
        // By another process: a program that is open for writing anywhere cannot be started (ETXTBSY, execve(2)).
        let copied = Command::new("cp")
            .arg(testd())
            .arg(directory.join("testd"))
            .status();
        assert!(copied.unwrap().success());
    }
    let current = room.path().join("current");
    symlink("releases/1", &current).unwrap();
    let mut setup = Setup::of(&current.join("testd"));
    setup.command.env_remove("TESTD_PROGRAM");
    let service = setup.start().await;
    let release = |pid| fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert_eq!(release(service.pid()), room.path().join("releases/1/testd"));

    symlink("releases/2", room.path().join("next")).unwrap();
    fs::rename(room.path().join("next"), &current).unwrap();
    let successor = service.upgrade(1, 2).await;
    assert_eq!(release(successor), room.path().join("releases/2/testd"));

    // Back is an upgrade, too.
    symlink("releases/1", room.path().join("next")).unwrap();
    fs::rename(room.path().join("next"), &current).unwrap();
    let successor = service.upgrade(2, 3).await;
    assert_eq!(release(successor), room.path().join("releases/1/testd"));
    service.assert_serving(3).await;
}

#[tokio::test]
async fn an_upgrade_works_from_a_directory_that_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let mut setup = Setup::new();
    setup.command.current_dir(directory.path());
    let service = setup.start().await;
    directory.close().unwrap();
    service.upgrade(1, 2).await;
    service.upgrade(2, 3).await;
    service.assert_serving(3).await;
}

#[tokio::test]
async fn arguments_that_are_not_text_reach_every_generation() {
    let mut setup = Setup::new();
    setup
        .command
        .arg(OsString::from_vec(vec![0xff, b'a', 0xfe]))
        .arg("")
        .arg("b c");
    let service = setup.start().await;
    let arguments = |pid| fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let first = arguments(service.pid());
    assert!(first.ends_with(b"\0\xffa\xfe\0\0b c\0"));
    let second = service.upgrade(1, 2).await;
    assert_eq!(arguments(second), first);
    let third = service.upgrade(2, 3).await;
    assert_eq!(arguments(third), first);
}

#[tokio::test]
async fn a_process_that_was_meant_to_be_a_successor_does_not_start_without_its_channel() {
    let mut command = Command::new(testd());
    command.env("HANDOVER_CHANNEL", format!("9:1:{}", process::id()));
    let mut server = Server::spawn(command).unwrap();
    let status = server.exit_status(DEADLINE).await.unwrap();
    server.wait_all_gone(DEADLINE).await.unwrap();
    let log = server.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(
        log.contains("descriptor 9 is not the incumbent's channel"),
        "{log}"
    );
    assert!(!log.contains("listening"), "{log}");
}

#[tokio::test]
async fn a_fresh_generation_that_is_given_up_frees_its_addresses_and_may_live_on() {
    let setup = Setup::new();
    fs::write(setup.room.path().join("plan"), "give-up=yes").unwrap();
    let server = Server::spawn(setup.command).unwrap();
    let address = server.address("web", DEADLINE).await.unwrap();
    let bind = || TcpListener::bind(address).map(drop).map_err(|e| e.kind());
    eventually("binding its address", bind, Ok(())).await;
    assert_eq!(server.live(), [server.pid()]);
}

#[tokio::test]
async fn a_variable_that_leaked_from_an_ancestor_means_nothing() {
    let mut setup = Setup::new();
    setup.command.env("HANDOVER_CHANNEL", "9:1:1");
    let service = setup.start().await;
    service.assert_serving(1).await;
    service.upgrade(1, 2).await;
    service.assert_serving(2).await;
}

#[tokio::test]
async fn helpers_see_no_private_variable_and_no_descriptor_but_their_own() {
    let mut setup = Setup::new()
        .with("TESTD_UDP", "127.0.0.1:0")
        .with("TESTD_MORE", 3);
    let private = [
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "LISTEN_PIDFDID",
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "HANDOVER_CHANNEL",
    ];
    for name in private {
        // Another process's number wherever one is meant.
        setup.command.env(name, "9:1:1");
    }
    // What whoever runs the tests has left open gets everywhere; here that is all there may be.
    let ours = Command::new("ls")
        .args(["-l", "/proc/self/fd"])
        .output()
        .unwrap();
    let ours = String::from_utf8(ours.stdout).unwrap();
    let inherited = descriptors_of(&ours);
    let service = setup.start().await;
    for generation in [1, 2, 3] {
        if generation > 1 {
            service.upgrade(generation - 1, generation).await;
        }
        let helper = service.get("/helper").await;
        assert_eq!(helper.generation, generation);
        let text = helper.text;
        assert!(text.contains("TESTD_RUN="), "{text}");
        for prefix in ["LISTEN_", "NOTIFY_", "WATCHDOG_", "HANDOVER_"] {
            assert!(!text.lines().any(|line| line.starts_with(prefix)), "{text}");
        }
        assert_eq!(descriptors_of(&text), inherited, "{text}");
        assert!(text.contains("SigBlk:\t0000000000000000"), "{text}");
    }
}

/// Of `ls -l /proc/self/fd`, without the directory itself, which ls holds while it reads.
fn descriptors_of(text: &str) -> Vec<&str> {
    let links = text.lines().filter_map(|line| line.split_once(" -> "));
    links
        .filter(|(_, target)| !target.starts_with("/proc/"))
        .filter_map(|(link, _)| link.rsplit(' ').next())
        .filter(|name| name.parse::<u32>().is_ok())
        .collect()
}
