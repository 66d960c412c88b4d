//! The sockets that every worker gets: bound once by the supervisor, which never accepts from them.

use std::ffi::OsString;
use std::fmt;
use std::net::{self, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::slots::SlotIndex;
use crate::config::{STOP_EMPTY, STOP_SETTLE};
use crate::error::{Error, ErrorKind, Result};
use crate::listen::{Address as Place, FinalStop, ListenOptions, Table, unix_address};
use crate::protocol::message::{Slot, SlotKind};

/// Where a pool listens, as `NAME=ADDRESS`: `web=0.0.0.0:8080`, `app=unix:/run/app.sock` or `dns=udp:[::]:53`. A path that
/// begins with `@` is an abstract name.
///
/// ```
/// use handover::pool::Listen;
///
/// let web: Listen = "web=127.0.0.1:8080".parse()?;
/// assert_eq!(web.to_string(), "web=127.0.0.1:8080");
/// assert!("127.0.0.1:8080".parse::<Listen>().is_err());
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    name: String,
    address: Address,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    Tcp(String),
    Udp(String),
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) = text
            .split_once('=')
            .ok_or("a name and an address, such as web=0.0.0.0:8080")?;
        // As the service manager has it: LISTEN_FDNAMES is separated by colons (sd_listen_fds(3)).
        let is_name = |byte: u8| byte.is_ascii_graphic() && byte != b':';
        if name.is_empty() || !name.bytes().all(is_name) {
            return Err(format!("{name:?} is no name for a socket"));
        }
        let address = match address.split_once(':') {
            Some(("unix", path)) => Address::Unix(path.into()),
            Some(("udp", address)) => Address::Udp(address.to_owned()),
            Some(("tcp", address)) => Address::Tcp(address.to_owned()),
            _ => Address::Tcp(address.to_owned()),
        };
        Ok(Self {
            name: name.to_owned(),
            address,
        })
    }
}

impl Listen {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn kind(&self) -> SlotKind {
        match self.address {
            Address::Tcp(_) => SlotKind::Tcp,
            Address::Udp(_) => SlotKind::Udp,
            Address::Unix(_) => SlotKind::Unix,
        }
    }

    /// Where it may be bound.
    pub(super) fn places(&self) -> Result<Vec<Place>> {
        match &self.address {
            Address::Tcp(address) | Address::Udp(address) => {
                let found = resolve(&self.name, address)?.into_iter();
                Ok(found.map(Place::Inet).collect())
            }
            Address::Unix(path) => {
                let found = unix_address(path).map_err(|error| {
                    let doing = format!("looking for {:?} at {}", self.name, path.display());
                    Error::new(ErrorKind::Listen, doing).because(error)
                })?;
                Ok(vec![Place::Unix(found)])
            }
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.address {
            Address::Tcp(address) => write!(f, "{name}={address}"),
            Address::Udp(address) => write!(f, "{name}=udp:{address}"),
            Address::Unix(path) => write!(f, "{name}=unix:{}", path.display()),
        }
    }
}

/// All of them, held for as long as the pool is there.
#[derive(Debug)]
pub(crate) struct Sockets {
    table: Table,
}

impl Sockets {
    /// Binds them, or takes them from `table` where a service manager has passed them. With more than one slot each slot has
    /// a TCP socket of its own on the same port.
    pub(crate) async fn claim(table: Table, wanted: &[Listen], slots: usize) -> Result<Self> {
        let options = ListenOptions::default();
        let shared = options.clone().reuse_port(slots > 1);
        for Listen { name, address } in wanted {
            match address {
                Address::Tcp(address) => {
                    let first = table.std_tcp(name, &resolve(name, address)?, &shared)?;
                    let bound = first.local_addr().map_err(|error| {
                        Error::new(ErrorKind::Listen, format!("asking where {name:?} is"))
                            .because(error)
                    })?;
                    for slot in 1..slots {
                        drop(table.std_tcp(&slotted(name, slot), &[bound], &shared)?);
                    }
                }
                Address::Udp(address) => {
                    drop(table.std_udp(name, &resolve(name, address)?, &options)?);
                }
                Address::Unix(path) => drop(table.std_unix(name, path, &options).await?),
            }
        }
        Ok(Self { table })
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// What a worker in this slot gets, name by name in the order in which they were asked for.
    pub(crate) fn of_slot(&self, slot: SlotIndex) -> Vec<(String, Arc<OwnedFd>)> {
        let all = self.all();
        let plain = all.iter().filter(|(name, _)| !is_slotted(name));
        let own = plain.map(|(name, socket)| {
            let slotted = slotted(name, slot);
            let own = all.iter().find(|(other, _)| *other == slotted);
            let socket = own.map_or(socket, |(_, own)| own);
            (name.clone(), Arc::clone(socket))
        });
        own.collect()
    }

    /// The sockets of each name that has one for every slot, slot by slot.
    pub(crate) fn groups(&self, slots: usize) -> Vec<Vec<Arc<OwnedFd>>> {
        let all = self.all();
        let first = |name: &str| all.iter().any(|(other, _)| *other == slotted(name, 1));
        let names = all.iter().enumerate().filter(|(_, (name, _))| first(name));
        let by_slot: Vec<_> = (0..slots).map(|slot| self.of_slot(slot)).collect();
        let group = |name: &String| {
            let of_slot = by_slot.iter().flatten();
            let of_name = of_slot.filter(|(other, _)| other == name);
            of_name.map(|(_, socket)| Arc::clone(socket)).collect()
        };
        names.map(|(_, (name, _))| group(name)).collect()
    }

    pub(super) fn all(&self) -> Vec<(String, Arc<OwnedFd>)> {
        let offered = self.table.offer().into_iter();
        let public = offered.filter(|(slot, _)| !slot.name.starts_with(OWN));
        public.map(|(slot, socket)| (slot.name, socket)).collect()
    }

    /// Refuses new connections, and waits until the workers have emptied the queues: those who come in the meantime are
    /// told so, and nobody who was let in is cut off. Workers stop only after that, and have half of the stop at least.
    pub(crate) fn give_up(
        &self,
        stop_within: Duration,
    ) -> impl Future<Output = Vec<String>> + Send + use<> {
        self.table.leave_to_manager();
        self.table.final_stop(FinalStop {
            is_alone: true,
            settle: STOP_SETTLE,
            deadline: STOP_EMPTY.min(stop_within / 2),
        })
    }
}

/// `LISTEN_FDNAMES`, for these sockets in this order.
pub(crate) fn names(names: &[&str]) -> OsString {
    names.join(":").into()
}

/// The name of a slot's own socket. No name that is asked for has a space in it.
fn slotted(name: &str, slot: SlotIndex) -> String {
    match slot {
        0 => name.to_owned(),
        slot => format!("{name} {slot}"),
    }
}

/// For how many slots these sockets are.
pub(super) fn slots_of(sockets: &[Slot]) -> usize {
    let slots = sockets.iter().filter_map(|socket| {
        let (_, slot) = socket.name.rsplit_once(' ')?;
        slot.parse::<SlotIndex>().ok()
    });
    slots.max().map_or(1, |last| last + 1)
}

pub(crate) fn is_slotted(name: &str) -> bool {
    name.contains(' ')
}

/// That nobody has these TCP addresses, not even to share them.
pub(super) fn are_free<'a>(listen: impl Iterator<Item = &'a Listen>) -> Result<()> {
    for Listen { name, address } in listen {
        if let Address::Tcp(text) = address {
            let bound = net::TcpListener::bind(&*resolve(name, text)?);
            bound.map_err(|error| {
                let doing = format!("binding {name:?} to {text} for this pool alone");
                Error::new(ErrorKind::Listen, doing).because(error)
            })?;
        }
    }
    Ok(())
}

/// By the system's resolver, while the pool starts and nobody waits for anything else.
fn resolve(name: &str, address: &str) -> Result<Vec<net::SocketAddr>> {
    let failed = || {
        let doing = format!("resolving {address:?} for {name:?}");
        Error::new(ErrorKind::Listen, doing)
    };
    let found = address.to_socket_addrs();
    let found: Vec<_> = found.map_err(|error| failed().because(error))?.collect();
    match found.is_empty() {
        true => Err(failed().because("it has no address")),
        false => Ok(found),
    }
}

/// How the names of the library's own sockets begin.
const OWN: &str = "handover.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_named_and_of_a_kind() {
        for text in [
            "web=0.0.0.0:80",
            "web=[::1]:80",
            "app=unix:/run/a=b",
            "dns=udp:[::]:53",
        ] {
            let listen: Listen = text.parse().unwrap();
            assert_eq!(listen.to_string(), text);
        }
        let tcp: Listen = "web=tcp:localhost:80".parse().unwrap();
        assert_eq!(tcp, "web=localhost:80".parse().unwrap());
        for wrong in ["", "80", "=:80", "a:b=:80", "a b=:80"] {
            assert!(wrong.parse::<Listen>().is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn every_socket_is_bound_once_and_none_accepts() {
        let wanted: Listen = "web=127.0.0.1:0".parse().unwrap();
        let sockets = Sockets::claim(Table::default(), &[wanted], 1)
            .await
            .unwrap();
        let all = sockets.of_slot(0);
        assert!(sockets.groups(1).is_empty());
        assert_eq!(all.len(), 1);
        let (_, _, address) = &sockets.table().describe()[0];
        let waiting = net::TcpStream::connect(address).unwrap();
        assert_eq!(all[0].0, "web");
        drop(waiting);
    }

    #[tokio::test]
    async fn each_slot_has_a_tcp_socket_of_its_own_on_one_port_and_shares_the_others() {
        let room = tempfile::tempdir().unwrap();
        let wanted = [
            "web=127.0.0.1:0".to_owned(),
            format!("app=unix:{}", room.path().join("app").display()),
        ];
        let wanted: Vec<Listen> = wanted.iter().map(|it| it.parse().unwrap()).collect();
        let sockets = Sockets::claim(Table::default(), &wanted, 3).await.unwrap();
        let [one, two] = [sockets.of_slot(1), sockets.of_slot(2)];
        let names = |of: &[(String, Arc<OwnedFd>)]| -> Vec<String> {
            of.iter().map(|(name, _)| name.clone()).collect()
        };
        assert_eq!((names(&one), names(&two)), (names(&one), names(&one)));
        assert_eq!(names(&one), ["web", "app"]);
        assert!(!Arc::ptr_eq(&one[0].1, &two[0].1));
        assert!(Arc::ptr_eq(&one[1].1, &two[1].1));
        let groups = sockets.groups(3);
        assert_eq!((groups.len(), groups[0].len()), (1, 3));
        let port = |socket: &OwnedFd| {
            let address = socket2::SockRef::from(socket).local_addr().unwrap();
            address.as_socket().unwrap().port()
        };
        assert_eq!(port(&one[0].1), port(&two[0].1));
        let held = sockets.table().offer().into_iter();
        let held: Vec<Slot> = held.map(|(slot, _)| slot).collect();
        assert_eq!((slots_of(&held), slots_of(&[])), (3, 1));
    }
}
