//! The preloaded library that makes calls fail, and what it is told.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

/// One call that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) function: &'static str,
    pub(crate) nth: u32,
    pub(crate) mode: Mode,
    pub(crate) errno: i32,
    pub(crate) role: Role,
}

/// How often it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Once,
    Ever,
}

/// Whose call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Incumbent,
    Successor,
}

/// The files by which a server's shim is told when to fail, and tells that it has.
#[derive(Debug)]
pub(crate) struct Switch {
    armed: PathBuf,
    log: PathBuf,
}

impl Switch {
    /// Loads the shim into a server and all its generations, without any effect until it is [armed](Self::arm).
    pub(crate) fn install(fault: &Fault, directory: &Path, server: &mut Command) -> Self {
        let (armed, log) = (directory.join("armed"), directory.join("failed"));
        server
            .env("LD_PRELOAD", library())
            .env("FAULT", fault.to_string())
            .env("FAULT_ARMED", &armed)
            .env("FAULT_LOG", &log);
        Self { armed, log }
    }

    pub(crate) fn arm(&self) {
        fs::write(&self.armed, "").unwrap();
    }

    pub(crate) fn disarm(&self) {
        fs::remove_file(&self.armed).unwrap();
    }

    /// How many calls were made to fail.
    pub(crate) fn failed(&self) -> usize {
        match fs::read_to_string(&self.log) {
            Ok(lines) => lines.lines().count(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => panic!("{error}"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            function,
            nth,
            mode,
            errno,
            role,
        } = self;
        write!(f, "{function}:{nth}:{mode}:{errno}:{role}")
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Once => "once",
            Self::Ever => "ever",
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Incumbent => "incumbent",
            Self::Successor => "successor",
        })
    }
}

pub(crate) fn library() -> PathBuf {
    static COMPILED: OnceLock<TempDir> = OnceLock::new();
    COMPILED.get_or_init(compile).path().join(LIBRARY)
}

fn compile() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("shim.c");
    fs::write(&source, include_str!("shim.c")).unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&directory.path().join(LIBRARY), &source])
        .arg("-ldl")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "{errors}");
    directory
}

const LIBRARY: &str = "shim.so";
