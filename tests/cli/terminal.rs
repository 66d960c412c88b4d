//! What the program shows on a terminal, which script(1) is to it.

use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;
use tokio::time::timeout;

use crate::operated::Operated;
use crate::support::{DEADLINE, Setup};

/// The program on a terminal of its own.
struct OnTerminal {
    child: Child,
    shown: String,
}

impl OnTerminal {
    fn begin(operated: &Operated, arguments: &str) -> Self {
        let program = env!("CARGO_BIN_EXE_handover");
        let line = format!("stty rows 45 cols 140; exec {program} {arguments}");
        let mut script = tokio::process::Command::new("script");
        script
            .args(["-qefc", &line, "/dev/null"])
            .env("HANDOVER_CONTROL", &operated.path)
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        Self {
            child: script.spawn().unwrap(),
            shown: String::new(),
        }
    }

    async fn until_shown(&mut self, wanted: &str) {
        let shown = timeout(DEADLINE, self.read_until(wanted)).await;
        assert!(shown == Ok(true), "no {wanted:?} in {}", self.shown);
    }

    /// Whether it was shown before the program ended.
    async fn read_until(&mut self, wanted: &str) -> bool {
        let stdout = self.child.stdout.as_mut().unwrap();
        while !self.shown.contains(wanted) {
            let mut part = [0; 4096];
            let read = stdout.read(&mut part).await.unwrap();
            if read == 0 {
                return false;
            }
            self.shown.push_str(&String::from_utf8_lossy(&part[..read]));
        }
        true
    }

    async fn press(&mut self, keys: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(keys.as_bytes()).await.unwrap();
    }

    async fn ended(mut self) -> (i32, String) {
        let stdout = self.child.stdout.as_mut().unwrap();
        let mut rest = Vec::new();
        timeout(DEADLINE, stdout.read_to_end(&mut rest))
            .await
            .unwrap()
            .unwrap();
        self.shown.push_str(&String::from_utf8_lossy(&rest));
        let status = timeout(DEADLINE, self.child.wait()).await.unwrap();
        (status.unwrap().code().unwrap(), self.shown)
    }
}

#[tokio::test]
async fn the_live_view_shows_the_service_and_each_key_that_ends_it_gives_the_terminal_back() {
    let operated = Operated::start(Setup::new()).await;
    for key in ["q", "\u{1b}", "\u{3}"] {
        let mut watch = OnTerminal::begin(&operated, "watch");
        watch.until_shown(ALTERNATE_SCREEN).await;
        watch.until_shown("incumbent").await;
        // Where nothing was before: only what differs is drawn.
        watch.until_shown("p99").await;
        watch.press(key).await;
        let (code, shown) = watch.ended().await;
        assert_eq!(code, 0, "{key:?}: {shown}");
        assert!(shown.contains(MAIN_SCREEN), "{key:?}: {shown}");
    }
}

#[tokio::test]
async fn a_wait_has_a_progress_bar_on_a_terminal_and_leaves_nothing_of_it_but_the_answer() {
    let operated = Operated::start_with_a_bake().await;
    let mut upgrade = OnTerminal::begin(&operated, "upgrade");
    upgrade.until_shown("generation 2: baking at 100 %").await;
    upgrade.until_shown(" left").await;
    operated.run(&["rollback"]).await.assert_code(0);
    let (code, shown) = upgrade.ended().await;
    assert_eq!(code, 3, "{shown}");
    assert!(shown.contains("\u{1b}[31mrolled back"), "{shown}");
}

#[tokio::test]
async fn colours_are_for_terminals_alone_and_json_has_none() {
    let operated = Operated::start(Setup::new()).await;
    let (_, shown) = OnTerminal::begin(&operated, "status").ended().await;
    assert!(shown.contains("\u{1b}[1mgeneration"), "{shown}");
    let (_, shown) = OnTerminal::begin(&operated, "status --json").ended().await;
    assert!(!shown.contains('\u{1b}'), "{shown}");
    let ran = operated.run(&["status"]).await;
    assert!(!ran.stdout.contains('\u{1b}'), "{ran:?}");
}

/// As xterm is told to show another screen, and the one before again.
const ALTERNATE_SCREEN: &str = "\u{1b}[?1049h";
const MAIN_SCREEN: &str = "\u{1b}[?1049l";
