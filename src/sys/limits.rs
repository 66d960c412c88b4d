//! How many descriptors this process may hold.

use std::{fs, io};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Makes room for `needed` more descriptors, and returns the limit in force.
///
/// The soft limit goes up only when the room is not there, no further than needed and never above the hard limit:
/// select(2) in somebody's C library cannot see a descriptor above 1023.
pub(crate) fn raise_descriptor_limit(needed: u64) -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = open_descriptors()?.saturating_add(needed).min(hard);
    if wanted > soft {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    }
    Ok(wanted.max(soft))
}

fn open_descriptors() -> io::Result<u64> {
    Ok(fs::read_dir("/proc/self/fd")?.count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

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
