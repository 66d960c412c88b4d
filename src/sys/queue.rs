//! What the kernel says of a TCP socket: how many connections wait in the accept queue of a listening one, and whether the
//! other end of a connection has heard of its end.

#![expect(unsafe_code, reason = "nix and socket2 do not have TCP_INFO")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The front of `struct tcp_info` up to `tcpi_unacked`, in words of 32 bits.
const WORDS: usize = 7;
/// States of a socket (the kernel's net/tcp_states.h).
#[cfg(feature = "pool")]
const ESTABLISHED: u8 = 1;
#[cfg(feature = "pool")]
const FIN_WAIT_1: u8 = 4;
const LISTEN: u8 = 10;

/// How many connections wait to be accepted.
///
/// The kernel shows it to whoever holds the socket: of a listening one `tcpi_unacked` is the length of its accept queue
/// (`tcp_get_info` in net/ipv4/tcp.c; ss(8) shows the same as Recv-Q).
///
/// # Errors
///
/// For what is no listening TCP socket.
pub(crate) fn accept_queue(socket: BorrowedFd<'_>) -> io::Result<u32> {
    match info(socket)? {
        (LISTEN, info) => Ok(info[WORDS - 1]),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Whether the other end has acknowledged that this one writes nothing more (shutdown(2)).
///
/// `connect` may return a moment before its connection is in the other end's accept queue: the kernel puts it there when the
/// last packet of the handshake arrives. It answers the end of a connection only behind that.
///
/// # Errors
///
/// For what is no TCP socket.
#[cfg(feature = "pool")]
pub(crate) fn is_end_heard(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let (state, _) = info(socket)?;
    Ok(![ESTABLISHED, FIN_WAIT_1].contains(&state))
}

/// The state, and the rest of it.
fn info(socket: BorrowedFd<'_>) -> io::Result<(u8, [u32; WORDS])> {
    let mut info = [0_u32; WORDS];
    let size = size_of_val(&info);
    let mut length = libc::socklen_t::try_from(size).map_err(io::Error::other)?;
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    let buffer = info.as_mut_ptr().cast();
    // SAFETY: getsockopt(2) writes at most `length` bytes to `buffer`, which is that long, and then how many they were to
    // `length`. Both outlive the call. Any bytes are a number.
    let outcome =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, buffer, &raw mut length) };
    if outcome == -1 {
        return Err(io::Error::last_os_error());
    }
    if usize::try_from(length) != Ok(size) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let [state, ..] = info[0].to_ne_bytes();
    Ok((state, info))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use super::*;

    /// `connect` may return a moment before its connection is in the queue.
    fn await_length(listener: &TcpListener, expected: u32) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while accept_queue(listener.as_fd()).unwrap() != expected {
            assert!(Instant::now() < deadline, "never {expected}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_queue_is_as_long_as_there_are_connections_that_nobody_has_accepted() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            assert_eq!(accept_queue(listener.as_fd()).unwrap(), 0);
            let address = listener.local_addr().unwrap();
            let _clients = [(); 3].map(|()| TcpStream::connect(address).unwrap());
            await_length(&listener, 3);
            let _accepted = listener.accept().unwrap();
            await_length(&listener, 2);
        }
    }

    #[test]
    #[cfg(feature = "pool")]
    fn whose_end_is_heard_has_been_in_the_queue() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let clients: Vec<TcpStream> = (1..=100)
            .map(|count| {
                let client = TcpStream::connect(address).unwrap();
                assert!(!is_end_heard(client.as_fd()).unwrap());
                client.shutdown(std::net::Shutdown::Write).unwrap();
                let deadline = Instant::now() + Duration::from_secs(10);
                while !is_end_heard(client.as_fd()).unwrap() {
                    assert!(Instant::now() < deadline, "never");
                }
                assert_eq!(accept_queue(listener.as_fd()).unwrap(), count);
                client
            })
            .collect();
        // Nor does it matter that the other end has gone by then.
        drop(listener);
        let gone = clients.iter().all(|it| is_end_heard(it.as_fd()).unwrap());
        assert!(gone);
    }

    #[test]
    fn what_does_not_listen_has_no_queue() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(accept_queue(client.as_fd()).is_err());
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(accept_queue(udp.as_fd()).is_err());
    }
}
