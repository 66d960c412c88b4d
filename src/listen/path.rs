//! Unix socket paths: binding them, replacing stale ones, and unlinking only our own.
//!
//! Everything that creates or removes a path does so under an exclusive flock(2) on its directory, so that of two
//! generations started at once neither takes the other's path in the moment between its bind and its listen.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::SocketAddr;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::time::{sleep, timeout};

use super::options::ListenOptions;
use crate::config::{PATH_LOCK_DEADLINE, PATH_LOCK_RETRY};

/// Device and inode of a path: who it is, whatever its name.
pub(crate) type Inode = (u64, u64);

/// Reads a path, or an abstract name if it begins with `@` (unix(7)).
pub(crate) fn address(path: &Path) -> io::Result<SocketAddr> {
    match path.as_os_str().as_bytes() {
        b"" | b"@" => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it has no name",
        )),
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(path),
    }
}

/// A new listener, and its path's inode if it has a path.
pub(super) async fn bind(
    address: &SocketAddr,
    options: &ListenOptions,
) -> io::Result<(OwnedFd, Option<Inode>)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    let inode = match address.as_pathname() {
        Some(path) => Some(bind_path(&socket, path, options).await?),
        None => {
            socket.bind(&sockaddr(address)?)?;
            socket.listen(options.backlog_for_kernel())?;
            None
        }
    };
    Ok((socket.into(), inode))
}

/// Removes a path if it is still the one that was bound.
pub(super) async fn unlink(path: &Path, inode: Inode) -> io::Result<()> {
    let _lock = lock_directory_of(path).await?;
    unlink_locked(path, inode)
}

/// The same at once: an error if somebody has the directory locked.
pub(super) fn try_unlink(path: &Path, inode: Inode) -> io::Result<()> {
    let directory = File::open(directory_of(path))?;
    let _lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| io::Error::from(errno))?;
    unlink_locked(path, inode)
}

/// Removes the path of a Unix socket that nobody listens on any more, if there is one.
pub(crate) async fn clear(path: &Path) -> io::Result<()> {
    let _lock = lock_directory_of(path).await?;
    match remove_stale(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn unlink_locked(path: &Path, inode: Inode) -> io::Result<()> {
    match inode_of(path) {
        Ok(now) if now == inode => fs::remove_file(path),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Device and inode of the path itself, not of what a link there leads to.
pub(super) fn inode_of(path: &Path) -> io::Result<Inode> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// As [`inode_of`], of a path that is a socket's.
pub(crate) fn socket_inode(path: &Path) -> io::Result<Inode> {
    let found = fs::symlink_metadata(path)?;
    if !found.file_type().is_socket() {
        return Err(not_a_socket());
    }
    Ok((found.dev(), found.ino()))
}

async fn bind_path(socket: &Socket, path: &Path, options: &ListenOptions) -> io::Result<Inode> {
    let _lock = lock_directory_of(path).await?;
    let address = SockAddr::unix(path)?;
    if let Err(error) = socket.bind(&address) {
        if error.kind() != io::ErrorKind::AddrInUse {
            return Err(error);
        }
        remove_stale(path)?;
        socket.bind(&address)?;
    }
    listen_at(socket, path, options).inspect_err(|_| {
        // Ours since a moment ago, and useless; the error at hand says more than a failure to remove it.
        let _ = fs::remove_file(path);
    })
}

fn listen_at(socket: &Socket, path: &Path, options: &ListenOptions) -> io::Result<Inode> {
    let inode = inode_of(path)?;
    if let Some(mode) = options.mode {
        // Nobody can connect before it listens, so nobody has connected under other permissions.
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    socket.listen(options.backlog_for_kernel())?;
    Ok(inode)
}

/// Removes the path of a socket that nobody listens on any more; anything else stays and is an error.
fn remove_stale(path: &Path) -> io::Result<()> {
    let found = socket_inode(path)?;
    refuse_live(path)?;
    if inode_of(path)? != found {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    fs::remove_file(path)
}

fn not_a_socket() -> io::Error {
    let text = "the path exists and is not a socket";
    io::Error::new(io::ErrorKind::AlreadyExists, text)
}

/// A socket that is left over refuses connections; a full queue (`EAGAIN`, connect(2)) is a sign of life.
fn refuse_live(path: &Path) -> io::Result<()> {
    let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

async fn lock_directory_of(path: &Path) -> io::Result<Flock<File>> {
    let lock = wait_for_lock(File::open(directory_of(path))?);
    timeout(PATH_LOCK_DEADLINE, lock)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "its directory stays locked"))?
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

async fn wait_for_lock(mut directory: File) -> io::Result<Flock<File>> {
    loop {
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((unlocked, Errno::EWOULDBLOCK)) => directory = unlocked,
            Err((_, errno)) => return Err(errno.into()),
        }
        sleep(PATH_LOCK_RETRY).await;
    }
}

/// What the system calls want for a path or an abstract name.
pub(crate) fn sockaddr(address: &SocketAddr) -> io::Result<SockAddr> {
    if let Some(path) = address.as_pathname() {
        return SockAddr::unix(path);
    }
    let name = address.as_abstract_name().unwrap_or_default();
    SockAddr::unix(std::ffi::OsStr::from_bytes(&[b"\0", name].concat()))
}
