//! Memory that is written to all the time, by a thread that notices when it is kept from it.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

const PAGE: usize = 4096;

/// The longest time between two writes of that thread.
#[derive(Clone, Debug)]
pub(crate) struct Stall(Arc<AtomicU64>);

impl Stall {
    /// Touches so much memory, and goes on writing to it for the life of the process.
    pub(crate) fn watch(megabytes: usize) -> Self {
        let longest = Arc::new(AtomicU64::new(0));
        let mut heap = vec![1_u8; megabytes << 20];
        thread::spawn({
            let longest = Arc::clone(&longest);
            move || write_for_ever(&mut heap, &longest)
        });
        Self(longest)
    }

    /// The longest in nanoseconds since it was last asked for.
    pub(crate) fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

fn write_for_ever(heap: &mut [u8], longest: &AtomicU64) {
    let mut page = 0;
    let mut written_at = Instant::now();
    loop {
        page = (page + PAGE) % heap.len();
        heap[page] = heap[page].wrapping_add(1);
        black_box(&heap);
        let now = Instant::now();
        let nanos = u64::try_from((now - written_at).as_nanos()).unwrap_or(u64::MAX);
        longest.fetch_max(nanos, Ordering::Relaxed);
        written_at = now;
    }
}
