//! Supervisors whose log nobody reads.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use handover_load::Signal;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use crate::rig::{Pool, QUICK};
use crate::support::{DEADLINE, free_address, testd};

/// A pipe in which there is no more room, and that is open for as long as this is.
fn full(path: &Path) -> File {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    // Only of this open file of it; whoever opens it too waits, as usual.
    options.custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    let mut pipe = options.open(path).unwrap();
    while pipe.write(b"-").is_ok() {}
    pipe
}

#[tokio::test]
async fn a_supervisor_whose_log_nobody_reads_updates_answers_and_stops() {
    let (room, web) = (tempfile::tempdir().unwrap(), free_address());
    let log = room.path().join("log");
    let mut pipe = full(&log);
    let script = format!("exec \"$@\" 2>{}", log.display());
    let prefix = ["sh", "-c", &script, "sh"];
    let mut pool = Pool::under(&prefix, room, web, 2, &QUICK, &[testd().to_str().unwrap()]);
    pool.line("ready 1 ").await;
    pool.until_rests_on(1, 2).await;
    pool.run(&["upgrade"]).await.assert_code(0);
    // Once somebody reads, the log goes on where it is by now.
    let mut read = vec![0; 1 << 20];
    assert!(pipe.read(&mut read).unwrap() > 0);
    pool.run(&["upgrade"]).await.assert_code(0);
    let length = pipe.read(&mut read).unwrap();
    let told = String::from_utf8_lossy(&read[..length]);
    assert!(told.contains("events were missed"), "{told}");
    assert!(told.contains("upgrade to 3 committed"), "{told}");
    while pipe.write(b"-").is_ok() {}
    pool.signal(Signal::TERM);
    let ended = pool.server.exit_status(DEADLINE).await.unwrap();
    assert_eq!(ended.code(), Some(0));
}
