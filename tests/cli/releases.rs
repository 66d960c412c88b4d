//! Releases that differ in their files, as deploys make them.

use std::path::Path;
use std::process::Command;

use crate::operated::Operated;
use crate::support::{Setup, testd};

/// A service whose first release is "one", each file of its own.
pub(crate) async fn start(setup: Setup) -> Operated {
    let room = setup.room.path();
    replace(room, "one");
    let mut command = Command::new(room.join(PROGRAM));
    for (name, value) in setup.command.get_envs() {
        command.env(name, value.unwrap());
    }
    Operated::start(Setup { command, ..setup }).await
}

/// Replaces the program by a rename, as a deploy does. Written by another process: one of the tests' that is being
/// started meanwhile would hold it open for writing.
pub(crate) fn replace(room: &Path, release: &str) {
    let script =
        r#"cp "$TESTD" draft && printf 'TESTD-RELEASE=%s' "$0" >> draft && mv draft program"#;
    sh(room, script, release);
}

pub(crate) fn sh(room: &Path, script: &str, argument: &str) {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script, argument]).current_dir(room);
    assert!(shell.env("TESTD", testd()).status().unwrap().success());
}

pub(crate) const PROGRAM: &str = "program";
