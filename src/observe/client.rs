//! Whose request it was.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;

use crate::rollout::pick;

/// Who a request came from, so that several errors of one client count as one piece of evidence.
///
/// It is what the traffic is split by: the peer's address (an IPv6 client is its /64), or whatever the application
/// knows its clients by where a proxy stands between. Where each connection is picked by itself, the connection counts
/// instead, if it is known. Cheap to copy; making one costs a hash.
///
/// ```
/// use handover::observe::Client;
/// use std::net::SocketAddr;
///
/// let peer: SocketAddr = "192.0.2.7:4711".parse()?;
/// assert_ne!(Client::from(peer), Client::from(peer.ip())); // the same client, and a connection of it
/// let tenant = Client::from("tenant 12");
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// None is nobody in particular.
    key: Option<NonZeroU64>,
    connection: Option<NonZeroU64>,
}

impl Client {
    /// Nobody in particular: each of its requests counts by itself.
    pub fn unknown() -> Self {
        Self {
            key: None,
            connection: None,
        }
    }

    /// The same client on this connection, by any value that other connections do not have.
    pub fn on_connection(self, connection: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        connection.hash(&mut hasher);
        Self {
            connection: some(hasher.finish()),
            ..self
        }
    }

    pub(super) fn counted_as(self, by: Counted) -> Option<u64> {
        let counted = match by {
            Counted::Client => self.key,
            Counted::Connection => self.connection,
        };
        counted.map(NonZeroU64::get)
    }
}

/// Who counts once in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    Client,
    Connection,
}

/// A client by its address. Of its connections nothing is known.
impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        pick::Client::Address(address).into()
    }
}

/// A client by its address, on the connection that has this port.
impl From<SocketAddr> for Client {
    fn from(peer: SocketAddr) -> Self {
        Self::from(peer.ip()).on_connection(peer)
    }
}

/// A client by the name that the application has for it.
impl From<&str> for Client {
    fn from(name: &str) -> Self {
        pick::Client::Named(name).into()
    }
}

impl From<pick::Client<'_>> for Client {
    fn from(client: pick::Client<'_>) -> Self {
        // No two generations compare their keys, so that they need no salt.
        let key = some(client.hash(0));
        Self {
            key,
            connection: key,
        }
    }
}

/// One of all hashes is taken for another one.
fn some(hash: u64) -> Option<NonZeroU64> {
    Some(NonZeroU64::new(hash).unwrap_or(NonZeroU64::MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_connections_of_a_client_are_one_client_and_two_connections() {
        let [one, other] = ["192.0.2.7:1", "192.0.2.7:2"]
            .map(|peer| Client::from(peer.parse::<SocketAddr>().unwrap()));
        assert_eq!(
            one.counted_as(Counted::Client),
            other.counted_as(Counted::Client)
        );
        assert_ne!(
            one.counted_as(Counted::Connection),
            other.counted_as(Counted::Connection)
        );
    }

    #[test]
    fn an_ipv6_network_of_one_customer_is_one_client() {
        let [one, other, stranger] = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]
            .map(|address| Client::from(address.parse::<IpAddr>().unwrap()));
        assert_eq!(one, other);
        assert_ne!(one, stranger);
    }
}
