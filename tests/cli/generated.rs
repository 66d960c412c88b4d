//! What is generated from the arguments: help, completions, man pages.

use std::fs;

use tokio::process::Command;

use crate::operated::{program, run};

const COMMANDS: [&str; 20] = [
    "status",
    "upgrade",
    "promote",
    "pause",
    "resume",
    "share",
    "abort",
    "rollback",
    "verify",
    "drill",
    "takeover",
    "generations",
    "history",
    "drain",
    "stop",
    "events",
    "explain",
    "watch",
    "completions",
    "man",
];

#[tokio::test]
async fn the_help_names_every_command_and_exit_code() {
    let ran = run(program(&["--help"])).await;
    ran.assert_code(0);
    ran.assert_says(&COMMANDS);
    let codes: Vec<_> = (0..=6).map(|code| format!("  {code}  ")).collect();
    let codes: Vec<_> = codes.iter().map(String::as_str).collect();
    ran.assert_says(&codes);
    for command in COMMANDS {
        let ran = run(program(&[command, "--help"])).await;
        ran.assert_code(0);
        ran.assert_says(&["HANDOVER_CONTROL", "--json"]);
    }
}

#[tokio::test]
async fn completions_know_every_command_and_bash_understands_them() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = run(program(&["completions", shell])).await;
        ran.assert_code(0);
        ran.assert_says(&COMMANDS);
    }
    let script = run(program(&["completions", "bash"])).await.stdout;
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("handover.bash");
    fs::write(&path, script).unwrap();
    let mut bash = Command::new("bash");
    bash.arg("-c").arg(
        "source \"$1\"; COMP_WORDS=(handover pro); COMP_CWORD=1; _handover handover pro handover; echo ${COMPREPLY[@]}",
    );
    bash.arg("bash").arg(&path);
    let output = bash.output().await.unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "promote\n",
        "{output:?}"
    );
}

#[tokio::test]
async fn there_is_a_man_page_for_every_command() {
    let ran = run(program(&["man"])).await;
    ran.assert_code(0);
    ran.assert_says(&[".TH handover 1", "Exit codes:", "HANDOVER_CONTROL"]);
    ran.assert_says(&COMMANDS);
    let room = tempfile::tempdir().unwrap();
    let pages = room.path().join("man1");
    let ran = run(program(&["man", pages.to_str().unwrap()])).await;
    ran.assert_code(0);
    for command in COMMANDS {
        let page = fs::read_to_string(pages.join(format!("handover-{command}.1"))).unwrap();
        assert!(page.contains(".SH DESCRIPTION"), "{page}");
    }
    let ran = run(program(&["man", "/dev/null/man1"])).await;
    ran.assert_code(1);
}
