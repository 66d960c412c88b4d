//! psql, on PostgreSQL alone: a file for each step, in one transaction, and no history but the gates' own.

use handover::schema::{Step, Version};

pub(crate) fn expand(store: &str, version: Version) -> Step {
    step("expand", store, version)
}

pub(crate) fn contract(store: &str, version: Version) -> Step {
    step("contract", store, version)
}

fn step(what: &str, store: &str, version: Version) -> Step {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/psql");
    let file = format!("{directory}/{what}/{version}.sql");
    // What it prints stands for what has run.
    let said = format!("\\echo ran {what} {version}");
    Step::command(
        "psql",
        [
            "--no-psqlrc",
            "--quiet",
            "--single-transaction",
            "--set=ON_ERROR_STOP=1",
            "--dbname",
            store,
            "--command",
            &said,
            "--file",
            &file,
        ],
    )
}
