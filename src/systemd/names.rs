//! How names of sockets and state are written in the service manager's store.
//!
//! Every name of ours there begins in a way that no unit file would choose, so that what comes back tells by itself
//! whether a unit or a generation has put it there. The manager takes printable ASCII without colons
//! (sd_pid_notify_with_fds(3), `FDNAME=`); every other byte is written as `%` and two digits.

/// Names that begin like this are this crate's.
const SOCKET: &str = "handover.socket.";
const BLOB: &str = "handover.state.";
/// What asks whether there is room; never anything that is worth taking back.
pub(super) const PROBE: &str = "handover.probe";
/// Bytes in a name (`FDNAME=`).
const STORED_MAX: usize = 255;

/// Whose a descriptor of this name is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A unit's, or that of another program with the same store.
    Unit,
    /// A socket that a generation has stored under this name.
    Socket(String),
    /// State that a generation has stored under this name.
    Blob(String),
    /// A leftover of a generation that died while it asked for room.
    Probe,
}

/// How the name of a socket is stored; none if it is too long for the manager.
pub(super) fn socket(name: &str) -> Option<String> {
    stored(SOCKET, name)
}

/// As [`socket`], for state.
pub(super) fn blob(name: &str) -> Option<String> {
    stored(BLOB, name)
}

pub(crate) fn owner(stored_as: &str) -> Owner {
    if stored_as == PROBE {
        return Owner::Probe;
    }
    let ours = |prefix| {
        let name = unescaped(stored_as.strip_prefix(prefix)?)?;
        // Written in any other way it was not written by us.
        (stored(prefix, &name).as_deref() == Some(stored_as)).then_some(name)
    };
    let socket = ours(SOCKET).map(Owner::Socket);
    socket
        .or_else(|| ours(BLOB).map(Owner::Blob))
        .unwrap_or(Owner::Unit)
}

fn stored(prefix: &str, name: &str) -> Option<String> {
    let mut stored = prefix.to_owned();
    for byte in name.bytes() {
        match byte {
            b' '..=b'~' if byte != b':' && byte != b'%' => stored.push(byte.into()),
            _ => stored.push_str(&format!("%{byte:02X}")),
        }
    }
    (stored.len() <= STORED_MAX).then_some(stored)
}

fn unescaped(mut escaped: &str) -> Option<String> {
    let mut bytes = Vec::new();
    while let Some((plain, rest)) = escaped.split_once('%') {
        bytes.extend(plain.bytes());
        let (digits, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        escaped = after;
    }
    bytes.extend(escaped.bytes());
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_back_and_the_manager_takes_it() {
        for name in [
            "web",
            "",
            "=\n\"%\0 ü:",
            "%41",
            "handover.probe",
            "a b~\u{7f}",
        ] {
            for (stored, owner_is) in [
                (socket(name).unwrap(), Owner::Socket(name.into())),
                (blob(name).unwrap(), Owner::Blob(name.into())),
            ] {
                let taken = |byte: u8| (b' '..127).contains(&byte) && byte != b':';
                assert!(stored.bytes().all(taken), "{stored}");
                assert_eq!(owner(&stored), owner_is);
            }
        }
        assert_eq!(socket("web").unwrap(), "handover.socket.web");
        assert_eq!(owner(PROBE), Owner::Probe);
    }

    #[test]
    fn what_we_would_write_differently_is_not_ours() {
        for foreign in [
            "web",
            "unknown",
            "",
            "handover.socket",
            "handover.socket.%41",
            "handover.socket.%3a",
            "handover.socket.%",
            "handover.socket.%+1",
            "handover.socket.%FF",
            "handover.state.a:b",
            "handover.state.ü",
        ] {
            assert_eq!(owner(foreign), Owner::Unit, "{foreign}");
        }
    }

    #[test]
    fn a_name_that_is_too_long_for_the_manager_is_not_written() {
        let fits = STORED_MAX - SOCKET.len();
        assert!(socket(&"x".repeat(fits)).is_some());
        assert!(socket(&"x".repeat(fits + 1)).is_none());
        assert!(socket(&"ü".repeat(fits / 2)).is_none());
    }
}
