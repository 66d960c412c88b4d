//! Private endpoints of a candidate that is ready and has no clients yet.
//!
//! What connects to one is adopted by the listener it stands for, and reaches the application by its `accept`, gate open
//! or shut. An application that accepts TCP connections gets one: bytes that come by a Unix socket pass through a pair
//! of loopback sockets of this process's own.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::config::{ACCEPT_PAUSE, PREVIEW_CLIENTS_MAX, PREVIEW_CONNECT};
use crate::listen::{Address, Private, Public, loopback_pair};
use crate::protocol::message::Preview;
use crate::sys::process::is_own_user_or_root;

/// Puts a connection before the application, as one of the listener of this name. `false` if nobody will accept it.
pub(crate) type Adopt = Arc<dyn Fn(&str, OwnedFd) -> bool + Send + Sync>;

/// The private endpoints of this generation, until this is dropped. Connections that came by them go on.
#[derive(Default)]
pub(crate) struct Endpoints {
    known: Vec<Preview>,
    _paths: Vec<Private>,
    accepting: JoinSet<()>,
}

impl Endpoints {
    /// Opens one in `directory` for each listener, and a port where one is wanted.
    ///
    /// # Cancel safety
    ///
    /// What was opened is closed again.
    pub(crate) async fn open(
        directory: &Path,
        ports: &[(String, u16)],
        generation: u64,
        listeners: Vec<Public>,
        adopt: &Adopt,
    ) -> io::Result<Self> {
        let mut endpoints = Self::default();
        let clients = Arc::new(Semaphore::new(PREVIEW_CLIENTS_MAX));
        for Public { name, address, .. } in listeners.into_iter().filter(|public| public.adopts) {
            let path = directory.join(file_name(generation, &name));
            let text = path
                .to_str()
                .ok_or(io::ErrorKind::InvalidFilename)?
                .to_owned();
            let (private, socket) = Private::bind(&path).await?;
            endpoints._paths.push(private);
            let gets_tcp = matches!(address, Address::Inet(_));
            let entrance = Entrance {
                name: name.clone(),
                clients: Arc::clone(&clients),
                adopt: Arc::clone(adopt),
            };
            let socket = UnixListener::from_std(socket)?;
            endpoints
                .accepting
                .spawn(entrance.clone().receive(socket, gets_tcp));
            let wanted = ports.iter().find(|(listener, _)| *listener == name);
            let port = match wanted.filter(|_| gets_tcp) {
                Some((_, port)) => {
                    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).await?;
                    let port = socket.local_addr()?.port();
                    endpoints.accepting.spawn(entrance.receive_tcp(socket));
                    Some(port)
                }
                None => None,
            };
            let path = text;
            endpoints.known.push(Preview { name, path, port });
        }
        Ok(endpoints)
    }

    /// Where they are.
    pub(crate) fn known(&self) -> &[Preview] {
        &self.known
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Endpoints").field(&self.known).finish()
    }
}

/// The way in to one listener.
#[derive(Clone)]
struct Entrance {
    name: String,
    clients: Arc<Semaphore>,
    adopt: Adopt,
}

impl Entrance {
    async fn receive(self, socket: UnixListener, gets_tcp: bool) {
        while let Ok(place) = Arc::clone(&self.clients).acquire_owned().await {
            match socket.accept().await {
                Ok((stream, _)) if !is_permitted(&stream) => {}
                Ok((stream, _)) if gets_tcp => {
                    // It goes on when there are no endpoints any more.
                    tokio::spawn(self.clone().bridge(stream, place));
                }
                Ok((stream, _)) => self.pass(stream.into_std().map(OwnedFd::from)),
                // Out of descriptors or memory: whoever connected is still in the queue.
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    async fn receive_tcp(self, socket: TcpListener) {
        loop {
            match socket.accept().await {
                Ok((stream, _)) => self.pass(stream.into_std().map(OwnedFd::from)),
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    async fn bridge(self, mut outside: UnixStream, _place: OwnedSemaphorePermit) {
        let pair = timeout(PREVIEW_CONNECT, loopback_pair()).await;
        let pair = pair.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match pair.and_then(|(near, far)| Ok((near, far.into_std()?))) {
            Ok((mut near, far)) => {
                self.pass(Ok(far.into()));
                // Either side may go away as it likes.
                let _ = copy_bidirectional(&mut outside, &mut near).await;
            }
            Err(error) => {
                tracing::warn!(listener = self.name, %error, "a preview connection was lost")
            }
        }
    }

    fn pass(&self, connection: io::Result<OwnedFd>) {
        let is_adopted = connection.is_ok_and(|connection| (self.adopt)(&self.name, connection));
        if !is_adopted {
            tracing::warn!(
                listener = self.name,
                "a preview connection found nobody to accept it"
            );
        }
    }
}

/// The user of this process, and root: the same as for the control socket.
fn is_permitted(stream: &UnixStream) -> bool {
    let user = stream.peer_cred().map(|peer| peer.uid());
    user.is_ok_and(is_own_user_or_root)
}

fn file_name(generation: u64, listener: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
    let listener = listener.replace(|letter| !is_plain(letter), "_");
    format!("preview-{generation}-{listener}.sock")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use tokio::net::TcpStream;

    use super::*;
    use crate::listen::{self, Adopted, ListenOptions, Table};

    const DEADLINE: Duration = Duration::from_secs(20);

    fn adopt(table: &Arc<Table>) -> Adopt {
        let table = Arc::clone(table);
        Arc::new(move |name, connection| {
            let adopted = table.adopt_connection(name, Adopted::new(connection));
            adopted.is_ok()
        })
    }

    async fn open(table: &Arc<Table>, directory: &TempDir, ports: &[(String, u16)]) -> Endpoints {
        let listeners = table.public(&[]);
        Endpoints::open(directory.path(), ports, 7, listeners, &adopt(table))
            .await
            .unwrap()
    }

    fn listening() -> (TempDir, Arc<Table>, listen::TcpListener) {
        let (directory, table) = (TempDir::new().unwrap(), Arc::new(Table::default()));
        let loopback = ["127.0.0.1:0".parse().unwrap()];
        let web = table.tcp("web", &loopback, &ListenOptions::new()).unwrap();
        (directory, table, web)
    }

    async fn within<F: Future>(future: F) -> F::Output {
        timeout(DEADLINE, future).await.unwrap()
    }

    #[tokio::test]
    async fn what_connects_reaches_the_listener_behind_its_shut_gate_and_talks_both_ways() {
        let (directory, table, web) = listening();
        let loopback = ["127.0.0.1:0".parse().unwrap()];
        let options = ListenOptions::new();
        let api = directory.path().join("api");
        let api = table.unix("a/p i", &api, &options).await.unwrap();
        table.std_tcp("own", &loopback, &options).unwrap();
        table.udp("dns", &loopback, &options).unwrap();
        let endpoints = open(&table, &directory, &[("web".to_owned(), 0)]).await;
        let [at_web, at_api] = endpoints.known() else {
            panic!("{endpoints:?}");
        };
        assert!(at_web.path.ends_with("/preview-7-web.sock"));
        assert!(at_api.path.ends_with("/preview-7-a_p_i.sock"));

        let mut client = UnixStream::connect(&at_web.path).await.unwrap();
        let (mut accepted, _) = within(web.accept()).await.unwrap();
        client.write_all(b"ask").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = String::new();
        within(accepted.read_to_string(&mut heard)).await.unwrap();
        accepted.write_all(b"answer").await.unwrap();
        drop(accepted);
        within(client.read_to_string(&mut heard)).await.unwrap();
        assert_eq!(heard, "askanswer");

        let client = TcpStream::connect(("127.0.0.1", at_web.port.unwrap())).await;
        let (_, peer) = within(web.accept()).await.unwrap();
        assert_eq!(peer, client.unwrap().local_addr().unwrap());

        let mut client = UnixStream::connect(&at_api.path).await.unwrap();
        let (mut accepted, _) = within(api.accept()).await.unwrap();
        accepted.write_all(b"x").await.unwrap();
        assert_eq!(within(client.read_u8()).await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn they_go_when_they_are_dropped_and_what_came_by_them_goes_on() {
        let (directory, table, web) = listening();
        let endpoints = open(&table, &directory, &[]).await;
        let path = endpoints.known()[0].path.clone();
        let mut client = UnixStream::connect(&path).await.unwrap();
        let (mut accepted, _) = within(web.accept()).await.unwrap();
        drop(endpoints);
        assert!(!Path::new(&path).exists());
        accepted.write_all(b"x").await.unwrap();
        assert_eq!(within(client.read_u8()).await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn a_client_that_nobody_will_accept_is_sent_away() {
        let (directory, table, web) = listening();
        let endpoints = open(&table, &directory, &[]).await;
        drop(web);
        let mut client = UnixStream::connect(&endpoints.known()[0].path)
            .await
            .unwrap();
        assert_eq!(within(client.read(&mut [0; 1])).await.unwrap(), 0);
    }
}
