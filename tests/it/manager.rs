//! What the service manager hears, and in which order, from generations of which only one is its main process.

use std::os::unix::net::UnixDatagram;

use handover_load::Signal;
use tempfile::TempDir;

use crate::support::{DEADLINE, Service, Setup, signal};

/// A manager that reads one notice when it is asked for one, and so takes as long as a test wants over the next.
struct Manager {
    socket: UnixDatagram,
    _room: TempDir,
}

impl Manager {
    fn of(setup: Setup) -> (Self, Setup) {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let setup = setup.with("NOTIFY_SOCKET", path.display());
        let manager = Self {
            socket,
            _room: room,
        };
        (manager, setup)
    }

    /// The next notice that has this line; what came before it is read as well.
    fn reads(&self, line: &str) -> String {
        let mut notice = [0; 4096];
        loop {
            let length = self.socket.recv(&mut notice);
            let length = length.unwrap_or_else(|error| panic!("no {line}: {error}"));
            let text = String::from_utf8_lossy(&notice[..length]);
            if text.lines().any(|told| told == line) {
                return text.into_owned();
            }
        }
    }
}

/// Generation 2 serves and has the role; that it is the main process is told, and nobody has read further.
async fn upgraded_unheard() -> (Manager, Service, u32) {
    let (manager, setup) = Manager::of(Setup::new());
    let service = setup.start().await;
    let second = service.upgrade(1, 2).await;
    manager.reads(&format!("MAINPID={second}"));
    (manager, service, second)
}

#[tokio::test]
async fn a_successor_is_named_by_an_incumbent_that_was_not_yet_the_main_process() {
    let (manager, service, _) = upgraded_unheard().await;
    let third = service.upgrade(2, 3).await;
    let named = manager.reads(&format!("MAINPID={third}"));
    assert!(named.contains("READY=1\n"), "{named}");
    // It is the main one by now, and heard.
    let fourth = service.upgrade(3, 4).await;
    manager.reads("RELOADING=1");
    manager.reads(&format!("MAINPID={fourth}"));
}

#[tokio::test]
async fn a_reload_that_comes_before_its_generation_is_known_as_the_main_process_is_answered() {
    let (manager, service, second) = upgraded_unheard().await;
    service.plan("before-ready=exit:3");
    signal(second, Signal::HUP);
    service.line("event 2 aborted 3").await;
    let reloading = manager.reads("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    let verdict = manager.reads("READY=1");
    assert!(verdict.contains("exit status: 3"), "{verdict}");
}
