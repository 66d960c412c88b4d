//! How many connections wait in the accept queue of a listening TCP socket.

#![expect(unsafe_code, reason = "nix and socket2 do not have TCP_INFO")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The front of `struct tcp_info` up to `tcpi_unacked`, in words of 32 bits.
const WORDS: usize = 7;
/// The state of a listening socket (`TCP_LISTEN` in the kernel's net/tcp_states.h).
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
    // The first byte is the state.
    let [state, ..] = info[0].to_ne_bytes();
    if state != LISTEN || usize::try_from(length) != Ok(size) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(info[WORDS - 1])
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
    fn what_does_not_listen_has_no_queue() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(accept_queue(client.as_fd()).is_err());
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(accept_queue(udp.as_fd()).is_err());
    }
}
