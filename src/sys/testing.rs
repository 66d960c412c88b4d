//! Tests of what belongs to a whole process, each in a process of its own.

use std::env;
use std::process::Command;

/// Runs the test of this name again, alone in a process with these variables, and says whether it did: in that process
/// it says no, and the test goes on.
pub(crate) fn ran_in_its_own_process(name: &str, variables: &[(&str, &str)]) -> bool {
    if env::var_os(ALONE).is_some() {
        return false;
    }
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", name])
        .envs(variables.iter().copied())
        .env(ALONE, "1")
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(report.contains("1 passed"), "{report}");
    true
}

const ALONE: &str = "HANDOVER_TEST_ALONE";
