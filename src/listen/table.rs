//! Everything that a generation holds by name: what it was offered, what it claimed, what it bound.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::mem;
use std::net::{self, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::address::Address;
use super::claim::{BoundPath, Claim, Claimed, Held, Public, RESERVED, Request, listen_error};
use super::divert::Diverter;
use super::gate::{Gate, Gated, Watch};
use super::intake::Adopted;
use super::options::ListenOptions;
use super::path::{self, Inode};
use super::probe::{Caller, Expected};
use super::tcp::TcpListener;
use super::udp::UdpSocket;
use super::unix::UnixListener;
use crate::error::{Error, Result};
use crate::protocol::message::{Keeper, Slot, SlotKind};

/// How many connections were accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) count: u64,
    /// Whether that is all: the application's own accept loops are not counted.
    pub(crate) is_complete: bool,
}

/// The sockets of one generation, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    held: Vec<Held>,
    paths: Vec<BoundPath>,
    /// Nothing is held any more, and nothing will be.
    retired: bool,
    /// Names under which the service manager keeps a socket for the next start, whether it is still held here or not.
    stored: BTreeSet<String>,
    /// What its listeners answer themselves.
    expected: Arc<Expected>,
    diverter: Diverter,
    /// Whether there has ever been something for the application to accept, whatever its gates.
    has_adopted: watch::Sender<bool>,
}

// What a starting generation does.
impl Table {
    /// Takes over offered sockets, checked against what they are said to be. Slots that are no sockets come back with
    /// their index in `slots`.
    pub(crate) fn adopt(&self, slots: Vec<(Slot, OwnedFd)>) -> Result<Vec<(u32, Slot, OwnedFd)>> {
        let mut others = Vec::new();
        let mut adopted = Vec::new();
        for (index, (slot, descriptor)) in (0..).zip(slots) {
            match slot.kind {
                SlotKind::Tcp | SlotKind::Unix | SlotKind::Udp => {
                    adopted.push(Held::offered(index, slot, descriptor)?);
                }
                _ => others.push((index, slot, descriptor)),
            }
        }
        self.lock().add(adopted);
        Ok(others)
    }

    /// Claims or binds a TCP listener on the first of `addresses` that works.
    pub(crate) fn tcp(
        &self,
        name: &str,
        addresses: &[SocketAddr],
        options: &ListenOptions,
    ) -> Result<TcpListener> {
        let claimed = self.claim_inet(&Request::inet(SlotKind::Tcp, name, addresses, options))?;
        let gate = self.gate(name, &claimed)?;
        Ok(TcpListener::new(gate, name, claimed.inet()?))
    }

    /// Claims or binds a UDP socket on the first of `addresses` that works.
    pub(crate) fn udp(
        &self,
        name: &str,
        addresses: &[SocketAddr],
        options: &ListenOptions,
    ) -> Result<UdpSocket> {
        let claimed = self.claim_inet(&Request::inet(SlotKind::Udp, name, addresses, options))?;
        let gate = self.gate(name, &claimed)?;
        let socket = Arc::clone(&claimed.socket);
        Ok(UdpSocket::new(gate, socket, name, claimed.inet()?))
    }

    /// Claims or binds a Unix listener; a path that begins with `@` is an abstract name. A stale path is replaced.
    ///
    /// Cancel safe: the name is free again, though a path that was bound may be left over as a stale one.
    pub(crate) async fn unix(
        &self,
        name: &str,
        path: &Path,
        options: &ListenOptions,
    ) -> Result<UnixListener> {
        let claimed = self.claim_unix(name, path, options).await?;
        let gate = self.gate(name, &claimed)?;
        Ok(UnixListener::new(gate, name, claimed.unix()?))
    }

    /// As [`tcp`](Self::tcp), without a gate: a duplicate, in non-blocking mode, for a server that accepts by itself.
    pub(crate) fn std_tcp(
        &self,
        name: &str,
        addresses: &[SocketAddr],
        options: &ListenOptions,
    ) -> Result<net::TcpListener> {
        self.claim_inet(&Request::inet(SlotKind::Tcp, name, addresses, options))?
            .duplicate()
    }

    /// As [`udp`](Self::udp), without a gate: a duplicate, in non-blocking mode.
    pub(crate) fn std_udp(
        &self,
        name: &str,
        addresses: &[SocketAddr],
        options: &ListenOptions,
    ) -> Result<net::UdpSocket> {
        self.claim_inet(&Request::inet(SlotKind::Udp, name, addresses, options))?
            .duplicate()
    }

    /// As [`unix`](Self::unix), without a gate: a duplicate, in non-blocking mode, for a server that accepts by itself.
    pub(crate) async fn std_unix(
        &self,
        name: &str,
        path: &Path,
        options: &ListenOptions,
    ) -> Result<unix::net::UnixListener> {
        self.claim_unix(name, path, options).await?.duplicate()
    }

    /// Claims or binds the control socket, which only its user reaches: a duplicate, in non-blocking mode.
    ///
    /// Cancel safe as [`unix`](Self::unix) is.
    pub(crate) async fn control(&self, path: &Path) -> Result<unix::net::UnixListener> {
        let options = ListenOptions::new().mode(0o600);
        let claimed = self.claim_unix_as(CONTROL, path, &options).await?;
        claimed.duplicate()
    }

    /// Indexes of the offered sockets that nobody has claimed.
    pub(crate) fn unclaimed(&self) -> Vec<u32> {
        let inner = self.lock();
        inner.held.iter().filter_map(Held::offered_as).collect()
    }

    /// Closes this generation's copies of what nobody has claimed. The sockets themselves are not touched.
    pub(crate) fn close_unclaimed(&self) {
        self.lock().held.retain(|held| held.offered_as().is_none());
    }
}

// What the driver does.
impl Table {
    /// The names of all claimed sockets, in the order of their claims.
    pub(crate) fn names(&self) -> Vec<String> {
        let inner = self.lock();
        inner.claimed().map(|held| held.slot.name.clone()).collect()
    }

    /// Every claimed socket, for a successor.
    pub(crate) fn offer(&self) -> Vec<(Slot, Arc<OwnedFd>)> {
        let inner = self.lock();
        let claimed = inner.claimed();
        claimed
            .map(|held| (held.slot.clone(), Arc::clone(&held.socket)))
            .collect()
    }

    /// Name, kind and address of every socket of the application's, in the order of the claims.
    pub(crate) fn describe(&self) -> Vec<(String, String, String)> {
        let inner = self.lock();
        let sockets = inner.claimed().filter(|held| held.slot.name != CONTROL);
        sockets
            .map(|held| {
                let kind = match held.slot.kind {
                    SlotKind::Tcp => "tcp",
                    SlotKind::Unix => "unix",
                    SlotKind::Udp => "udp",
                    SlotKind::Blob | SlotKind::Descriptor | SlotKind::Unknown => "unknown",
                };
                (
                    held.slot.name.clone(),
                    kind.to_owned(),
                    held.address.to_string(),
                )
            })
            .collect()
    }

    /// Connections from `callers` ask who accepts: its listeners answer so, until `patience` is over, and keep them from
    /// the application.
    pub(crate) fn expect(&self, callers: Vec<Caller>, answer: &str, patience: Duration) {
        self.expected().expect(callers, answer, patience);
    }

    /// Whoever comes from one of these from now on does not ask.
    pub(crate) fn forget(&self, callers: &[Caller]) {
        self.expected().forget(callers);
    }

    /// Where clients reach the application's sockets, in the order of the claims, without those of `names`.
    pub(crate) fn public(&self, except: &[String]) -> Vec<Public> {
        let inner = self.lock();
        let sockets = inner
            .claimed()
            .filter(|held| held.slot.name != CONTROL && !except.contains(&held.slot.name));
        sockets.map(Public::of).collect()
    }

    /// The names of the sockets that nobody answers for but the application: it accepts by itself.
    pub(crate) fn ungated(&self) -> Vec<String> {
        let inner = self.lock();
        let ungated = inner.claimed().filter(|held| held.gate().is_none());
        ungated.map(|held| held.slot.name.clone()).collect()
    }

    /// How many connections wait in the queues of the application's listening sockets, those of `except` left out. A Unix
    /// socket does not tell how many: in its queue is one, or none.
    pub(crate) fn waiting(&self, except: &[String]) -> u64 {
        let inner = self.lock();
        let listening = inner.listening();
        let listening = listening.filter(|held| !except.contains(&held.slot.name));
        listening.map(Held::waiting).sum()
    }

    /// How many connections this generation has accepted.
    pub(crate) fn accepted(&self) -> Accepted {
        let inner = self.lock();
        let gates = inner.listening().filter_map(Held::gate);
        Accepted {
            count: gates.map(|gate| gate.accepted()).sum(),
            is_complete: inner.listening().all(|held| held.gate().is_some()),
        }
    }

    /// Shuts every gate but those of `kept`. When it returns, nobody in this process accepts from the others.
    pub(crate) fn shut_all_except(&self, kept: &[String]) {
        let inner = self.lock();
        let shut = inner.gates().filter(|(name, _)| !kept.contains(name));
        shut.for_each(|(_, gate)| gate.shut());
    }

    /// Opens every gate, or none if one of them would be deaf.
    pub(crate) fn open_all(&self) -> Result<()> {
        let inner = self.lock();
        for (opened, (name, gate)) in inner.gates().enumerate() {
            if let Err(error) = gate.open() {
                inner.gates().take(opened).for_each(|(_, gate)| gate.shut());
                return Err(listen_error(format!("opening the gate of {name:?}")).because(error));
            }
        }
        Ok(())
    }

    /// Opens every gate whatever happens; one whose socket cannot be watched now goes on trying.
    pub(crate) fn open_all_regardless(&self) {
        self.lock()
            .gates()
            .for_each(|(_, gate)| gate.open_regardless());
    }

    /// Closes every socket for good, whatever is in its queue, and refuses every claim from now on. Waiting calls of
    /// `accept` wait for ever.
    pub(crate) fn retire(&self) {
        let mut inner = self.lock();
        inner.retired = true;
        let held = mem::take(&mut inner.held);
        drop(inner);
        held.iter()
            .filter_map(Held::gate)
            .for_each(|gate| gate.retire());
    }

    /// Lets the accept loops that still run empty the queues of these sockets, then closes them; unlinks their paths
    /// first, so that nobody new comes. Returns the names of those whose queues were not empty within `deadline` and
    /// that were closed all the same.
    ///
    /// A connection in an emptied queue is never reset. What the kernel has not put there yet is: a handshake whose
    /// last packet is on its way when the socket closes ends in a reset; `final_stop` waits for it. A
    /// socket with no accept loop, because its listener was dropped or its gate is shut, is closed at once. Duplicates
    /// given to the application without a gate are its own to close.
    ///
    /// Not cancel safe: if the future is dropped, the sockets still close when their queues are empty, but without a
    /// deadline.
    pub(crate) fn finish(
        &self,
        names: &[String],
        deadline: Duration,
    ) -> impl Future<Output = Vec<String>> + use<> {
        let (held, paths) = self.lock().take(names);
        let until = Instant::now() + deadline;
        async move {
            unlink_all(paths, until).await;
            finish_all(held, until).await
        }
    }
}

// What comes from other generations, and goes to them.
impl Table {
    /// Puts a connection before the application that was accepted elsewhere: the next one that the listener of this name
    /// gives it, gate open or shut. It comes back if there is no such listener, nobody accepts from it any more, or too
    /// many wait already.
    pub(crate) fn adopt_connection(
        &self,
        name: &str,
        adopted: Adopted,
    ) -> std::result::Result<(), Adopted> {
        let inner = self.lock();
        let Some(gate) = inner.listener(name).cloned() else {
            return Err(adopted);
        };
        let has_adopted = inner.has_adopted.clone();
        drop(inner);
        gate.adopt(adopted)?;
        has_adopted.send_if_modified(|before| !mem::replace(before, true));
        Ok(())
    }

    /// Becomes `true` when the first connection is adopted.
    pub(crate) fn has_adopted(&self) -> watch::Receiver<bool> {
        self.lock().has_adopted.subscribe()
    }

    /// Whether a connection to the listener of this name may be adopted, as far as is known.
    pub(crate) fn adopts(&self, name: &str) -> bool {
        self.lock().listener(name).is_some()
    }

    /// Waits until the application has accepted everything that was adopted, or `deadline` is over.
    ///
    /// Cancel safe.
    pub(crate) fn adopted_accepted(&self, deadline: Duration) -> impl Future<Output = ()> + use<> {
        let inner = self.lock();
        let adopted: Vec<_> = inner.gates().map(|(_, gate)| gate.adopted()).collect();
        drop(inner);
        let until = Instant::now() + deadline;
        async move {
            for mut count in adopted {
                // Out of time or without a gate, nobody is left to wait for.
                let _ = timeout_at(until, count.wait_for(|count| *count == 0)).await;
            }
        }
    }

    /// Has somebody be asked where each connection is to be served.
    pub(crate) fn diverter(&self) -> Diverter {
        self.lock().diverter.clone()
    }
}

// What is the service manager's.
impl Table {
    /// Takes over sockets that came from the service manager, for claims to find. Says what is wrong with those that it
    /// closes instead.
    ///
    /// A claim finds such a socket by its name and address; else, if a unit says where it is bound, by its name alone
    /// where only one has that name; else by the very address that is asked for.
    pub(crate) fn adopt_activated(&self, sockets: Vec<(Slot, OwnedFd)>) -> Vec<Error> {
        let (mut adopted, mut problems) = (Vec::new(), Vec::new());
        for (slot, descriptor) in sockets {
            match Held::activated(slot, descriptor) {
                Ok(held) => adopted.push(held),
                Err(error) => problems.push(error),
            }
        }
        self.lock().add(adopted);
        problems
    }

    /// Closes this generation's copies of what the service manager passed and nobody has claimed. The manager has them
    /// still; says which they are.
    pub(crate) fn close_unclaimed_activated(&self) -> Vec<Slot> {
        let mut inner = self.lock();
        let unclaimed = inner.held.extract_if(.., |held| held.is_activated());
        unclaimed.map(|held| held.slot).collect()
    }

    /// The names under which the service manager keeps sockets for the next start, as far as this generation knows.
    pub(crate) fn stored(&self) -> Vec<String> {
        self.lock().stored.iter().cloned().collect()
    }

    /// The service manager keeps the sockets of these names from now on, and no others. Those of units stay units'.
    pub(crate) fn set_stored(&self, names: &[String]) {
        let mut inner = self.lock();
        inner.stored = names.iter().cloned().collect();
        let claimed = inner.held.iter_mut().filter(|held| held.is_claimed());
        for held in claimed.filter(|held| held.slot.keeper != Some(Keeper::Unit)) {
            held.slot.keeper = names.contains(&held.slot.name).then_some(Keeper::Store);
        }
    }

    /// Closes this generation's copies of what the service manager holds too, for good: what is in their queues waits
    /// for the next start of the service.
    pub(crate) fn leave_to_manager(&self) {
        let mut inner = self.lock();
        let held: Vec<Held> = inner
            .held
            .extract_if(.., |held| held.is_managers())
            .collect();
        inner.forget_paths_of(&held);
        held.iter()
            .filter_map(Held::gate)
            .for_each(|gate| gate.retire());
    }
}

impl Table {
    fn claim_inet(&self, request: &Request<'_>) -> Result<Claimed> {
        refuse_reserved(request.name)?;
        let mut inner = self.lock();
        if let Some(inherited) = inner.claim_inherited(request)? {
            return Ok(inherited);
        }
        let socket = inner.bind_first(request)?;
        inner.hold(request, socket, None)
    }

    async fn claim_unix(
        &self,
        name: &str,
        path: &Path,
        options: &ListenOptions,
    ) -> Result<Claimed> {
        refuse_reserved(name)?;
        self.claim_unix_as(name, path, options).await
    }

    async fn claim_unix_as(
        &self,
        name: &str,
        path: &Path,
        options: &ListenOptions,
    ) -> Result<Claimed> {
        let binding = || listen_error(format!("binding {name:?} to {}", path.display()));
        let address = path::address(path).map_err(|error| binding().because(error))?;
        let request = Request {
            name,
            kind: SlotKind::Unix,
            addresses: vec![Address::Unix(address.clone())],
            options,
        };
        if let Some(inherited) = self.lock().claim_inherited(&request)? {
            return Ok(inherited);
        }
        let bound = path::bind(&address, options).await;
        let (socket, inode) = bound.map_err(|error| binding().because(error))?;
        self.lock().hold(&request, socket, inode)
    }

    fn gate<W: Watch>(&self, name: &str, claimed: &Claimed) -> Result<Arc<Gate<W>>> {
        let runtime = Handle::try_current()
            .map_err(|error| listen_error(format!("making a gate for {name:?}")).because(error))?;
        let mut inner = self.lock();
        let (socket, expected) = (Arc::clone(&claimed.socket), Arc::clone(&inner.expected));
        let gate = Gate::new(socket, runtime, inner.diverter.at(name), expected);
        let gate = Arc::new(gate);
        let mut held = inner.held.iter_mut();
        match held.find(|held| Arc::ptr_eq(&held.socket, &claimed.socket)) {
            Some(held) => held.claim = Claim::Gated(gate.clone()),
            // Retired since the claim.
            None => return Err(too_late(name)),
        }
        Ok(gate)
    }

    fn expected(&self) -> Arc<Expected> {
        Arc::clone(&self.lock().expected)
    }

    /// Everything that is held, and the paths to unlink.
    pub(super) fn take_all(&self) -> (Vec<Held>, Vec<BoundPath>) {
        let mut inner = self.lock();
        let held = mem::take(&mut inner.held);
        inner.forget_paths_of(&held);
        (held, mem::take(&mut inner.paths))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn claimed(&self) -> impl Iterator<Item = &Held> {
        self.held.iter().filter(|held| held.is_claimed())
    }

    /// The application's, which have a queue of connections.
    fn listening(&self) -> impl Iterator<Item = &Held> {
        let has_queue = |held: &&Held| matches!(held.slot.kind, SlotKind::Tcp | SlotKind::Unix);
        let claimed = self.claimed().filter(has_queue);
        claimed.filter(|held| !held.slot.name.starts_with(RESERVED))
    }

    fn gates(&self) -> impl Iterator<Item = (&String, &Arc<dyn Gated>)> {
        let held = self.held.iter();
        held.filter_map(|held| Some((&held.slot.name, held.gate()?)))
    }

    /// The gate of this name, if connections come through it.
    fn listener(&self, name: &str) -> Option<&Arc<dyn Gated>> {
        let mut held = self.held.iter();
        let held = held.find(|held| held.slot.name == name && held.slot.kind != SlotKind::Udp)?;
        held.gate()
    }

    fn add(&mut self, inherited: Vec<Held>) {
        let stored = inherited
            .iter()
            .filter(|held| held.slot.keeper == Some(Keeper::Store));
        self.stored
            .extend(stored.map(|held| held.slot.name.clone()));
        self.held.extend(inherited);
    }

    /// Finds the inherited socket that a request means, if there is one, and makes it the application's.
    fn claim_inherited(&mut self, request: &Request<'_>) -> Result<Option<Claimed>> {
        self.refuse(request)?;
        let Some(found) = self.find_inherited(request) else {
            return Ok(None);
        };
        let held = &mut self.held[found];
        held.claim(request)?;
        self.paths.extend(held.bound_path());
        Ok(Some(held.claimed()))
    }

    fn find_inherited(&self, request: &Request<'_>) -> Option<usize> {
        let position = |answers: fn(&Held, &Request<'_>) -> bool| {
            self.held.iter().position(|held| answers(held, request))
        };
        let only_by_name = || {
            let mut held = self.held.iter();
            let first = position(Held::answers_by_name)?;
            let other = held.rposition(|held| held.answers_by_name(request));
            (other == Some(first)).then_some(first)
        };
        position(Held::answers)
            .or_else(only_by_name)
            .or_else(|| position(Held::answers_by_address))
    }

    fn hold(
        &mut self,
        request: &Request<'_>,
        socket: OwnedFd,
        inode: Option<Inode>,
    ) -> Result<Claimed> {
        // Again, because binding a path takes its time and the name may have gone to somebody else.
        self.refuse(request)?;
        let held = Held::bound(request, socket, inode)?;
        let claimed = held.claimed();
        self.paths.extend(held.bound_path());
        self.held.push(held);
        Ok(claimed)
    }

    fn bind_first(&self, request: &Request<'_>) -> Result<OwnedFd> {
        let mut refused = request.binding("no address").because(NO_ADDRESS);
        for address in &request.addresses {
            match request.bind(address) {
                Ok(socket) => return Ok(socket),
                Err(error) => refused = self.explain(request, address, error),
            }
        }
        Err(refused)
    }

    /// Says whose the address is, if it is in use by a socket that was inherited and not claimed.
    fn explain(&self, request: &Request<'_>, address: &Address, error: io::Error) -> Error {
        let binding = request.binding(address);
        let mut alike = self
            .held
            .iter()
            .filter(|held| held.slot.kind == request.kind);
        match alike.find(|held| held.address.overlaps(address)) {
            Some(held) if error.kind() == io::ErrorKind::AddrInUse => {
                binding.because(held.is_in_use_by())
            }
            _ => binding.because(error),
        }
    }

    fn refuse(&self, request: &Request<'_>) -> Result<()> {
        if self.retired {
            return Err(too_late(request.name));
        }
        if !(1..=NAME_MAX).contains(&request.name.len()) {
            return Err(listen_error(format!("naming a socket {:?}", request.name))
                .because("a name has 1 to 255 bytes"));
        }
        if self.claimed().any(|held| held.slot.name == request.name) {
            return Err(listen_error(format!("claiming {:?}", request.name))
                .because("this name is claimed already"));
        }
        match self.claimed().find(|held| held.in_the_way_of(request)) {
            Some(held) => Err(request
                .binding(&held.address)
                .because(format!("{:?} has {} already", held.slot.name, held.address))),
            None => Ok(()),
        }
    }

    fn take(&mut self, names: &[String]) -> (Vec<Held>, Vec<BoundPath>) {
        let leaves = |name: &String| names.contains(name);
        let held = self.held.extract_if(.., |held| leaves(&held.slot.name));
        let held: Vec<Held> = held.collect();
        self.forget_paths_of(&held);
        let paths = self.paths.extract_if(.., |bound| leaves(&bound.name));
        (held, paths.collect())
    }

    /// A path that leads to what the service manager holds is not ours to unlink.
    fn forget_paths_of(&mut self, held: &[Held]) {
        let managers = |name: &String| {
            let mut held = held.iter().filter(|held| held.is_managers());
            held.any(|held| held.slot.name == *name)
        };
        self.paths.retain(|bound| !managers(&bound.name));
    }
}

fn refuse_reserved(name: &str) -> Result<()> {
    match name.starts_with(RESERVED) {
        true => Err(listen_error(format!("naming a socket {name:?}"))
            .because("names that begin with \"handover.\" are reserved")),
        false => Ok(()),
    }
}

fn too_late(name: &str) -> Error {
    listen_error(format!("claiming {name:?}")).because("this generation will not serve any more")
}

pub(super) async fn unlink_all(paths: Vec<BoundPath>, until: Instant) {
    for BoundPath { path, inode, .. } in paths {
        match timeout_at(until, path::unlink(&path, inode)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(path = %path.display(), %error, "a socket path stays"),
            Err(_) => tracing::warn!(path = %path.display(), "a socket path stays: out of time"),
        }
    }
}

async fn finish_all(held: Vec<Held>, until: Instant) -> Vec<String> {
    // All of them begin before any is waited for, so that one that takes long costs the others no time.
    held.iter()
        .filter_map(Held::gate)
        .for_each(|gate| gate.finish());
    let mut cut_off = Vec::new();
    for held in held {
        let Some(gate) = held.gate() else { continue };
        let mut retired = gate.retired();
        if timeout_at(until, retired.wait_for(|retired| *retired))
            .await
            .is_err()
        {
            gate.retire();
            cut_off.push(held.slot.name);
        }
    }
    cut_off
}

/// The name of the control socket.
const CONTROL: &str = "handover.control";
/// Bytes in a name.
const NAME_MAX: usize = 255;
const NO_ADDRESS: &str = "the name resolves to no address";

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::fs;
    use std::io::ErrorKind::AddrInUse;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net as std_unix;
    use std::pin::pin;

    use socket2::SockRef;
    use tempfile::TempDir;

    use super::super::stop::FinalStop;
    use super::super::testing::{
        DEADLINE, Fallible, UNWATCHABLE, await_queue, connect, descriptors, inode,
        listening_socket, poll_once, registrations, within,
    };
    use super::*;

    const LOOPBACK: &str = "127.0.0.1:0";
    const ALONE: FinalStop = FinalStop {
        is_alone: true,
        settle: Duration::from_millis(100),
        deadline: DEADLINE,
    };

    fn at(address: &str) -> Vec<SocketAddr> {
        vec![address.parse().unwrap()]
    }

    fn options() -> ListenOptions {
        ListenOptions::new()
    }

    fn stop() -> FinalStop {
        FinalStop {
            is_alone: true,
            settle: Duration::from_millis(100),
            deadline: DEADLINE,
        }
    }

    fn cause(error: &Error) -> String {
        error.source().unwrap().to_string()
    }

    fn io_kind(error: &Error) -> io::ErrorKind {
        let source = error.source().unwrap();
        source.downcast_ref::<io::Error>().unwrap().kind()
    }

    /// What a successor of `incumbent` would adopt.
    fn offered(incumbent: &Table) -> Vec<(Slot, OwnedFd)> {
        let offer = incumbent.offer().into_iter();
        offer
            .map(|(slot, socket)| (slot, socket.try_clone().unwrap()))
            .collect()
    }

    fn successor_of(incumbent: &Table) -> Table {
        let successor = Table::default();
        assert!(successor.adopt(offered(incumbent)).unwrap().is_empty());
        successor
    }

    fn slot(name: &str, kind: SlotKind) -> Slot {
        Slot {
            name: name.into(),
            kind,
            inode: None,
            keeper: None,
        }
    }

    #[tokio::test]
    async fn an_inherited_name_on_its_address_is_claimed_and_accepts_what_queued_before() {
        let incumbent = Table::default();
        let web = incumbent.tcp("web", &at(LOOPBACK), &options()).unwrap();
        let client = connect(web.local_addr());
        let successor = successor_of(&incumbent);
        let same = [web.local_addr()];
        let claimed = successor.tcp("web", &same, &options()).unwrap();
        assert!(successor.unclaimed().is_empty());
        successor.open_all().unwrap();
        let (_, peer) = within(claimed.accept()).await.unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
    }

    #[tokio::test]
    async fn port_0_by_name_claims_the_port_that_was_chosen_before() {
        let incumbent = Table::default();
        let web = incumbent.tcp("web", &at(LOOPBACK), &options()).unwrap();
        let dns = incumbent.udp("dns", &at(LOOPBACK), &options()).unwrap();
        let successor = successor_of(&incumbent);
        let web_claimed = successor.tcp("web", &at(LOOPBACK), &options()).unwrap();
        let dns_claimed = successor.udp("dns", &at(LOOPBACK), &options()).unwrap();
        assert_eq!(web_claimed.local_addr(), web.local_addr());
        assert_eq!(dns_claimed.local_addr(), dns.local_addr());
    }

    #[tokio::test]
    async fn a_changed_address_is_bound_anew_and_the_offered_socket_stays_unclaimed() {
        let incumbent = Table::default();
        let web = incumbent.tcp("web", &at(LOOPBACK), &options()).unwrap();
        let admin = incumbent.tcp("admin", &at(LOOPBACK), &options()).unwrap();
        let successor = successor_of(&incumbent);
        let moved = successor
            .tcp("web", &at("127.0.0.2:0"), &options())
            .unwrap();
        successor
            .tcp("admin", &[admin.local_addr()], &options())
            .unwrap();
        assert_eq!(moved.local_addr().ip().to_string(), "127.0.0.2");
        assert_eq!(successor.unclaimed(), [0]);
        connect(web.local_addr());
    }

    #[tokio::test]
    async fn unclaimed_sockets_close_here_and_live_on_with_the_incumbent() {
        let incumbent = Table::default();
        let web = incumbent.tcp("web", &at(LOOPBACK), &options()).unwrap();
        let inode = inode(&incumbent.offer()[0].1);
        let successor = successor_of(&incumbent);
        assert_eq!(descriptors(inode), 2);
        assert_eq!(successor.unclaimed(), [0]);
        successor.close_unclaimed();
        assert_eq!(descriptors(inode), 1);
        connect(web.local_addr());
    }

    #[tokio::test]
    async fn indexes_count_slots_that_are_no_sockets_and_those_come_back() {
        let incumbent = Table::default();
        incumbent.std_tcp("web", &at(LOOPBACK), &options()).unwrap();
        let mut slots = offered(&incumbent);
        let blob = fs::File::open("/dev/null").unwrap();
        slots.insert(0, (slot("state", SlotKind::Blob), blob.into()));
        let successor = Table::default();
        let others = successor.adopt(slots).unwrap();
        assert_eq!(others[0].0, 0);
        assert_eq!(others[0].1.name, "state");
        assert_eq!(successor.unclaimed(), [1]);
    }

    #[test]
    fn a_descriptor_that_is_not_what_its_slot_says_is_refused_by_name() {
        let bound = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let unix = std_unix::UnixDatagram::unbound().unwrap();
        let udp = net::UdpSocket::bind(LOOPBACK).unwrap();
        let file = fs::File::open("/dev/null").unwrap();
        let unfit: [(SlotKind, OwnedFd); 5] = [
            (SlotKind::Tcp, bound.unwrap().into()),
            (SlotKind::Tcp, udp.into()),
            (SlotKind::Unix, unix.into()),
            (SlotKind::Udp, listening_socket().0),
            (SlotKind::Tcp, file.into()),
        ];
        for (kind, descriptor) in unfit {
            let table = Table::default();
            let error = table
                .adopt(vec![(slot("web", kind), descriptor)])
                .unwrap_err();
            assert_eq!(error.to_string(), "adopting \"web\" from the offer");
        }
    }

    #[test]
    fn an_adopted_socket_does_not_block() {
        let listener = net::TcpListener::bind(LOOPBACK).unwrap();
        let table = Table::default();
        let kept = listener.try_clone().unwrap();
        let slots = vec![(slot("web", SlotKind::Tcp), listener.into())];
        table.adopt(slots).unwrap();
        assert!(SockRef::from(&kept).nonblocking().unwrap());
    }

    #[tokio::test]
    async fn connections_are_adopted_by_the_listener_of_their_name() {
        let table = Table::default();
        let web = table.tcp("web", &at(LOOPBACK), &options()).unwrap();
        let room = TempDir::new().unwrap();
        let path = room.path().join("api");
        let api = table.unix("api", &path, &options()).await.unwrap();
        let _dns = table.udp("dns", &at(LOOPBACK), &options()).unwrap();
        table.std_tcp("own", &at(LOOPBACK), &options()).unwrap();

        let (socket, address) = listening_socket();
        let client = connect(address);
        await_queue(&socket);
        let (accepted, _) = net::TcpListener::from(socket).accept().unwrap();
        let adopted = |descriptor: &OwnedFd| Adopted::new(descriptor.try_clone().unwrap());
        let accepted = OwnedFd::from(accepted);
        for no_listener in ["none", "dns", "own"] {
            assert!(
                table
                    .adopt_connection(no_listener, adopted(&accepted))
                    .is_err()
            );
        }
        table.adopt_connection("web", adopted(&accepted)).unwrap();
        let (_, peer) = within(web.accept()).await.unwrap();
        assert_eq!(peer, client.local_addr().unwrap());

        let (one, _other) = std_unix::UnixStream::pair().unwrap();
        table
            .adopt_connection("api", Adopted::new(one.into()))
            .unwrap();
        let mut taken = pin!(table.adopted_accepted(DEADLINE));
        assert!(poll_once(taken.as_mut()).await.is_pending());
        within(api.accept()).await.unwrap();
        assert!(poll_once(taken.as_mut()).await.is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_the_deadline_for_what_is_not_accepted() {
        let table = Table::default();
        let _web = table.tcp("web", &at(LOOPBACK), &options()).unwrap();
        let null = fs::File::open("/dev/null").unwrap();
        table
            .adopt_connection("web", Adopted::new(null.into()))
            .unwrap();
        let begun = Instant::now();
        table.adopted_accepted(DEADLINE).await;
        assert_eq!(begun.elapsed(), DEADLINE);
    }

    #[tokio::test]
    async fn a_name_is_claimed_once_and_has_1_to_255_bytes() {
        let table = Table::default();
        let _web = table.tcp("web", &at(LOOPBACK), &options()).unwrap();
        let twice = table.udp("web", &at(LOOPBACK), &options()).unwrap_err();
        assert_eq!(cause(&twice), "this name is claimed already");
        for name in ["", &"x".repeat(256)] {
            assert!(table.tcp(name, &at(LOOPBACK), &options()).is_err());
        }
        for name in ["=\n\"%\0 ü", &"x".repeat(255)] {
            assert!(table.tcp(name, &at(LOOPBACK), &options()).is_ok());
        }
    }

    #[tokio::test]
    async fn two_names_on_one_address_are_refused_with_both_names() {
        let table = Table::default();
        let web = table.tcp("web", &at(LOOPBACK), &options()).unwrap();
        let port = web.local_addr().port();
        for address in [web.local_addr(), SocketAddr::from(([0; 4], port))] {
            let error = table.tcp("api", &[address], &options()).unwrap_err();
            assert!(error.to_string().contains("\"api\""), "{error:?}");
            assert!(cause(&error).contains("\"web\" has 127.0.0.1"), "{error:?}");
        }
    }

    #[tokio::test]
    async fn tcp_and_udp_share_a_port_and_so_do_sockets_that_agree_to() {
        let table = Table::default();
        let shared = options().reuse_port(true);
        let web = table.tcp("web-0", &at(LOOPBACK), &shared).unwrap();
        let same = [web.local_addr()];
        table.tcp("web-1", &same, &shared).unwrap();
        table.udp("quic", &same, &options()).unwrap();
    }

    #[tokio::test]
    async fn a_renamed_socket_is_refused_with_the_name_that_the_incumbent_has_it_under() {
        let incumbent = Table::default();
        let web = incumbent.tcp("web", &at(LOOPBACK), &options()).unwrap();
        let successor = successor_of(&incumbent);
        let same = [web.local_addr()];
        let error = successor.tcp("www", &same, &options()).unwrap_err();
        let expected = format!("binding \"www\" to {}", web.local_addr());
        assert_eq!(error.to_string(), expected);
        assert!(
            cause(&error).contains("under the name \"web\""),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn a_foreign_socket_on_the_address_is_an_error_that_names_both() {
        let (_foreign, address) = listening_socket();
        let table = Table::default();
        let error = table.tcp("web", &[address], &options()).unwrap_err();
        assert_eq!(error.to_string(), format!("binding \"web\" to {address}"));
        assert_eq!(io_kind(&error), AddrInUse);
    }

    #[tokio::test]
    async fn the_first_address_that_can_be_bound_is_taken() {
        let (_foreign, taken) = listening_socket();
        let table = Table::default();
        let addresses = [taken, LOOPBACK.parse().unwrap()];
        let web = table.tcp("web", &addresses, &options()).unwrap();
        assert_ne!(web.local_addr(), taken);
        assert!(table.tcp("none", &[], &options()).is_err());
    }

    #[tokio::test]
    async fn v6only_cannot_change_with_a_claim() {
        let incumbent = Table::default();
        let only = options().only_v6(true);
        let web = incumbent.tcp("web", &at("[::1]:0"), &only).unwrap();
        let same = [web.local_addr()];
        let successor = successor_of(&incumbent);
        let differs = options().only_v6(false);
        let error = successor.tcp("web", &same, &differs).unwrap_err();
        assert!(cause(&error).contains("V6ONLY"), "{error:?}");
        successor.tcp("web", &same, &only).unwrap();
    }

    #[tokio::test]
    async fn backlog_and_nodelay_are_applied_again_with_a_claim() {
        let incumbent = Table::default();
        let narrow = options().backlog(0).nodelay(false);
        let web = incumbent.tcp("web", &at(LOOPBACK), &narrow).unwrap();
        let successor = successor_of(&incumbent);
        let _claimed = successor.tcp("web", &at(LOOPBACK), &options()).unwrap();
        // With a backlog of 0 the second of these would have to wait until somebody accepts.
        let clients: Vec<_> = (0..5).map(|_| connect(web.local_addr())).collect();
        let listener = successor.offer().remove(0).1;
        await_queue(&listener);
        assert!(SockRef::from(&listener).tcp_nodelay().unwrap());
        let (connection, _) = SockRef::from(&listener).accept().unwrap();
        assert!(connection.tcp_nodelay().unwrap());
        drop(clients);
    }

    #[tokio::test]
    async fn the_offer_has_every_claimed_socket_even_if_its_listener_was_dropped() {
        let table = Table::default();
        drop(table.tcp("web", &at(LOOPBACK), &options()).unwrap());
        let _std = table.std_udp("dns", &at(LOOPBACK), &options()).unwrap();
        let offer = table.offer();
        let kinds: Vec<_> = offer.iter().map(|(slot, _)| slot.kind).collect();
        assert_eq!(kinds, [SlotKind::Tcp, SlotKind::Udp]);
        assert_eq!(table.names(), ["web", "dns"]);
    }

    #[tokio::test]
    async fn a_std_listener_accepts_without_a_gate_and_does_not_block() {
        let table = Table::default();
        let web = table.std_tcp("web", &at(LOOPBACK), &options()).unwrap();
        assert_eq!(web.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let _client = connect(web.local_addr().unwrap());
        await_queue(&table.offer()[0].1);
        web.accept().unwrap();
    }

    #[tokio::test]
    async fn gates_open_all_or_none() {
        let table = Table::default();
        let web = table.tcp("web", &at(LOOPBACK), &options()).unwrap();
        let _deaf = table.std_tcp("deaf", &at(LOOPBACK), &options()).unwrap();
        let web_inode = inode(&table.offer()[0].1);
        let claimed = table.lock().held[1].claimed();
        table.gate::<Fallible>("deaf", &claimed).unwrap();
        UNWATCHABLE.set(true);
        let error = table.open_all().unwrap_err();
        assert_eq!(error.to_string(), "opening the gate of \"deaf\"");
        assert_eq!(registrations(web_inode), 0);
        table.open_all_regardless();
        assert_eq!(registrations(web_inode), 1);
        drop(web);
    }

    #[tokio::test]
    async fn gates_that_are_kept_stay_open_while_the_others_shut() {
        let table = Table::default();
        let listeners = ["web", "old"].map(|name| table.tcp(name, &at(LOOPBACK), &options()));
        table.open_all().unwrap();
        table.shut_all_except(&["old".into()]);
        let inodes: Vec<_> = table.offer().iter().map(|(_, fd)| inode(fd)).collect();
        assert_eq!(registrations(inodes[0]), 0);
        assert_eq!(registrations(inodes[1]), 1);
        drop(listeners);
    }

    #[tokio::test]
    async fn retiring_closes_every_socket_while_accept_waits_on() {
        let table = Table::default();
        let web = table.tcp("web", &at(LOOPBACK), &options()).unwrap();
        table.open_all().unwrap();
        let inode = inode(&table.offer()[0].1);
        let mut pending = pin!(web.accept());
        assert!(poll_once(pending.as_mut()).await.is_pending());
        table.retire();
        assert_eq!(descriptors(inode), 0);
        assert!(poll_once(pending.as_mut()).await.is_pending());
        assert!(table.offer().is_empty());
    }

    #[tokio::test]
    async fn finishing_serves_the_queue_and_closes_what_nobody_serves_at_the_deadline() {
        let table = Table::default();
        let served = table.tcp("served", &at(LOOPBACK), &options()).unwrap();
        let unserved = table.tcp("unserved", &at(LOOPBACK), &options()).unwrap();
        table.open_all().unwrap();
        let _clients = [&served, &unserved].map(|listener| connect(listener.local_addr()));
        table
            .offer()
            .iter()
            .for_each(|(_, socket)| await_queue(socket));
        let unserved_inode = inode(&table.offer()[1].1);
        let (accepted, peers) = tokio::sync::mpsc::unbounded_channel();
        let serving = tokio::spawn(async move {
            while let Ok(connection) = served.accept().await {
                accepted.send(connection).unwrap();
            }
        });
        let finish = table.finish(&table.names(), Duration::from_millis(200));
        assert_eq!(within(finish).await, ["unserved"]);
        assert_eq!(descriptors(unserved_inode), 0);
        assert_eq!(peers.len(), 1);
        assert!(table.names().is_empty());
        serving.abort();
    }

    #[tokio::test]
    async fn a_final_stop_refuses_who_comes_late_and_serves_who_came_before() {
        let table = Table::default();
        let web = table.tcp("web", &at(LOOPBACK), &options()).unwrap();
        let address = web.local_addr();
        table.open_all().unwrap();
        let _client = connect(address);
        await_queue(&table.offer()[0].1);
        let mut stop = pin!(table.final_stop(stop()));
        assert!(poll_once(stop.as_mut()).await.is_pending());
        let late = net::TcpStream::connect_timeout(&address, DEADLINE);
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let (accepted, cut_off) = within(async { tokio::join!(web.accept(), stop) }).await;
        accepted.unwrap();
        assert!(cut_off.is_empty());
    }

    #[tokio::test]
    async fn what_waits_and_what_was_accepted_is_known_of_the_applications_listeners() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("socket");
        let table = Table::default();
        let web = table.tcp("web", &at("127.0.0.1:0"), &options()).unwrap();
        let local = table.unix("local", &path, &options()).await.unwrap();
        let _dns = table.udp("dns", &at("127.0.0.1:0"), &options()).unwrap();
        let control = room.path().join("control");
        let _control = table.control(&control).await.unwrap();
        let _operator = unix::net::UnixStream::connect(&control).unwrap();
        assert_eq!(table.waiting(&[]), 0);
        let _clients = [(); 3].map(|()| connect(web.local_addr()));
        let _locals = [(); 2].map(|()| unix::net::UnixStream::connect(&path).unwrap());
        within(async {
            while table.waiting(&[]) != 3 + 1 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(table.waiting(&["web".to_owned()]), 1);
        table.open_all().unwrap();
        let count = |count, is_complete| Accepted { count, is_complete };
        assert_eq!(table.accepted(), count(0, true));
        let _served = (within(web.accept()).await, within(local.accept()).await);
        assert_eq!(table.waiting(&[]), 2 + 1);
        assert_eq!(table.accepted(), count(2, true));
        let _own = table
            .std_tcp("own", &at("127.0.0.1:0"), &options())
            .unwrap();
        assert_eq!(table.accepted(), count(2, false));
    }

    #[tokio::test]
    async fn a_shut_udp_gate_receives_nothing_and_sends() {
        let table = Table::default();
        let dns = table.udp("dns", &at(LOOPBACK), &options()).unwrap();
        let client = net::UdpSocket::bind(LOOPBACK).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.send_to(b"question", dns.local_addr()).unwrap();
        let mut buf = [0; 16];
        let mut receiving = Box::pin(dns.recv_from(&mut buf));
        assert!(poll_once(receiving.as_mut()).await.is_pending());
        table.open_all().unwrap();
        let (length, sender) = within(receiving).await.unwrap();
        assert_eq!(&buf[..length], b"question");
        table.shut_all_except(&[]);
        dns.send_to(b"answer", sender).await.unwrap();
        assert_eq!(client.recv(&mut buf).unwrap(), 6);
        table.retire();
        // A draining generation still owes answers.
        dns.send_to(b"late", sender).await.unwrap();
        assert_eq!(client.recv(&mut buf).unwrap(), 4);
    }

    #[tokio::test]
    async fn a_unix_listener_is_claimed_by_its_path_and_keeps_its_inode() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("sock");
        let incumbent = Table::default();
        let _api = incumbent.unix("api", &path, &options()).await.unwrap();
        let bound = path::inode_of(&path).unwrap();
        let successor = successor_of(&incumbent);
        let api = successor.unix("api", &path, &options()).await.unwrap();
        assert!(successor.unclaimed().is_empty());
        assert_eq!(successor.offer()[0].0.inode, Some(bound));
        successor.open_all().unwrap();
        let _client = std_unix::UnixStream::connect(&path).unwrap();
        within(api.accept()).await.unwrap();
    }

    #[tokio::test]
    async fn an_inherited_socket_whose_path_is_gone_is_bound_anew() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("sock");
        let incumbent = Table::default();
        let _api = incumbent.unix("api", &path, &options()).await.unwrap();
        fs::remove_file(&path).unwrap();
        let successor = successor_of(&incumbent);
        let _anew = successor.unix("api", &path, &options()).await.unwrap();
        assert_eq!(successor.unclaimed(), [0]);
        std_unix::UnixStream::connect(&path).unwrap();
    }

    #[tokio::test]
    async fn a_stale_path_is_replaced() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("sock");
        drop(std_unix::UnixListener::bind(&path).unwrap());
        let table = Table::default();
        let _api = table.unix("api", &path, &options()).await.unwrap();
        std_unix::UnixStream::connect(&path).unwrap();
    }

    #[tokio::test]
    async fn a_path_that_somebody_listens_on_is_left_alone_even_if_his_queue_is_full() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("sock");
        let live = Table::default();
        let narrow = options().backlog(0);
        let _live = live.unix("api", &path, &narrow).await.unwrap();
        for _ in 0..2 {
            // The first one fills the queue, the second finds it full.
            let error = Table::default().unix("api", &path, &options()).await;
            assert_eq!(io_kind(&error.unwrap_err()), AddrInUse);
        }
    }

    #[tokio::test]
    async fn a_path_that_is_no_socket_is_never_removed() {
        let dir = TempDir::new().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "precious").unwrap();
        symlink("nowhere", &link).unwrap();
        for path in [&file, &link] {
            let error = Table::default().unix("api", path, &options()).await;
            assert!(cause(&error.unwrap_err()).contains("not a socket"));
        }
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        fs::symlink_metadata(&link).unwrap();
    }

    #[tokio::test]
    async fn a_table_that_has_retired_binds_and_claims_nothing() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("sock");
        let table = Table::default();
        let web = table.tcp("web", &at(LOOPBACK), &options()).unwrap();
        let address = web.local_addr();
        table.retire();
        drop(web);
        let again = table.tcp("web", &[address], &options()).unwrap_err();
        assert!(cause(&again).contains("will not serve"), "{again:?}");
        assert!(table.std_udp("dns", &at(LOOPBACK), &options()).is_err());
        assert!(table.unix("api", &path, &options()).await.is_err());
        assert!(!path.exists());
        assert!(net::TcpListener::bind(address).is_ok());
    }

    #[tokio::test]
    async fn a_claim_that_waits_while_the_table_retires_is_refused() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("sock");
        let directory = fs::File::open(dir.path()).unwrap();
        let locked = nix::fcntl::Flock::lock(directory, nix::fcntl::FlockArg::LockExclusive);
        let (table, options) = (Table::default(), options());
        let mut binding = pin!(table.unix("api", &path, &options));
        assert!(poll_once(binding.as_mut()).await.is_pending());
        table.retire();
        drop(locked.unwrap());
        assert!(within(binding).await.is_err());
        assert!(std_unix::UnixStream::connect(&path).is_err());
    }

    #[tokio::test]
    async fn an_abstract_name_is_bound_claimed_and_has_no_path() {
        let dir = TempDir::new().unwrap();
        let name = format!("@{}", dir.path().display());
        let incumbent = Table::default();
        let api = incumbent.unix("api", Path::new(&name), &options()).await;
        let address = api.as_ref().unwrap().local_addr().clone();
        std_unix::UnixStream::connect_addr(&address).unwrap();
        let successor = successor_of(&incumbent);
        successor
            .unix("api", Path::new(&name), &options())
            .await
            .unwrap();
        assert!(successor.unclaimed().is_empty());
        assert_eq!(successor.offer()[0].0.inode, None);
    }

    #[tokio::test]
    async fn a_path_that_is_empty_or_too_long_says_so() {
        for (path, why) in [("", "no name"), (&*"x".repeat(200), "SUN_LEN")] {
            let error = Table::default()
                .unix("api", Path::new(path), &options())
                .await;
            let why_not = cause(&error.unwrap_err());
            assert!(why_not.contains(why), "{why_not}");
        }
    }

    #[tokio::test]
    async fn a_path_gets_its_mode_and_a_name_that_is_not_utf_8() {
        use std::os::unix::ffi::OsStrExt;
        let dir = TempDir::new().unwrap();
        let path = dir.path().join(std::ffi::OsStr::from_bytes(b"s\xff"));
        let _api = Table::default()
            .unix("api", &path, &options().mode(0o640))
            .await
            .unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o640
        );
    }

    #[tokio::test]
    async fn the_final_stop_unlinks_a_path_only_while_it_is_the_one_that_was_bound() {
        let dir = TempDir::new().unwrap();
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        let table = Table::default();
        let _ours = table.unix("ours", &ours, &options()).await.unwrap();
        let _theirs = table.unix("theirs", &theirs, &options()).await.unwrap();
        fs::rename(&theirs, dir.path().join("away")).unwrap();
        let _usurper = std_unix::UnixListener::bind(&theirs).unwrap();
        assert!(table.final_stop(stop()).await.is_empty());
        assert!(!ours.exists());
        assert!(theirs.exists());
    }

    #[tokio::test]
    async fn finishing_unlinks_the_paths_it_names_and_no_other() {
        let dir = TempDir::new().unwrap();
        let (gone, kept) = (dir.path().join("gone"), dir.path().join("kept"));
        let incumbent = Table::default();
        let _gone = incumbent.unix("gone", &gone, &options()).await.unwrap();
        let _kept = incumbent.unix("kept", &kept, &options()).await.unwrap();
        let cut_off = incumbent.finish(&["gone".into()], DEADLINE).await;
        assert!(cut_off.is_empty());
        assert!(!gone.exists());
        assert!(kept.exists());
        assert_eq!(incumbent.names(), ["kept"]);
    }

    #[tokio::test]
    async fn a_directory_that_stays_locked_is_waited_for() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("sock");
        let directory = fs::File::open(dir.path()).unwrap();
        let locked = nix::fcntl::Flock::lock(directory, nix::fcntl::FlockArg::LockExclusive);
        let (table, options) = (Table::default(), options());
        let mut binding = pin!(table.unix("api", &path, &options));
        assert!(poll_once(binding.as_mut()).await.is_pending());
        assert!(!path.exists());
        drop(locked.unwrap());
        within(binding).await.unwrap();
    }

    /// What a service manager would pass: a listener at this address, under this name.
    fn passed(name: &str, keeper: Keeper, address: &str) -> (Slot, OwnedFd, SocketAddr) {
        let listener = net::TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        (
            managers(name, SlotKind::Tcp, keeper),
            listener.into(),
            address,
        )
    }

    fn managers(name: &str, kind: SlotKind, keeper: Keeper) -> Slot {
        Slot {
            keeper: Some(keeper),
            ..slot(name, kind)
        }
    }

    fn activated<const N: usize>(
        passed: [(Slot, OwnedFd, SocketAddr); N],
    ) -> (Table, [SocketAddr; N]) {
        let table = Table::default();
        let addresses = passed.each_ref().map(|(_, _, address)| *address);
        let sockets = passed.into_iter().map(|(slot, socket, _)| (slot, socket));
        assert!(table.adopt_activated(sockets.collect()).is_empty());
        (table, addresses)
    }

    fn unclaimed_names(table: &Table) -> Vec<String> {
        let unclaimed = table.close_unclaimed_activated().into_iter();
        unclaimed.map(|slot| slot.name).collect()
    }

    #[tokio::test]
    async fn of_two_sockets_with_one_name_the_address_decides() {
        let (table, [one, two]) = activated([
            passed("pub", Keeper::Unit, LOOPBACK),
            passed("pub", Keeper::Unit, LOOPBACK),
        ]);
        let http = table.tcp("pub", &[two], &options()).unwrap();
        assert_eq!(http.local_addr(), two);
        let admin = table.tcp("admin", &[one], &options()).unwrap();
        assert_eq!(admin.local_addr(), one);
        assert_eq!(table.names(), ["admin", "pub"]);
        assert!(unclaimed_names(&table).is_empty());
    }

    #[tokio::test]
    async fn a_name_that_two_sockets_have_means_neither_without_an_address() {
        let (table, addresses) = activated([
            passed("pub", Keeper::Unit, LOOPBACK),
            passed("pub", Keeper::Unit, LOOPBACK),
        ]);
        let web = table.tcp("pub", &at("127.0.0.2:0"), &options()).unwrap();
        assert!(!addresses.contains(&web.local_addr()));
        assert_eq!(unclaimed_names(&table), ["pub", "pub"]);
    }

    #[tokio::test]
    async fn a_unit_decides_the_address_of_a_name_for_every_generation() {
        let (first, [unit]) = activated([passed("web", Keeper::Unit, LOOPBACK)]);
        let elsewhere = at("127.0.0.2:1");
        let web = first.tcp("web", &elsewhere, &options()).unwrap();
        assert_eq!(web.local_addr(), unit);
        let second = successor_of(&first);
        let web = second.tcp("web", &elsewhere, &options()).unwrap();
        assert_eq!(web.local_addr(), unit);
        assert!(second.unclaimed().is_empty());
        // It is not in the store, and still the unit's.
        second.set_stored(&[]);
        assert_eq!(second.offer()[0].0.keeper, Some(Keeper::Unit));
    }

    #[tokio::test]
    async fn a_stored_socket_whose_address_has_changed_is_bound_anew_and_known_to_be_stored_still()
    {
        let (table, [stored]) = activated([passed("web", Keeper::Store, LOOPBACK)]);
        let web = table.tcp("web", &at("127.0.0.2:0"), &options()).unwrap();
        assert_ne!(web.local_addr(), stored);
        assert_eq!(table.offer()[0].0.keeper, None);
        assert_eq!(unclaimed_names(&table), ["web"]);
        assert_eq!(table.stored(), ["web"]);
        table.set_stored(&["web".into()]);
        assert_eq!(table.offer()[0].0.keeper, Some(Keeper::Store));
    }

    #[tokio::test]
    async fn a_socket_of_another_name_is_found_by_its_very_address_and_kind_only() {
        let (table, [address]) = activated([passed("app.socket", Keeper::Unit, LOOPBACK)]);
        let quic = table.udp("quic", &[address], &options()).unwrap();
        let other = table.tcp("other", &at(LOOPBACK), &options()).unwrap();
        assert_ne!(other.local_addr(), address);
        let web = table.tcp("web", &[address], &options()).unwrap();
        assert_eq!((web.local_addr(), quic.local_addr()), (address, address));
        assert_eq!(table.names(), ["web", "quic", "other"]);
        table.open_all().unwrap();
        let _client = connect(address);
        within(web.accept()).await.unwrap();
    }

    #[tokio::test]
    async fn an_address_that_the_manager_has_in_another_form_is_refused_with_its_name() {
        for (keeper, word) in [(Keeper::Unit, "has"), (Keeper::Store, "keeps")] {
            let (table, [address]) = activated([passed("app.socket", keeper, "0.0.0.0:0")]);
            let specific = SocketAddr::from(([127, 0, 0, 1], address.port()));
            let error = table.tcp("web", &[specific], &options()).unwrap_err();
            let cause = cause(&error);
            assert!(
                cause.starts_with(&format!("the service manager {word} 0.0.0.0")),
                "{cause}"
            );
            assert!(cause.contains("\"app.socket\""), "{cause}");
        }
    }

    #[tokio::test]
    async fn what_nobody_claims_is_closed_here_and_lives_on_with_the_manager() {
        let (slot, socket, address) = passed("old", Keeper::Unit, LOOPBACK);
        let kept = socket.try_clone().unwrap();
        let (table, _) = activated([(slot, socket, address)]);
        assert!(table.offer().is_empty() && table.unclaimed().is_empty());
        assert_eq!(unclaimed_names(&table), ["old"]);
        assert_eq!(descriptors(inode(&kept)), 1);
        connect(address);
    }

    #[test]
    fn what_is_passed_and_not_what_it_is_said_to_be_is_a_problem_and_the_rest_is_adopted() {
        let table = Table::default();
        let (fit, socket, _) = passed("web", Keeper::Unit, LOOPBACK);
        let unfit = managers("file", SlotKind::Udp, Keeper::Unit);
        let file = fs::File::open("/dev/null").unwrap();
        let problems = table.adopt_activated(vec![(unfit, file.into()), (fit, socket)]);
        let [problem] = problems.as_slice() else {
            panic!("{problems:?}");
        };
        assert_eq!(
            problem.to_string(),
            "adopting \"file\" from the service manager"
        );
        assert_eq!(unclaimed_names(&table), ["web"]);
    }

    #[tokio::test]
    async fn a_final_stop_refuses_nobody_at_a_socket_of_the_managers() {
        for keeper in [Keeper::Unit, Keeper::Store, Keeper::Unknown] {
            let (slot, socket, address) = passed("web", keeper, LOOPBACK);
            let kept = socket.try_clone().unwrap();
            let (first, _) = activated([(slot, socket, address)]);
            drop(first.tcp("web", &[address], &options()).unwrap());
            // The mark reaches the generation that stops.
            let last = successor_of(&first);
            drop(first);
            drop(last.tcp("web", &[address], &options()).unwrap());
            assert!(last.final_stop(ALONE).await.is_empty());
            assert_eq!(descriptors(inode(&kept)), 1);
            connect(address);
        }
    }

    #[tokio::test]
    async fn a_socket_that_the_manager_has_let_go_of_is_refused_and_unlinked_at_a_final_stop() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("sock");
        let table = Table::default();
        let web = table.tcp("web", &at(LOOPBACK), &options()).unwrap();
        let _api = table.unix("api", &path, &options()).await.unwrap();
        table.set_stored(&["web".into(), "api".into()]);
        assert_eq!(table.stored(), ["api", "web"]);
        table.set_stored(&[]);
        let kept = table.offer().remove(0).1;
        assert!(table.final_stop(ALONE).await.is_empty());
        let late = net::TcpStream::connect_timeout(&web.local_addr(), DEADLINE);
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert!(!path.exists());
        drop(kept);
    }

    #[tokio::test]
    async fn what_is_left_to_the_manager_keeps_its_queue_and_its_path() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("sock");
        let table = Table::default();
        let web = table.tcp("web", &at(LOOPBACK), &options()).unwrap();
        let _api = table.unix("api", &path, &options()).await.unwrap();
        let _ours = table.tcp("ours", &at(LOOPBACK), &options()).unwrap();
        table.set_stored(&["web".into(), "api".into()]);
        let kept = table.offer().remove(0).1.try_clone().unwrap();
        table.open_all().unwrap();
        let client = connect(web.local_addr());
        await_queue(&kept);
        table.leave_to_manager();
        assert_eq!(table.names(), ["ours"]);
        assert_eq!(descriptors(inode(&kept)), 1);
        assert!(table.final_stop(ALONE).await.is_empty());
        assert!(path.exists());
        let (_, peer) = SockRef::from(&kept).accept().unwrap();
        assert_eq!(peer.as_socket(), client.local_addr().ok());
    }

    #[tokio::test]
    async fn a_units_path_is_never_unlinked() {
        let dir = TempDir::new().unwrap();
        for finish in [true, false] {
            let path = dir.path().join(finish.to_string());
            let listener = std_unix::UnixListener::bind(&path).unwrap();
            let table = Table::default();
            let unit = managers("api", SlotKind::Unix, Keeper::Unit);
            assert!(
                table
                    .adopt_activated(vec![(unit, listener.into())])
                    .is_empty()
            );
            let _api = table.unix("api", &path, &options()).await.unwrap();
            if finish {
                table.finish(&["api".into()], DEADLINE).await;
            } else {
                table.final_stop(ALONE).await;
            }
            assert!(path.exists());
        }
    }

    #[tokio::test]
    async fn a_stored_unix_socket_is_taken_back_only_while_its_path_is_there() {
        let dir = TempDir::new().unwrap();
        let (there, gone) = (dir.path().join("there"), dir.path().join("gone"));
        let table = Table::default();
        for (name, path) in [("there", &there), ("gone", &gone)] {
            let listener = std_unix::UnixListener::bind(path).unwrap();
            if name == "gone" {
                fs::remove_file(path).unwrap();
            }
            let stored = managers(name, SlotKind::Unix, Keeper::Store);
            assert!(
                table
                    .adopt_activated(vec![(stored, listener.into())])
                    .is_empty()
            );
        }
        let _there = table.unix("there", &there, &options()).await.unwrap();
        let _gone = table.unix("gone", &gone, &options()).await.unwrap();
        assert_eq!(unclaimed_names(&table), ["gone"]);
        for path in [&there, &gone] {
            std_unix::UnixStream::connect(path).unwrap();
        }
        // What came back from the store is ours again when the manager lets go of it.
        table.set_stored(&[]);
        assert!(table.final_stop(ALONE).await.is_empty());
        assert!(!there.exists());
    }
}
