//! Which socket of a group that shares one port gets the next connection (`SO_REUSEPORT`, socket(7)).

#![expect(
    unsafe_code,
    reason = "nix and socket2 do not have SO_ATTACH_REUSEPORT_CBPF"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Has the kernel choose among these members of the group that this socket is one of, each as likely as any other. Members
/// are counted in the order in which they began to listen, for as long as none of them is closed. It needs no privilege,
/// holds for the whole group, and takes the place of what was chosen before.
///
/// # Errors
///
/// If nobody is to be chosen, or the socket shares no port.
pub(crate) fn steer(group: BorrowedFd<'_>, to: &[u32]) -> io::Result<()> {
    let program = program(to).ok_or(io::ErrorKind::InvalidInput)?;
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let filter = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast_mut(),
    };
    let size = size_of_val(&filter);
    let size = libc::socklen_t::try_from(size).map_err(io::Error::other)?;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF);
    let value = (&raw const filter).cast();
    // SAFETY: setsockopt(2) reads `size` bytes at `value`, which is that long, and the program that it leads to; both
    // outlive the call, and the kernel checks the program and keeps a copy.
    let outcome = unsafe { libc::setsockopt(group.as_raw_fd(), level, name, value, size) };
    match outcome {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A random number modulo how many there are, and for each remainder one of them.
fn program(to: &[u32]) -> Option<Vec<libc::sock_filter>> {
    let (last, others) = to.split_last()?;
    let count = u32::try_from(to.len()).ok()?;
    let mut program = vec![
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, RANDOM),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, count),
    ];
    for (remainder, member) in (0..).zip(others) {
        program.push(libc::sock_filter {
            // Over the next instruction if it is another one.
            jf: 1,
            ..instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, remainder)
        });
        program.push(instruction(libc::BPF_RET | libc::BPF_K, *member));
    }
    program.push(instruction(libc::BPF_RET | libc::BPF_K, *last));
    Some(program)
}

fn instruction(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        // All of them fit (linux/bpf_common.h).
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

/// `SKF_AD_OFF` and `SKF_AD_RANDOM` of linux/filter.h: where a random number is.
const RANDOM: u32 = (-0x1000_i32 + 56) as u32;

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::sys::queue::accept_queue;

    fn member(address: SocketAddr) -> TcpListener {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(256).unwrap();
        socket.into()
    }

    #[test]
    fn only_chosen_members_get_connections_and_each_of_them_does() {
        let first = member(([127, 0, 0, 1], 0).into());
        let address = first.local_addr().unwrap();
        let group = [first, member(address), member(address), member(address)];
        let queues = || group.each_ref().map(|it| accept_queue(it.as_fd()).unwrap());
        let mut clients = Vec::new();
        for (to, chosen) in [
            (&[1, 3][..], [false, true, false, true]),
            (&[0, 1, 2], [true, true, true, false]),
            (&[2], [false, false, true, false]),
        ] {
            steer(group[0].as_fd(), to).unwrap();
            let before = queues();
            clients.extend((0..60).map(|_| TcpStream::connect(address).unwrap()));
            let now = queues();
            let got = [0, 1, 2, 3].map(|index| now[index] > before[index]);
            assert_eq!(got, chosen, "{before:?} {now:?}");
        }
    }

    #[test]
    fn nobody_cannot_be_chosen() {
        let alone = member(([127, 0, 0, 1], 0).into());
        assert!(steer(alone.as_fd(), &[]).is_err());
    }
}
