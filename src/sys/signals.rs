//! The signal mask of the calling thread.

#![expect(
    unsafe_code,
    reason = "nix cannot name realtime signals, which an application may choose"
)]

use std::{io, ptr};

/// Lets signals through to the calling thread; one that was held back is delivered before this returns.
///
/// A successor starts with the upgrade signal blocked in its first thread, so that one sent before the handler exists
/// waits instead of killing it. Threads made in the meantime keep it blocked, which is harmless: a signal to the
/// process goes to any thread that takes it (signal(7)).
pub(crate) fn unblock(signals: &[i32]) -> io::Result<()> {
    let set = set_of(signals)?;
    // SAFETY: `set` is initialised and outlives the call; a null third argument asks for no copy of the mask before.
    match unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) } {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Keeps signals from the calling thread until it [lets them through](unblock); what comes in the meantime waits, across an
/// exec too (execve(2)), where a default action would end the process.
#[cfg(feature = "pool")]
pub(crate) fn block(signals: &[i32]) -> io::Result<()> {
    let set = set_of(signals)?;
    // SAFETY: `set` is initialised and outlives the call; a null third argument asks for no copy of the mask before.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) } {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Lets these signals be ignored for good, whoever has listened to them before.
#[cfg(feature = "pool")]
pub(crate) fn ignore(signals: &[i32]) -> io::Result<()> {
    for &signal in signals {
        // SAFETY: takes numbers; SIG_IGN is no address of a function.
        if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Sends a signal to the calling thread, where it waits if it is [blocked](block).
#[cfg(feature = "pool")]
pub(crate) fn raise(signal: i32) -> io::Result<()> {
    // SAFETY: raise(3) takes a number, and refuses those that it does not know.
    match unsafe { libc::raise(signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A set of exactly these signals; a number that is no signal is an error.
pub(super) fn set_of(signals: &[i32]) -> io::Result<libc::sigset_t> {
    // SAFETY: sigset_t is an array of integers, for which zero is a value.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` outlives the call.
    unsafe { libc::sigemptyset(&raw mut set) };
    for &signal in signals {
        // SAFETY: `set` was emptied above and outlives the call, which refuses numbers it does not know.
        if unsafe { libc::sigaddset(&raw mut set, signal) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unblocking_clears_the_thread_s_mask_of_exactly_these() {
        let both = set_of(&[libc::SIGUSR1, libc::SIGRTMIN()]).unwrap();
        // SAFETY: as in `unblock`.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const both, ptr::null_mut()) };
        unblock(&[libc::SIGRTMIN()]).unwrap();
        let mask = blocked_in("/proc/thread-self/status");
        assert_eq!(mask >> (libc::SIGRTMIN() - 1) & 1, 0);
        assert_eq!(mask >> (libc::SIGUSR1 - 1) & 1, 1);
    }

    #[cfg(feature = "pool")]
    #[test]
    fn a_signal_that_is_ignored_ends_nobody() {
        use crate::sys::testing::ran_in_its_own_process;
        let name = "sys::signals::tests::a_signal_that_is_ignored_ends_nobody";
        if ran_in_its_own_process(name, &[]) {
            return;
        }
        ignore(&[libc::SIGTERM]).unwrap();
        nix::sys::signal::raise(nix::sys::signal::SIGTERM).unwrap();
        assert!(ignore(&[libc::SIGKILL]).is_err());
    }

    #[test]
    fn a_number_that_is_no_signal_is_refused() {
        assert!(unblock(&[0]).is_err());
        assert!(unblock(&[i32::MAX]).is_err());
    }

    fn blocked_in(status: &str) -> u64 {
        let status = std::fs::read_to_string(status).unwrap();
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("SigBlk:"))
            .unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap()
    }
}
