//! What runs in one generation only: it holds a lock that no two processes can have.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use handover::Starting;
use rustix::fs::{FlockOperation, flock};

use crate::plan::Plan;
use crate::setting;

/// Says `active PID` and `inactive PID`, or `overlap PID` where another one has the lock.
pub(crate) fn run(starting: &Starting, plan: &Plan) {
    let Some(path) = setting("TESTD_SINGLETON") else {
        return;
    };
    let pid = std::process::id();
    let lock = Arc::new(Mutex::new(None));
    starting.on_activate({
        let lock = Arc::clone(&lock);
        move || {
            let file = File::create(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => println!("active {pid}"),
                Err(error) => println!("overlap {pid} {error}"),
            }
            *lock.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
            Ok(())
        }
    });
    let hangs = plan.get("deactivate") == Some("hang");
    let takes = plan.millis("deactivate").unwrap_or_default();
    starting.on_deactivate(move || {
        println!("deactivates {pid}");
        thread::park_timeout(takes);
        if hangs {
            loop {
                thread::park();
            }
        }
        *lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
        println!("inactive {pid}");
        Ok(())
    });
}
