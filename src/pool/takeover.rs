//! How a pool that starts comes to its sockets: passed by a service manager, bound, or taken back from workers whose
//! supervisor was killed.

use std::error::Error as _;
use std::time::Duration;

use tokio::time::Instant;

use super::orphans::{Found, Orphans};
use super::sockets::{self, Listen, Sockets};
use crate::error::{Error, ErrorKind, Result};
use crate::listen::{Table, refuses_new};

/// An address that is in use may be that of workers whose supervisor was killed: then it is taken back from them, unless
/// each has a part of it. They are to leave once others serve; if they have to leave before, they have `stop_within`.
pub(super) async fn claim(
    table: Table,
    listen: &[Listen],
    slots: usize,
    is_passed: bool,
    stop_within: Duration,
) -> Result<(Sockets, Orphans)> {
    if slots > 1 {
        // Somebody else's sockets in the group would be counted as ours.
        sockets::are_free(listen.iter().filter(|_| !is_passed))?;
        let sockets = Sockets::claim(table, listen, slots).await?;
        return Ok((sockets, Orphans::default()));
    }
    match Sockets::claim(table, listen, slots).await {
        Ok(sockets) => Ok((sockets, Orphans::default())),
        // The table is gone with what it had bound.
        Err(in_use) => take_back(listen, in_use, stop_within).await,
    }
}

async fn take_back(
    listen: &[Listen],
    in_use: Error,
    stop_within: Duration,
) -> Result<(Sockets, Orphans)> {
    let found = Orphans::find(listen);
    let orphans = &found.orphans;
    if orphans.is_empty() {
        return Err(explained(in_use, &found));
    }
    let taking = || {
        let whose = orphans.pids();
        let doing =
            format!("taking the sockets of processes {whose:?}, whose supervisor was killed");
        Error::new(ErrorKind::Listen, doing)
    };
    let taken = orphans.sockets(listen).map_err(|reason| {
        taking().because(format!("{reason}; they serve on, so stop them first"))
    })?;
    if taken.is_empty() {
        return Err(explained(in_use, &found));
    }
    let holders = orphans.that_have(&taken);
    if taken.iter().any(|(_, socket)| refuses_new(socket)) {
        // Their pool was being stopped, and undoing that would need CAP_NET_RAW. Nobody has the address once they are gone.
        drop(taken);
        tracing::warn!(pids = ?holders.pids(), "workers of a pool that was being stopped have to leave first");
        let left = holders.relieve(Instant::now() + stop_within).await;
        return match &left[..] {
            [] => Ok((
                Sockets::claim(Table::default(), listen, 1).await?,
                Orphans::default(),
            )),
            left => Err(taking().because(format!("they refuse everybody and live on: {left:?}"))),
        };
    }
    let table = Table::default();
    if let Some(problem) = table.adopt_activated(taken).pop() {
        return Err(taking().because(problem));
    }
    // If it is somebody else who has another of the addresses, it still is.
    let sockets = Sockets::claim(table, listen, 1).await?;
    sockets.table().close_unclaimed_activated();
    Ok((sockets, holders))
}

/// Workers may have the address that this process does not know as such, or does not believe.
fn explained(in_use: Error, found: &Found) -> Error {
    let Some(reason) = in_use.source().map(ToString::to_string) else {
        return in_use;
    };
    let who = match (&found.strangers[..], found.hidden) {
        ([], 0) => return in_use,
        ([], hidden) => format!(
            "{hidden} processes may not be looked at: if workers of a killed supervisor are among them, start as their \
             user, as root, or stop them first"
        ),
        (strangers, _) => format!(
            "processes {strangers:?} say that they are workers of a killed supervisor, and are another user's: if they are, \
             stop them first"
        ),
    };
    in_use.because(format!("{reason}; {who}"))
}
