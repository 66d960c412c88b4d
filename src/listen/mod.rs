//! Named listeners: bound or claimed by name, and served through gates.
//!
//! A listener is born with its gate shut. The [`Table`] knows every socket of a generation by name and opens, shuts,
//! offers and closes them; the public handles accept through their gate and know nothing of handovers.

mod address;
mod bind;
mod claim;
mod divert;
mod gate;
mod intake;
mod loopback;
mod options;
mod path;
mod private;
mod probe;
mod stop;
mod table;
mod tcp;
#[cfg(test)]
mod testing;
mod udp;
mod unix;
mod waiting;

pub(crate) use self::address::Address;
pub(crate) use self::claim::Public;
#[cfg(feature = "pool")]
pub(crate) use self::claim::refuses_new;
pub(crate) use self::divert::Divert;
pub(crate) use self::intake::{Adopted, Permit};
pub(crate) use self::loopback::loopback_pair;
pub use self::options::ListenOptions;
#[cfg(feature = "pool")]
pub(crate) use self::path::{address as unix_address, socket_inode};
pub(crate) use self::path::{clear, sockaddr};
pub(crate) use self::private::Private;
pub(crate) use self::probe::{Caller, answer};
pub(crate) use self::stop::FinalStop;
pub(crate) use self::table::Table;
pub use self::tcp::TcpListener;
pub use self::udp::UdpSocket;
pub use self::unix::UnixListener;
