//! An example as a process with all that descend from it: started, upgraded, stopped.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use handover_load::process::{Server, Signal, signal, wait_gone};

use crate::load::{DEADLINE, Load, Seen, answerer};

pub(crate) struct Example(pub(crate) Server);

impl Example {
    pub(crate) async fn start(name: &str) -> (Self, SocketAddr) {
        Self::start_with(name, &[]).await
    }

    pub(crate) async fn start_with(name: &str, settings: &[(&str, &OsStr)]) -> (Self, SocketAddr) {
        Self::start_by(name, settings, &[]).await
    }

    pub(crate) async fn start_by(
        name: &str,
        settings: &[(&str, &OsStr)],
        arguments: &[&str],
    ) -> (Self, SocketAddr) {
        let here = std::env::current_exe().unwrap();
        let profile = here.parent().and_then(Path::parent).unwrap();
        let program = profile.join("examples").join(name);
        assert!(program.is_file(), "{} is not built", program.display());
        let mut command = Command::new(program);
        command.env("LISTEN", "127.0.0.1:0");
        command.envs(settings.iter().copied()).args(arguments);
        let server = Server::spawn(command).unwrap();
        let address = server.address("on", DEADLINE).await.unwrap();
        (Self(server), address)
    }

    /// The one generation that lives.
    pub(crate) fn pid(&self) -> u32 {
        let live = self.0.live();
        assert_eq!(live.len(), 1, "{live:?}");
        live[0]
    }

    /// Asks for an upgrade as an operator would, and waits until the incumbent has left.
    pub(crate) async fn upgrade(&self) {
        let incumbent = self.pid();
        signal(incumbent, Signal::HUP).unwrap();
        wait_gone(incumbent, DEADLINE).await.unwrap();
    }

    /// Stops the generation that lives, sees that none is left and none had anything to complain of, and returns the log.
    pub(crate) async fn stop(self) -> String {
        let log = self.end().await;
        assert!(!log.contains("Error") && !log.contains("panicked"));
        log
    }

    /// The same where there was something to complain of.
    pub(crate) async fn end(mut self) -> String {
        signal(self.pid(), Signal::TERM).unwrap();
        self.0.wait_all_gone(DEADLINE).await.unwrap();
        assert!(self.0.exit_status(DEADLINE).await.unwrap().success());
        self.0.log()
    }

    /// Upgrades twice under this load; all three generations must answer, and nothing may fail.
    pub(crate) async fn upgrade_twice_under(
        &self,
        load: Load,
        name: impl Fn(u64, u32) -> String,
    ) -> Seen {
        let first = name(1, self.pid());
        load.until_answers_of(&first).await;
        for number in 2..=3 {
            self.upgrade().await;
            load.until_answers_of(&name(number, self.pid())).await;
        }
        let last = name(3, self.pid());
        let seen = load.stop().await;
        assert!(seen.failures.is_empty(), "{}", seen.summary());
        assert_eq!(answerer(&seen.answers[0]), first);
        assert_eq!(
            seen.answers.last().map(|answer| answerer(answer)),
            Some(&*last)
        );
        seen
    }
}
