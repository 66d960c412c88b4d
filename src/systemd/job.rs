//! Whether the service manager stops this unit or restarts it, which it tells nobody who is being stopped.
//!
//! `systemctl` is asked, because the alternative is a D-Bus client for one question at the end of a life.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::config::JOB_DEADLINE;

/// What the manager is about to do with this unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// The unit starts again as soon as it has stopped.
    Restart,
    /// The unit stops, and stays so; or nobody has asked the manager for anything.
    Stop,
    /// The manager did not say, or not in time.
    Unknown,
}

/// The unit that a process belongs to, and the manager in charge of it.
#[derive(Debug, PartialEq, Eq)]
struct Unit {
    name: String,
    user: bool,
}

/// Asks the manager about the unit of this process, for no longer than [`JOB_DEADLINE`].
///
/// # Cancel safety
///
/// The process that asks is killed.
pub(crate) async fn pending() -> Job {
    let asked = ask(
        "systemctl".as_ref(),
        "/proc/self/cgroup".as_ref(),
        JOB_DEADLINE,
    );
    asked.await.unwrap_or_else(|why| {
        tracing::debug!(why, "it is not known whether the unit restarts");
        Job::Unknown
    })
}

async fn ask(systemctl: &Path, cgroup: &Path, deadline: Duration) -> Result<Job, String> {
    let cgroup = std::fs::read_to_string(cgroup).map_err(|error| error.to_string())?;
    let unit = Unit::of(&cgroup).ok_or("this process is in no unit")?;
    let answer = async {
        loop {
            let output = Command::new(systemctl)
                .args(unit.arguments())
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .output()
                .await?;
            // A stop without ExecStop= goes on sending SIGTERM until no process of the unit is new to it.
            if output.status.signal() != Some(libc::SIGTERM) {
                return io::Result::Ok(output);
            }
        }
    };
    let output = timeout(deadline, answer)
        .await
        .map_err(|_| format!("systemctl has not answered within {deadline:?}"))?
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("systemctl: {}", output.status));
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout), &unit.name))
}

impl Unit {
    /// Reads `/proc/PID/cgroup` (cgroups(7)): the unified hierarchy if it has the units, else systemd's own.
    fn of(cgroup: &str) -> Option<Self> {
        let path = |hierarchy| {
            let mut lines = cgroup.lines();
            lines.find_map(move |line| line.split_once(hierarchy).map(|(_, path)| path))
        };
        let unified = path("0::").and_then(Self::at);
        unified.or_else(|| path(":name=systemd:").and_then(Self::at))
    }

    /// The unit at a path like `/system.slice/web.service`; what lies below it is its own affair.
    fn at(path: &str) -> Option<Self> {
        // systemd puts an underscore before a name that the kernel could take for one of its own files.
        let parts = path
            .split('/')
            .map(|part| part.strip_prefix('_').unwrap_or(part));
        let mut units = parts.filter(|part| part.ends_with(".service") || part.ends_with(".scope"));
        let outer = units.next()?;
        let inner = units.next().filter(|_| outer.starts_with("user@"));
        Some(Self {
            name: inner.unwrap_or(outer).to_owned(),
            user: inner.is_some(),
        })
    }

    fn arguments(&self) -> Vec<OsString> {
        let user = self.user.then_some("--user");
        let question = [
            "list-jobs",
            "--no-legend",
            "--no-pager",
            "--plain",
            "--full",
            "--",
        ];
        let arguments = user.into_iter().chain(question).chain([self.name.as_str()]);
        arguments.map(OsString::from).collect()
    }
}

/// Reads lines of job, unit, type and state.
fn parse(list: &str, unit: &str) -> Job {
    let types = list.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        (words.next()? == unit).then(|| words.next()).flatten()
    });
    for r#type in types {
        match r#type {
            // A start that waits for the stop comes to the same.
            "restart" | "try-restart" | "start" => return Job::Restart,
            "stop" => return Job::Stop,
            _ => {}
        }
    }
    Job::Stop
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn the_unit_is_found_at_any_depth_in_either_hierarchy() {
        for (cgroup, name, user) in [
            ("0::/system.slice/web.service\n", "web.service", false),
            (
                "0::/system.slice/web@1.service/workers/x.service\n",
                "web@1.service",
                false,
            ),
            (
                "0::/system.slice/system-web.slice/web@a.service",
                "web@a.service",
                false,
            ),
            (
                "0::/user.slice/user-0.slice/user@0.service/app.slice/web.service",
                "web.service",
                true,
            ),
            (
                "0::/user.slice/user-0.slice/user@0.service/run-1.scope/_x",
                "run-1.scope",
                true,
            ),
            (
                "0::/user.slice/user-0.slice/session-3.scope",
                "session-3.scope",
                false,
            ),
            ("0::/system.slice/_cpu.service", "cpu.service", false),
            (
                "12:pids:/x.service\n1:name=systemd:/system.slice/web.service\n0::/\n",
                "web.service",
                false,
            ),
        ] {
            let found = Unit::of(cgroup);
            let name = name.to_owned();
            assert_eq!(found, Some(Unit { name, user }), "{cgroup}");
        }
        for cgroup in ["", "0::/\n", "0::/docker/4711", "garbage", "0::/user.slice"] {
            assert_eq!(Unit::of(cgroup), None, "{cgroup}");
        }
    }

    #[test]
    fn only_the_units_own_job_counts() {
        let list = "\
            7 other.service restart running\n\
            8 web.service.d restart waiting\n\
            9 web.service stop running\n";
        assert_eq!(parse(list, "web.service"), Job::Stop);
        assert_eq!(parse(list, "other.service"), Job::Restart);
        assert_eq!(parse(list, "third.service"), Job::Stop);
        for (r#type, job) in [
            ("restart", Job::Restart),
            ("try-restart", Job::Restart),
            ("start", Job::Restart),
            ("reload", Job::Stop),
            ("", Job::Stop),
        ] {
            assert_eq!(
                parse(&format!("  1 web.service {type} running"), "web.service"),
                job
            );
        }
        for garbage in [
            "",
            "No jobs running.",
            "web.service",
            "\n\n",
            "1 web.service",
        ] {
            assert_eq!(parse(garbage, "web.service"), Job::Stop);
        }
    }

    #[tokio::test]
    async fn the_manager_in_charge_is_asked_for_this_unit_only() {
        let room = TempDir::new().unwrap();
        let path = "0::/user.slice/user-0.slice/user@0.service/app.slice/web.service\n";
        let said = asked(
            &room,
            r#"echo "$@" > "$0.asked"; echo "1 web.service restart running""#,
            path,
        );
        assert_eq!(said.await, Ok(Job::Restart));
        let asked = fs::read_to_string(room.path().join("systemctl.asked")).unwrap();
        let question = "--user list-jobs --no-legend --no-pager --plain --full -- web.service\n";
        assert_eq!(asked, question);
    }

    #[tokio::test]
    async fn who_is_stopped_with_the_unit_before_it_can_answer_is_asked_again() {
        let room = TempDir::new().unwrap();
        let script = r#"test -e "$0.again" || { touch "$0.again"; kill -TERM $$; }; echo 1 web.service restart x"#;
        let said = asked(&room, script, "0::/system.slice/web.service");
        assert_eq!(said.await, Ok(Job::Restart));
    }

    #[tokio::test]
    async fn a_manager_that_fails_hangs_or_is_not_there_says_nothing() {
        let room = TempDir::new().unwrap();
        let path = "0::/system.slice/web.service";
        let failing = asked(&room, "echo 1 web.service stop running; exit 1", path).await;
        assert!(failing.unwrap_err().contains("exit status: 1"));
        let hanging = asked(&room, "exec sleep 60", path).await;
        assert!(hanging.unwrap_err().contains("answered within"));
        let homeless = asked(&room, "exit 0", "0::/").await;
        assert!(homeless.unwrap_err().contains("no unit"));
        let nowhere = room.path().join("nowhere");
        let cgroup = room.path().join("cgroup");
        fs::write(&cgroup, path).unwrap();
        assert!(ask(&nowhere, &cgroup, JOB_DEADLINE).await.is_err());
    }

    #[tokio::test]
    async fn a_process_that_nobody_restarts_hears_of_no_restart() {
        assert_ne!(pending().await, Job::Restart);
    }

    async fn asked(room: &TempDir, script: &str, cgroup: &str) -> Result<Job, String> {
        let (systemctl, path) = (room.path().join("systemctl"), room.path().join("cgroup"));
        // By another process: were it open for writing here while another test starts one, it could not be executed.
        let written = Command::new("sh")
            .args([
                "-c",
                r#"printf '#!/bin/sh\n%s\n' "$2" > "$1" && chmod +x "$1""#,
                "sh",
            ])
            .arg(&systemctl)
            .arg(script)
            .status();
        assert!(written.await.unwrap().success());
        fs::write(&path, cgroup).unwrap();
        ask(&systemctl, &path, JOB_DEADLINE).await
    }
}
