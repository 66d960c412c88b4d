//! Socket pairs, and descriptors that travel through them (unix(7), SCM_RIGHTS).

#![expect(
    unsafe_code,
    reason = "nix has no pair above the standard streams, and hands out received descriptors unowned"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::stat::fstat;
use socket2::{Domain, SockRef, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The most descriptors that one message can carry (SCM_MAX_FD, unix(7)).
const DESCRIPTORS_MAX: usize = 253;

/// What one [`recv`] brought.
#[derive(Debug)]
pub(crate) struct Received {
    /// Bytes written to the front of the buffer.
    pub(crate) length: usize,
    /// The descriptors that arrived, in the order in which they were sent.
    pub(crate) descriptors: Vec<OwnedFd>,
    /// The datagram was longer than the buffer; the rest is gone.
    pub(crate) body_cut: bool,
    /// More descriptors were sent than arrived; the kernel has closed the rest (facts: MSG_CTRUNC).
    pub(crate) descriptors_cut: bool,
    /// The process that has sent it, where the socket asks the kernel for that (SO_PASSCRED, unix(7)).
    #[cfg_attr(
        not(feature = "pool"),
        expect(dead_code, reason = "supervisors alone ask for it")
    )]
    pub(crate) sender: Option<u32>,
}

/// Two connected, non-blocking SOCK_SEQPACKET sockets, neither of which takes the place of a standard stream.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let mut ends = [-1; 2];
    // SAFETY: socketpair(2) writes two descriptors to `ends`, which has room for two and outlives the call.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) })?;
    // SAFETY: the call above succeeded, so this is a new descriptor that nothing else owns.
    let left = unsafe { OwnedFd::from_raw_fd(ends[0]) };
    // SAFETY: as for the other end.
    let right = unsafe { OwnedFd::from_raw_fd(ends[1]) };
    Ok((lifted(left)?, lifted(right)?))
}

/// Sends one datagram, whole or not at all. Never raises SIGPIPE.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    body: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    send_some(socket, body, descriptors).map(drop)
}

fn send_some(
    socket: BorrowedFd<'_>,
    body: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut control = control_of(descriptors)?;
    let mut part = libc::iovec {
        iov_base: body.as_ptr().cast_mut().cast(),
        iov_len: body.len(),
    };
    let message = header(&mut part, &mut control);
    retry(|| {
        // SAFETY: `message` points to `part`, and they to `body` and `control`; all outlive the call, which only reads.
        unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) }
    })
}

/// Sends bytes and descriptors on a stream socket, where a send can be cut short: all of it at once, or an error.
///
/// Whoever reads there must use [`recv`]: a plain read drops the descriptors (unix(7)).
pub(crate) fn send_on_stream(
    socket: BorrowedFd<'_>,
    body: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    match send_some(socket, body, descriptors)? {
        sent if sent == body.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Receives one datagram to the front of `buffer`; `None` once the other end is closed and everything has been read.
///
/// An empty datagram without descriptors cannot be told from the end (recv(2)); nobody sends one.
pub(crate) fn recv(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut control = [0; CONTROL_MAX];
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut message = header(&mut part, &mut control);
    let length = retry(|| {
        // SAFETY: `message` points to `part`, and they to `buffer` and `control`, which the call may overwrite as far
        // as their lengths say; all outlive it and nothing else refers to them during it.
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) }
    })?;
    #[allow(clippy::unnecessary_cast, reason = "musl counts in 32 bits")]
    let (written, flags) = (message.msg_controllen as usize, message.msg_flags);
    let control = control.get(..written).unwrap_or(&control);
    let received = Received {
        length,
        descriptors: descriptors_in(control),
        sender: sender_in(control),
        body_cut: flags & libc::MSG_TRUNC != 0,
        descriptors_cut: flags & libc::MSG_CTRUNC != 0,
    };
    let end = length == 0 && received.descriptors.is_empty() && !received.descriptors_cut;
    Ok((!end).then_some(received))
}

/// The inode of an open descriptor: for a socket, a number that no other open socket has.
pub(crate) fn inode(descriptor: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(fstat(descriptor)?.st_ino)
}

/// Who has made what an open descriptor leads to; of a socket nobody but root can change that.
#[cfg(feature = "pool")]
pub(crate) fn owner(descriptor: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(fstat(descriptor)?.st_uid)
}

/// Whether two descriptors lead to the same file, pipe or socket.
pub(crate) fn same_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<bool> {
    let (one, other) = (fstat(one)?, fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// Whether this is a sequenced-packet Unix socket.
pub(crate) fn is_seqpacket_socket(descriptor: BorrowedFd<'_>) -> bool {
    let socket = SockRef::from(&descriptor);
    socket.domain().is_ok_and(|domain| domain == Domain::UNIX)
        && socket.r#type().is_ok_and(|kind| kind == Type::SEQPACKET)
}

/// Whether every holder of the other end has closed it (poll(2), POLLHUP).
pub(crate) fn is_hung_up(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO)?;
    let found = polled[0].revents().unwrap_or(PollFlags::empty());
    Ok(found.contains(PollFlags::POLLHUP))
}

/// The process that made or connected the other end (SO_PEERCRED, unix(7)); it may have passed it on since.
pub(crate) fn peer_pid(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let credentials = getsockopt(&socket, PeerCredentials)?;
    Ok(credentials.pid().unsigned_abs())
}

/// Whether the number of a descriptor is open and leads to the sequenced-packet socket with this inode.
pub(crate) fn leads_to(number: RawFd, expected: u64) -> bool {
    if number < 0 || descriptor_flags(number).is_err() {
        return false;
    }
    // SAFETY: the number is open, as fcntl(2) has just said, and the borrow ends with this function. Were it closed in
    // between by a thread that runs while the process starts, the calls below would say EBADF and the answer be no.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    is_seqpacket_socket(descriptor) && inode(descriptor).is_ok_and(|inode| inode == expected)
}

/// Takes ownership of a descriptor that this process was started with, and makes it close-on-exec.
///
/// To be called once for each number, while the process starts and nothing else can own it. Whoever started this process
/// may be wrong about the number: what is close-on-exec did not come by an exec and is somebody's here, the runtime's for
/// one.
pub(crate) fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if descriptor_flags(number)? & libc::FD_CLOEXEC != 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    // SAFETY: the number is open, as fcntl(2) has just said, and came by the exec; that nothing else owns it is what the
    // caller knows from having been told the number by whoever started this process.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(descriptor)
}

/// Leaves a descriptor to the program that this process becomes by exec(3), above the standard streams.
pub(crate) fn leave_to_exec(descriptor: OwnedFd) -> io::Result<OwnedFd> {
    let descriptor = lifted(descriptor)?;
    fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(descriptor)
}

/// Leaves a copy of a descriptor to the program that this process becomes by exec(3), above the standard streams. Dropped
/// if there was no exec, everything is as before.
#[cfg(feature = "pool")]
pub(crate) fn leave_copy_to_exec(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    leave_to_exec(duplicate_above(descriptor, libc::STDERR_FILENO + 1)?)
}

/// Registers a descriptor with the reactor of the current runtime, and panics outside of one.
#[allow(
    deprecated,
    reason = "unsound only for a type that may change its number, which OwnedFd does not; the new name is too new"
)]
pub(crate) fn watched(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, interest)
}

fn descriptor_flags(number: RawFd) -> io::Result<libc::c_int> {
    // SAFETY: F_GETFD takes no argument and changes nothing, whatever the number is.
    check(unsafe { libc::fcntl(number, libc::F_GETFD) })
}

/// A duplicate with a number from `floor` on, close-on-exec.
pub(super) fn duplicate_above(descriptor: BorrowedFd<'_>, floor: RawFd) -> io::Result<OwnedFd> {
    let number = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(floor))?;
    // SAFETY: the call above succeeded, so this is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Moves a descriptor above the standard streams, whose numbers may be free in this process.
fn lifted(descriptor: OwnedFd) -> io::Result<OwnedFd> {
    if descriptor.as_raw_fd() > libc::STDERR_FILENO {
        return Ok(descriptor);
    }
    duplicate_above(descriptor.as_fd(), libc::STDERR_FILENO + 1)
}

fn header(part: &mut libc::iovec, control: &mut [u8]) -> libc::msghdr {
    // SAFETY: msghdr is integers and pointers, for which zero is a value; its padding has no public names to set.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = part;
    message.msg_iovlen = 1;
    if !control.is_empty() {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = control.len() as _;
    }
    message
}

// Control messages are written and read as the bytes that the kernel defines (cmsg(3)): a word with the length of
// header and data, two integers for level and kind, the data, and padding to whole words.
const WORD: usize = size_of::<usize>();
const HEADER: usize = WORD + 2 * size_of::<libc::c_int>();
const CONTROL_MAX: usize = HEADER + (DESCRIPTORS_MAX * size_of::<RawFd>()).next_multiple_of(WORD);

fn control_of(descriptors: &[BorrowedFd<'_>]) -> io::Result<Vec<u8>> {
    if descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut control = Vec::new();
    if !descriptors.is_empty() {
        let length = HEADER + size_of_val(descriptors);
        control.extend(length.to_ne_bytes());
        control.extend(libc::SOL_SOCKET.to_ne_bytes());
        control.extend(libc::SCM_RIGHTS.to_ne_bytes());
        control.extend(
            descriptors
                .iter()
                .flat_map(|fd| fd.as_raw_fd().to_ne_bytes()),
        );
        control.resize(length.next_multiple_of(WORD), 0);
    }
    Ok(control)
}

/// Owns every descriptor in what recvmsg(2) has just written.
fn descriptors_in(control: &[u8]) -> Vec<OwnedFd> {
    let rights = messages(control).filter_map(|body| body.strip_prefix(&tag(libc::SCM_RIGHTS)));
    let numbers = rights.flat_map(|rights| rights.chunks_exact(size_of::<RawFd>()));
    let owned = numbers.map(|number| {
        let number = RawFd::from_ne_bytes([number[0], number[1], number[2], number[3]]);
        // SAFETY: the kernel has just installed this descriptor for us, and told nobody else of it.
        unsafe { OwnedFd::from_raw_fd(number) }
    });
    owned.collect()
}

/// The process in the credentials that the kernel has put there: they begin with it (`struct ucred`, unix(7)). 0 is one
/// that cannot be seen from here.
fn sender_in(control: &[u8]) -> Option<u32> {
    let tag = tag(libc::SCM_CREDENTIALS);
    let credentials = messages(control).find_map(|body| body.strip_prefix(&tag))?;
    let pid = u32::from_ne_bytes(*credentials.first_chunk()?);
    (pid > 0).then_some(pid)
}

/// Each control message, without its length.
fn messages(mut control: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = control.split_first_chunk::<WORD>()?;
        let length = usize::from_ne_bytes(*length);
        let body = rest.get(..length.saturating_sub(WORD))?;
        // A length below a header would never end the loop; the kernel writes none.
        let step = length.max(HEADER).next_multiple_of(WORD);
        control = control.get(step..).unwrap_or_default();
        Some(body)
    })
}

/// Level and kind, as they stand before the data.
fn tag(kind: libc::c_int) -> [u8; 2 * size_of::<libc::c_int>()] {
    let mut tag = [0; 2 * size_of::<libc::c_int>()];
    let (level, rest) = tag.split_at_mut(size_of::<libc::c_int>());
    level.copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    rest.copy_from_slice(&kind.to_ne_bytes());
    tag
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(length) => return Ok(length),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_datagram_arrives_with_its_descriptors_in_order() {
        let (left, right) = pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        send(left.as_fd(), b"body", &[null.as_fd(), writer.as_fd()]).unwrap();
        drop(writer);

        let mut buffer = [0; 16];
        let received = recv(right.as_fd(), &mut buffer).unwrap().unwrap();
        assert_eq!(&buffer[..received.length], b"body");
        assert!(!received.body_cut && !received.descriptors_cut);
        let [first, second] = <[OwnedFd; 2]>::try_from(received.descriptors).unwrap();
        assert_eq!(inode(first.as_fd()).unwrap(), inode(null.as_fd()).unwrap());
        File::from(second).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn every_descriptor_is_close_on_exec() {
        let (left, right) = pair().unwrap();
        send(left.as_fd(), b"x", &[left.as_fd()]).unwrap();
        let mut received = recv(right.as_fd(), &mut [0; 1]).unwrap().unwrap();
        let arrived = received.descriptors.remove(0);
        for descriptor in [left, right, arrived] {
            let flags = descriptor_flags(descriptor.as_raw_fd()).unwrap();
            assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        }
    }

    #[test]
    fn as_many_descriptors_as_the_kernel_allows_fit_into_one_datagram() {
        let (left, right) = pair().unwrap();
        let many = vec![left.as_fd(); DESCRIPTORS_MAX];
        send(left.as_fd(), b"x", &many).unwrap();
        let received = recv(right.as_fd(), &mut [0; 1]).unwrap().unwrap();
        assert_eq!(received.descriptors.len(), DESCRIPTORS_MAX);
        assert!(!received.descriptors_cut);

        let too_many = vec![left.as_fd(); DESCRIPTORS_MAX + 1];
        let error = send(left.as_fd(), b"x", &too_many).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_body_longer_than_the_buffer_is_reported() {
        let (left, right) = pair().unwrap();
        send(left.as_fd(), b"longer", &[]).unwrap();
        let received = recv(right.as_fd(), &mut [0; 3]).unwrap().unwrap();
        assert!(received.body_cut);
        assert_eq!(received.length, 3);
    }

    #[test]
    fn an_empty_socket_would_block_and_a_closed_one_ends() {
        let (left, right) = pair().unwrap();
        let error = recv(right.as_fd(), &mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(left);
        assert!(recv(right.as_fd(), &mut [0; 1]).unwrap().is_none());
        assert!(send(right.as_fd(), b"x", &[]).is_err());
    }

    #[test]
    fn only_our_own_sequenced_packet_socket_is_adopted() {
        let (left, right) = pair().unwrap();
        let expected = inode(left.as_fd()).unwrap();
        let number = left.as_raw_fd();
        assert!(leads_to(number, expected));
        assert!(!leads_to(right.as_raw_fd(), expected));
        assert!(!leads_to(number, expected + 1));
        assert!(!leads_to(-1, expected));
        assert!(!leads_to(RawFd::MAX, expected));
        let null = File::open("/dev/null").unwrap();
        assert!(!leads_to(null.as_raw_fd(), inode(null.as_fd()).unwrap()));
    }

    #[test]
    fn descriptors_travel_with_the_bytes_of_a_stream() {
        let (left, right) = std::os::unix::net::UnixStream::pair().unwrap();
        send_on_stream(left.as_fd(), b"line\n", &[left.as_fd()]).unwrap();
        let mut buffer = [0; 16];
        let received = recv(right.as_fd(), &mut buffer).unwrap().unwrap();
        assert_eq!(
            (&buffer[..received.length], received.descriptors.len()),
            (&b"line\n"[..], 1)
        );
        assert!(!is_hung_up(right.as_fd()).unwrap());
        drop(left);
        // It has travelled, so somebody still holds it.
        assert!(!is_hung_up(right.as_fd()).unwrap());
        drop(received);
        assert!(is_hung_up(right.as_fd()).unwrap());
    }

    #[test]
    fn what_is_left_to_an_exec_is_inherited_and_no_standard_stream() {
        let (left, _right) = pair().unwrap();
        let inode_before = inode(left.as_fd()).unwrap();
        let left = leave_to_exec(left).unwrap();
        assert!(left.as_raw_fd() > libc::STDERR_FILENO);
        assert_eq!(descriptor_flags(left.as_raw_fd()).unwrap(), 0);
        assert_eq!(inode(left.as_fd()).unwrap(), inode_before);
    }

    #[test]
    fn adopting_a_number_that_is_not_open_is_an_error() {
        assert!(adopt(RawFd::MAX).is_err());
        assert!(adopt(-1).is_err());
    }

    #[test]
    fn the_maker_of_a_pair_is_its_peer() {
        let (left, _right) = pair().unwrap();
        assert_eq!(peer_pid(left.as_fd()).unwrap(), std::process::id());
    }
}
