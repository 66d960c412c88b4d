//! How many descriptors this process may hold, and on how many processors it may run.

use std::{fs, io};

#[cfg(target_os = "linux")]
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Makes room for `needed` more descriptors, and returns the limit in force.
///
/// The soft limit goes up only when the room is not there, no further than needed and never above the hard limit:
/// select(2) in somebody's C library cannot see a descriptor above 1023.
pub(crate) fn raise_descriptor_limit(needed: u64) -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if needed < soft / PLENTY {
        return Ok(soft);
    }
    let wanted = open_descriptors()?.saturating_add(needed).min(hard);
    if wanted > soft {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    }
    Ok(wanted.max(soft))
}

/// On how many processors this process may run at the same time; 1 if nobody knows (sched_getaffinity(2)).
///
/// [`std::thread::available_parallelism`] also reads the quotas of control groups, from a dozen files, in the middle of
/// a handover.
#[cfg(target_os = "linux")]
pub(crate) fn processors() -> usize {
    let allowed = sched_getaffinity(nix::unistd::Pid::this()).unwrap_or_default();
    let count = (0..CpuSet::count()).filter(|index| allowed.is_set(*index).unwrap_or(false));
    count.count().max(1)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Counting what is open reads a directory of /proc, in the middle of a handover: a limit this many times the need is
/// taken to have room.
const PLENTY: u64 = 8;

fn open_descriptors() -> io::Result<u64> {
    Ok(fs::read_dir("/proc/self/fd")?.count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_can_only_make_the_standard_library_say_less() {
        let parallelism = std::thread::available_parallelism().unwrap();
        assert!(processors() >= parallelism.get());
    }

    #[test]
    fn the_limit_stays_while_there_is_room() {
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(raise_descriptor_limit(0).unwrap() >= soft);
    }

    #[test]
    fn the_limit_rises_as_far_as_needed_and_allowed() {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let limit = raise_descriptor_limit(soft).unwrap();
        assert!(limit == hard || limit > soft);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (limit, hard));
        assert_eq!(raise_descriptor_limit(u64::MAX).unwrap(), hard);
    }
}
