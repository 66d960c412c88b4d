//! One held socket: what it is, who asked for it, and whether it is the one that somebody asks for.

use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix;
use std::path::PathBuf;
use std::sync::Arc;

use socket2::SockRef;

use super::address::Address;
use super::bind;
use super::gate::{Gated, has_waiting};
use super::options::ListenOptions;
use super::path::{self, Inode};
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::message::{Keeper, Slot, SlotKind};
use crate::sys::queue;

/// A socket that this generation holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) slot: Slot,
    pub(super) address: Address,
    pub(super) socket: Arc<OwnedFd>,
    pub(super) claim: Claim,
}

/// Whose a held socket is.
#[derive(Debug)]
pub(super) enum Claim {
    /// Offered under this index, and nobody has asked for it yet.
    Offered(u32),
    /// Came from the service manager at the start, and nobody has asked for it yet.
    Activated,
    /// Given to the application as it is; it has its own accept loop.
    Ungated,
    Gated(Arc<dyn Gated>),
}

/// What became of new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// They come as before.
    None,
    /// They are refused; those whose handshake had begun are still to come.
    Begun,
    /// They are refused, and everybody who is still to come is in the queue.
    Complete,
}

/// Where clients reach one of the application's sockets.
#[derive(Clone, Debug)]
pub(crate) struct Public {
    pub(crate) name: String,
    pub(crate) address: Address,
    /// Whether connections can reach the application from elsewhere.
    pub(crate) adopts: bool,
    /// Why nobody but the application could answer there, if so.
    pub(crate) unanswered: Option<&'static str>,
}

/// A path that this generation or one before it bound, and who it was then.
#[derive(Clone, Debug)]
pub(super) struct BoundPath {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) inode: Inode,
}

/// What a caller asks for: a name, and the addresses that would do, the preferred one first.
pub(super) struct Request<'a> {
    pub(super) name: &'a str,
    pub(super) kind: SlotKind,
    pub(super) addresses: Vec<Address>,
    pub(super) options: &'a ListenOptions,
}

/// A socket that the application now has under a name.
pub(super) struct Claimed {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) address: Address,
}

impl Held {
    pub(super) fn offered(index: u32, slot: Slot, descriptor: OwnedFd) -> Result<Self> {
        Self::inherited(slot, descriptor, Claim::Offered(index), "the offer")
    }

    pub(super) fn activated(slot: Slot, descriptor: OwnedFd) -> Result<Self> {
        let mut held = Self::inherited(slot, descriptor, Claim::Activated, "the service manager")?;
        if held.slot.keeper == Some(Keeper::Store) {
            // Whose path it is by now nobody can say; one that is gone, as a runtime directory after a stop, is known
            // to lead to nothing.
            let found = held
                .address
                .path()
                .and_then(|path| path::socket_inode(path).ok());
            held.slot.inode = found;
        }
        Ok(held)
    }

    fn inherited(slot: Slot, descriptor: OwnedFd, claim: Claim, from: &str) -> Result<Self> {
        let address = non_blocking(&descriptor)
            .and_then(|()| Address::of(&descriptor, slot.kind))
            .map_err(|error| {
                listen_error(format!("adopting {:?} from {from}", slot.name)).because(error)
            })?;
        Ok(Self {
            slot,
            address,
            socket: Arc::new(descriptor),
            claim,
        })
    }

    pub(super) fn bound(
        request: &Request<'_>,
        socket: OwnedFd,
        inode: Option<Inode>,
    ) -> Result<Self> {
        let address = Address::of(&socket, request.kind)
            .map_err(|error| listen_error(format!("binding {:?}", request.name)).because(error))?;
        Ok(Self {
            slot: Slot {
                name: request.name.to_owned(),
                kind: request.kind,
                inode,
                keeper: None,
            },
            address,
            socket: Arc::new(socket),
            claim: Claim::Ungated,
        })
    }

    /// Makes an inherited socket the application's, under its name and options.
    pub(super) fn claim(&mut self, request: &Request<'_>) -> Result<()> {
        bind::apply(&self.socket, self.slot.kind, request.options).map_err(|error| {
            listen_error(format!("claiming {:?} on {}", request.name, self.address)).because(error)
        })?;
        let mut wanted = request.addresses.iter();
        if !wanted.any(|wanted| self.address.answers(wanted)) {
            tracing::warn!(
                name = request.name,
                address = %self.address,
                "the service manager's unit has another address, which is the one that is served"
            );
        }
        request.name.clone_into(&mut self.slot.name);
        self.claim = Claim::Ungated;
        Ok(())
    }

    pub(super) fn claimed(&self) -> Claimed {
        Claimed {
            socket: Arc::clone(&self.socket),
            address: self.address.clone(),
        }
    }

    pub(super) fn offered_as(&self) -> Option<u32> {
        match self.claim {
            Claim::Offered(index) => Some(index),
            Claim::Activated | Claim::Ungated | Claim::Gated(_) => None,
        }
    }

    pub(super) fn is_activated(&self) -> bool {
        matches!(self.claim, Claim::Activated)
    }

    pub(super) fn is_claimed(&self) -> bool {
        matches!(self.claim, Claim::Ungated | Claim::Gated(_))
    }

    /// Whether the application accepts from it by itself. The library's own are not the application's.
    pub(super) fn is_ungated(&self) -> bool {
        matches!(self.claim, Claim::Ungated) && !self.slot.name.starts_with(RESERVED)
    }

    /// Whether the service manager holds the socket too: others may come to accept from it when this service is gone.
    pub(super) fn is_managers(&self) -> bool {
        self.slot.keeper.is_some()
    }

    pub(super) fn gate(&self) -> Option<&Arc<dyn Gated>> {
        match &self.claim {
            Claim::Gated(gate) => Some(gate),
            Claim::Offered(_) | Claim::Activated | Claim::Ungated => None,
        }
    }

    /// How many connections wait in its queue; of a Unix socket, whether one does.
    pub(super) fn waiting(&self) -> u64 {
        match self.slot.kind {
            SlotKind::Tcp => queue::accept_queue(self.socket.as_fd()).map_or(0, u64::from),
            SlotKind::Unix => u64::from(has_waiting(&self.socket)),
            _ => 0,
        }
    }

    /// Whether this is an inherited socket that the request means by name and address.
    pub(super) fn answers(&self, request: &Request<'_>) -> bool {
        let mut addresses = request.addresses.iter();
        self.answers_by_kind(request)
            && self.slot.name == request.name
            && addresses.any(|wanted| self.address.answers(wanted))
            && self.is_reachable()
    }

    /// Whether this is a socket of a unit by the name that the request means: the unit decides about the address.
    pub(super) fn answers_by_name(&self, request: &Request<'_>) -> bool {
        self.answers_by_kind(request)
            && self.slot.keeper == Some(Keeper::Unit)
            && self.slot.name == request.name
    }

    /// Whether this is a socket of the service manager's that is bound just where the request would bind one.
    pub(super) fn answers_by_address(&self, request: &Request<'_>) -> bool {
        let mut addresses = request.addresses.iter();
        self.answers_by_kind(request)
            && (self.is_activated() || self.slot.keeper == Some(Keeper::Unit))
            && addresses.any(|wanted| self.address.is(wanted))
            && self.is_reachable()
    }

    fn answers_by_kind(&self, request: &Request<'_>) -> bool {
        !self.is_claimed() && self.slot.kind == request.kind
    }

    /// Whose the address is while nobody has claimed it here, and what to do about it.
    pub(super) fn is_in_use_by(&self) -> String {
        let (address, name) = (&self.address, &self.slot.name);
        match self.slot.keeper {
            None => format!("the incumbent has {address} under the name {name:?}"),
            Some(Keeper::Store) => format!(
                "the service manager keeps {address} from an earlier start under the name {name:?}: a stop and a \
                 start, in place of a restart, make it let go"
            ),
            Some(Keeper::Unit | Keeper::Unknown) => {
                format!("the service manager has {address} under the name {name:?}")
            }
        }
    }

    /// Whether the kernel could not give the request an address while this one has its own.
    pub(super) fn in_the_way_of(&self, request: &Request<'_>) -> bool {
        let mut addresses = request.addresses.iter();
        self.slot.kind == request.kind
            && addresses.any(|wanted| self.address.overlaps(wanted))
            && !(request.options.reuse_port && self.reuses_port())
    }

    /// Has the kernel refuse new connections while nobody who came before is cut off (I2). It is for good, and for
    /// every process that holds the socket, so not for the service manager's: its next start could not take it back.
    pub(super) fn refuse_new(&self) -> Refusal {
        if self.is_managers() {
            return Refusal::None;
        }
        let refused = match (self.slot.kind, &self.claim) {
            (SlotKind::Tcp, _) => self.refuse_handshakes().then_some(Refusal::Begun),
            // An accept loop of the application's own would take the end of the queue for an error without end.
            (SlotKind::Unix, Claim::Gated(gate)) => {
                gate.expect_end();
                let refused = SockRef::from(&self.socket).shutdown(Shutdown::Read);
                if refused.is_err() {
                    gate.settle(); // there is no end to expect
                }
                refused.is_ok().then_some(Refusal::Complete)
            }
            _ => None,
        };
        refused.unwrap_or(Refusal::None)
    }

    /// A listener that is bound to an interface which does not exist matches no first packet (`SO_BINDTOIFINDEX`,
    /// socket(7)); handshakes under way complete. Undoing it needs `CAP_NET_RAW`.
    ///
    /// Not for sockets that share their port: the kernel would go on choosing this one and let the client wait.
    fn refuse_handshakes(&self) -> bool {
        !self.reuses_port()
            && SockRef::from(&self.socket)
                .bind_device_by_index_v4(NonZeroU32::new(NO_INTERFACE))
                .is_ok()
    }

    /// Whether closing the socket now cuts somebody off. Accepting tells, for a socket that was shut down as well;
    /// whoever it takes is reset like the others.
    pub(super) fn cuts_off(&self) -> bool {
        self.slot.kind == SlotKind::Udp || SockRef::from(&self.socket).accept().is_ok()
    }

    pub(super) fn bound_path(&self) -> Option<BoundPath> {
        Some(BoundPath {
            name: self.slot.name.clone(),
            path: self.address.path()?.to_owned(),
            inode: self.slot.inode?,
        })
    }

    /// A socket whose path is gone, or is somebody else's by now, is of no use to anyone who connects.
    fn is_reachable(&self) -> bool {
        match self.bound_path() {
            Some(bound) => path::inode_of(&bound.path).is_ok_and(|now| now == bound.inode),
            // The path of a unit is the manager's to look after.
            None => self.slot.keeper != Some(Keeper::Store) || self.address.path().is_none(),
        }
    }

    fn reuses_port(&self) -> bool {
        SockRef::from(&self.socket).reuse_port().unwrap_or(false)
    }
}

impl Public {
    pub(super) fn of(held: &Held) -> Self {
        let unanswered = match &held.claim {
            _ if held.slot.kind == SlotKind::Udp => Some("datagrams have no connections"),
            Claim::Gated(_) if held.reuses_port() => Some("others may share its port"),
            Claim::Gated(_) => None,
            Claim::Offered(_) | Claim::Activated | Claim::Ungated => {
                Some("its application accepts by itself")
            }
        };
        Self {
            name: held.slot.name.clone(),
            address: held.address.clone(),
            adopts: held.gate().is_some() && held.slot.kind != SlotKind::Udp,
            unanswered,
        }
    }
}

impl<'a> Request<'a> {
    pub(super) fn inet(
        kind: SlotKind,
        name: &'a str,
        addresses: &[SocketAddr],
        options: &'a ListenOptions,
    ) -> Self {
        Self {
            name,
            kind,
            addresses: addresses.iter().copied().map(Address::Inet).collect(),
            options,
        }
    }

    pub(super) fn bind(&self, address: &Address) -> io::Result<OwnedFd> {
        match (self.kind, address) {
            (SlotKind::Tcp, Address::Inet(address)) => bind::tcp(*address, self.options),
            (SlotKind::Udp, Address::Inet(address)) => bind::udp(*address, self.options),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The error of a bind that failed, still without its cause.
    pub(super) fn binding(&self, address: impl fmt::Display) -> Error {
        listen_error(format!("binding {:?} to {address}", self.name))
    }
}

impl Claimed {
    pub(super) fn duplicate<S: From<OwnedFd>>(&self) -> Result<S> {
        let duplicate = self.socket.try_clone();
        duplicate.map(S::from).map_err(|error| {
            listen_error(format!("duplicating the socket on {}", self.address)).because(error)
        })
    }

    pub(super) fn inet(self) -> Result<SocketAddr> {
        match self.address {
            Address::Inet(address) => Ok(address),
            Address::Unix(_) => Err(listen_error(format!("{} is no IP address", self.address))),
        }
    }

    pub(super) fn unix(self) -> Result<unix::net::SocketAddr> {
        match self.address {
            Address::Unix(address) => Ok(address),
            Address::Inet(_) => Err(listen_error(format!("{} is no path", self.address))),
        }
    }
}

/// Whether a final stop has this socket refuse new connections, whoever holds it.
#[cfg(feature = "pool")]
pub(crate) fn refuses_new(socket: &OwnedFd) -> bool {
    let bound_to = SockRef::from(socket).device_index_v4();
    bound_to.is_ok_and(|index| index.is_some_and(|index| index.get() == NO_INTERFACE))
}

pub(super) fn listen_error(doing: String) -> Error {
    Error::new(ErrorKind::Listen, doing)
}

/// Names that begin like this are the library's own.
pub(super) const RESERVED: &str = "handover.";
/// An interface index that the kernel hands out to nobody: it counts up from 1.
const NO_INTERFACE: u32 = 0x7fff_fff0;

/// Non-blocking mode belongs to the socket that generations share: it is set on arrival and never cleared.
fn non_blocking(descriptor: &OwnedFd) -> io::Result<()> {
    SockRef::from(descriptor).set_nonblocking(true)
}
