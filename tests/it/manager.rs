//! What the service manager hears, and in which order, from generations of which only one is its main process.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixDatagram;

use handover_load::Signal;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;

use crate::support::{DEADLINE, Service, Setup, Upload, gone, signal};

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
        set_socket_passcred(&socket, true).unwrap();
        let setup = setup.with("NOTIFY_SOCKET", path.display());
        let manager = Self {
            socket,
            _room: room,
        };
        (manager, setup)
    }

    /// The next notice that has this line; what came before it is read as well.
    fn reads(&self, line: &str) -> String {
        loop {
            let (_, text) = self
                .next()
                .unwrap_or_else(|error| panic!("no {line}: {error}"));
            if text.lines().any(|told| told == line) {
                return text;
            }
        }
    }

    /// The next notice, and the process that has sent it. For a descriptor there is no room, so the kernel closes it.
    fn next(&self) -> std::io::Result<(u32, String)> {
        let mut notice = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [IoSliceMut::new(&mut notice)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let length = recvmsg(&self.socket, &mut buffers, &mut control, flags)?.bytes;
        let sender = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmCredentials(sender) => Some(sender.pid),
            _ => None,
        });
        let sender = sender.unwrap().as_raw_pid().unsigned_abs();
        let text = String::from_utf8_lossy(&notice[..length]).into_owned();
        Ok((sender, text))
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

/// A manager with `NotifyAccess=all` would believe everybody, and one with `main` drops what others say.
#[tokio::test]
async fn only_the_main_process_says_anything_and_only_the_last_one_says_that_it_stops() {
    let setup = Setup::new().with("TESTD_BAKE_MS", 300);
    let (manager, setup) = Manager::of(setup.with("WATCHDOG_USEC", 100_000));
    let mut service = setup.start().await;
    let first = service.pid();
    let reading = std::thread::spawn(move || read_to_the_stop_of_the_third(&manager, first));
    let elder = Upload::begin(service.web).await;
    let second = service.upgrade(1, 2).await;
    elder.finish().await.unwrap();
    gone(first).await;
    let third = service.upgrade(2, 3).await;
    service.server.exit_status(DEADLINE).await.unwrap();
    assert_eq!(reading.join().unwrap(), [first, second, third]);
}

/// Stops the third main process once it has shown that it is alive. Returns who has, one after the other.
fn read_to_the_stop_of_the_third(manager: &Manager, first: u32) -> Vec<u32> {
    let (mut main, mut petted) = (first, vec![]);
    loop {
        let (sender, text) = manager.next().unwrap();
        // Whoever has named another waits for the answer.
        assert!(sender == main || text == "BARRIER=1\n", "{text}");
        if text.contains("WATCHDOG=1") && petted.last() != Some(&sender) {
            petted.push(sender);
            if petted.len() == 3 {
                signal(sender, Signal::TERM);
            }
        }
        if text.contains("STOPPING=1") {
            return petted;
        }
        let named = text.lines().find_map(|line| line.strip_prefix("MAINPID="));
        main = named.map_or(main, |named| named.parse().unwrap());
    }
}
