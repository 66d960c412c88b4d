//! A check that is a program.

use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};

use crate::sys::group::Group;

/// Runs the program to its end.
///
/// # Cancel safety
///
/// It is killed with its process group, and collected, when the future is dropped.
pub(super) async fn check(
    program: &OsString,
    arguments: &[OsString],
    variables: Vec<(String, String)>,
) -> Result<(), String> {
    let started = start(program, arguments, variables);
    let (mut running, output) =
        started.map_err(|error| format!("it could not be started: {error}"))?;
    let (status, tail) = running.end(output).await;
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{status}{}", tail.words())),
        Err(error) => Err(format!("its end could not be awaited: {error}")),
    }
}

fn start(
    program: &OsString,
    arguments: &[OsString],
    variables: Vec<(String, String)>,
) -> io::Result<(Running, Receiver)> {
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(variables)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .kill_on_drop(true);
    let child = command.spawn()?;
    // The command's own ends of the pipe close with it, so that the program's are the last.
    drop(command);
    let group = Group::led_by(&child);
    let running = Running { group, child };
    Ok((running, Receiver::from_owned_fd(reader.into())?))
}

/// A program and its process group, which is killed with it.
struct Running {
    group: Group,
    child: Child,
}

impl Running {
    async fn end(&mut self, mut output: Receiver) -> (io::Result<ExitStatus>, Tail) {
        let (mut tail, mut buffer, mut is_open) = (Tail::default(), [0; 1024], true);
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status,
                read = output.read(&mut buffer), if is_open => match read {
                    Ok(length @ 1..) => tail.add(&buffer[..length]),
                    // Nothing more will come; its end still will.
                    Ok(0) | Err(_) => is_open = false,
                },
            }
        };
        self.group.collected();
        // All that it had to say is in the pipe. Whoever it left behind may keep that open, and is not waited for.
        while let Ok(length @ 1..) = nix::unistd::read(&output, &mut buffer) {
            tail.add(&buffer[..length]);
        }
        (status, tail)
    }
}

/// The last of what a program has said.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let too_many = self.0.len().saturating_sub(TAIL_BYTES);
        self.0.drain(..too_many);
    }

    fn words(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let lines: Vec<&str> = lines.collect();
        let last = lines.len().saturating_sub(TAIL_LINES);
        match &lines[last..] {
            [] => String::new(),
            last => format!("; it said: {}", last.join("; ")),
        }
    }
}

const TAIL_BYTES: usize = 4 * 1024;
const TAIL_LINES: usize = 5;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sys::process::Pidfd;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> (OsString, [OsString; 2]) {
        ("sh".into(), ["-c".into(), script.into()])
    }

    #[tokio::test]
    async fn a_command_that_is_given_up_dies_with_its_group() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("pids");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut pids = tokio::net::unix::pipe::OpenOptions::new()
            .read_write(true)
            .open_receiver(&fifo)
            .unwrap();
        let (program, arguments) = shell(&format!(
            "sleep 1000 & echo $! $$ > {}; wait",
            fifo.display()
        ));
        let mut buffer = [0; 64];
        let running = check(&program, &arguments, Vec::new());
        let length = tokio::select! {
            ended = running => panic!("{ended:?}"),
            read = tokio::time::timeout(DEADLINE, pids.read(&mut buffer)) => read.unwrap().unwrap(),
        };
        // Given up by now.
        let text = str::from_utf8(&buffer[..length]).unwrap();
        for pid in text.split_whitespace() {
            // One that is gone already cannot be opened.
            if let Ok(process) = Pidfd::open(pid.parse().unwrap()) {
                let ended = tokio::time::timeout(DEADLINE, process.exited()).await;
                ended.expect("killed").unwrap();
            }
        }
    }

    #[tokio::test]
    async fn what_a_command_leaves_behind_is_not_waited_for() {
        let (program, arguments) = shell("sleep 1000 & echo $!; exit 1");
        let check = check(&program, &arguments, Vec::new());
        let reason = tokio::time::timeout(DEADLINE, check).await.expect("ended");
        let reason = reason.unwrap_err();
        let (status, pid) = reason.split_once("; it said: ").unwrap();
        assert_eq!(status, "exit status: 1");
        let left = nix::unistd::Pid::from_raw(pid.parse().unwrap());
        nix::sys::signal::kill(left, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn a_program_that_does_not_exist_says_so() {
        let reason = check(&"/nonexistent".into(), &[], Vec::new()).await;
        assert!(reason.unwrap_err().starts_with("it could not be started"));
    }

    #[tokio::test]
    async fn a_command_that_talks_without_end_is_kept_to_its_last_lines() {
        let (program, arguments) = shell("seq 1 20000; exit 1");
        let reason = check(&program, &arguments, Vec::new()).await.unwrap_err();
        let last = "19996; 19997; 19998; 19999; 20000";
        assert_eq!(reason, format!("exit status: 1; it said: {last}"));
    }
}
