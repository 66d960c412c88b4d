//! Limits of descriptors, in a successor that is born with one and in a server that meets one while it runs.

#![expect(
    unsafe_code,
    reason = "neither std nor nix can change another process's limit"
)]

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::ptr;

use crate::rig::{Generation, testd};

/// Starts every successor of a server with this limit, as `ulimit` is told it: `-n 40`, `-S -n 40`.
pub(crate) fn limit_successors(server: &mut Command, directory: &Path, ulimit: &str) {
    let script = directory.join("limited");
    let testd = testd();
    let text = format!("#!/bin/sh\nulimit {ulimit}\nexec {}\n", testd.display());
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    server.env("TESTD_PROGRAM", script);
}

/// A process that can open nothing more, until this is dropped. What it has open stays open.
#[derive(Debug)]
pub(crate) struct Exhausted {
    pid: i32,
    limit: libc::rlimit,
}

impl Exhausted {
    pub(crate) fn new(generation: Generation) -> Self {
        let pid = generation.pid.cast_signed();
        let limit = exchange(pid, None).unwrap();
        let lowest = libc::rlimit {
            rlim_cur: 3,
            ..limit
        };
        exchange(pid, Some(lowest)).unwrap();
        Self { pid, limit }
    }
}

impl Drop for Exhausted {
    fn drop(&mut self) {
        // It may be gone.
        let _ = exchange(self.pid, Some(self.limit));
    }
}

/// Returns a process's limit of descriptors, and gives it another one.
fn exchange(pid: i32, new: Option<libc::rlimit>) -> io::Result<libc::rlimit> {
    let mut old = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let new = new.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: prlimit(2) reads the one and writes the other, both of which outlive the call, or are null.
    match unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, new, &raw mut old) } {
        0 => Ok(old),
        _ => Err(io::Error::last_os_error()),
    }
}
