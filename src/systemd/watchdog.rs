//! How often the service manager wants to hear from this process (sd_watchdog_enabled(3)).

use std::ffi::OsStr;
use std::process;
use std::time::Duration;

use crate::sys::environment::Snapshot;

/// How often to tell the manager that this process is alive, if it wants to know: twice in each of its intervals.
pub(crate) fn interval(snapshot: &Snapshot) -> Option<Duration> {
    let usec = snapshot.service_manager("WATCHDOG_USEC")?;
    let meant = snapshot.service_manager("WATCHDOG_PID");
    read(usec, meant, process::id())
}

fn read(usec: &OsStr, meant: Option<&OsStr>, pid: u32) -> Option<Duration> {
    let Some(usec) = number::<u64>(usec).filter(|usec| *usec > 0) else {
        tracing::warn!(?usec, "WATCHDOG_USEC is no interval; no watchdog is served");
        return None;
    };
    if let Some(meant) = meant
        && number(meant) != Some(pid)
    {
        tracing::warn!(?meant, pid, "WATCHDOG_PID means another process");
        return None;
    }
    Some((Duration::from_micros(usec) / 2).max(INTERVAL_MIN))
}

fn number<N: std::str::FromStr>(value: &OsStr) -> Option<N> {
    value.to_str()?.parse().ok()
}

/// Shorter intervals would be all that this process does.
const INTERVAL_MIN: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_the_interval_if_it_is_ours_or_nobodys() {
        let usec = OsStr::new("3000000");
        let half = Some(Duration::from_millis(1500));
        assert_eq!(read(usec, None, 77), half);
        assert_eq!(read(usec, Some(OsStr::new("77")), 77), half);
        let snapshot = Snapshot {
            service_manager: vec![
                ("WATCHDOG_USEC".into(), usec.into()),
                ("WATCHDOG_PID".into(), process::id().to_string().into()),
            ],
            ..Snapshot::default()
        };
        assert_eq!(interval(&snapshot), half);
        assert_eq!(interval(&Snapshot::default()), None);
    }

    #[test]
    fn somebody_elses_watchdog_is_not_ours() {
        for meant in ["78", "", "seventy", "-77"] {
            assert_eq!(
                read(OsStr::new("3000000"), Some(OsStr::new(meant)), 77),
                None
            );
        }
    }

    #[test]
    fn what_is_no_interval_is_no_watchdog_and_a_tiny_one_is_bounded() {
        for usec in ["", "0", "-1", "soon", "1.5", "99999999999999999999"] {
            assert_eq!(read(OsStr::new(usec), None, 77), None, "{usec}");
        }
        assert_eq!(read(OsStr::new("1"), None, 77), Some(INTERVAL_MIN));
        assert!(read(OsStr::new(&u64::MAX.to_string()), None, 77).is_some());
    }
}
