//! Sealed memory files: bytes that travel as a descriptor and can no longer change (memfd_create(2)).

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// A memory file with these bytes, which nobody can change from now on. `name` shows up in /proc only.
pub(crate) fn sealed(name: &CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(create(name)?);
    file.write_all(bytes)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(all_seals()))?;
    Ok(file.into())
}

/// The bytes of a sealed memory file, wherever its position is.
///
/// Refuses one that could still change: the bytes that were measured would not be the bytes that are read.
pub(crate) fn read(file: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let seals = SealFlag::from_bits_retain(fcntl(file, FcntlArg::F_GET_SEALS)?);
    if !seals.contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the memory file is not sealed",
        ));
    }
    let file = File::from(file.try_clone_to_owned()?);
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length)?;
    bytes.resize(length, 0);
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Whether this is a memory file, sealed or not: only such a file has seals to ask for.
pub(crate) fn is_memory(file: BorrowedFd<'_>) -> bool {
    fcntl(file, FcntlArg::F_GET_SEALS).is_ok()
}

fn create(name: &CStr) -> nix::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Where vm.memfd_noexec is 2 the kernel refuses a file that could be executed; before Linux 6.3 it does not know
    // the flag that says so.
    match memfd_create(
        name,
        flags | MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL),
    ) {
        Err(Errno::EINVAL) => memfd_create(name, flags),
        created => created,
    }
}

fn all_seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_was_sealed_is_read_again_and_again() {
        let file = sealed(c"test", b"session keys").unwrap();
        assert_eq!(read(file.as_fd()).unwrap(), b"session keys");
        assert_eq!(read(file.as_fd()).unwrap(), b"session keys");
        assert!(
            read(sealed(c"test", b"").unwrap().as_fd())
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_sealed_file_cannot_change_any_more() {
        let file = File::from(sealed(c"test", b"fixed").unwrap());
        assert!(file.write_at(b"F", 0).is_err());
        assert!(file.set_len(0).is_err());
        assert!(file.set_len(100).is_err());
    }

    #[test]
    fn a_memory_file_is_told_from_other_files() {
        assert!(is_memory(create(c"test").unwrap().as_fd()));
        assert!(!is_memory(File::open("/dev/null").unwrap().as_fd()));
        assert!(!is_memory(io::pipe().unwrap().0.as_fd()));
    }

    #[test]
    fn a_file_that_could_change_is_refused() {
        let file = create(c"test").unwrap();
        let error = read(file.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(read(File::open("/dev/null").unwrap().as_fd()).is_err());
    }
}
