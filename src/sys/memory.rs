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
    if !seals.contains(unchanging()) {
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

/// A memory file with the bytes of an open file, which can be executed and which nobody can change from now on.
///
/// Where vm.memfd_noexec is 2 (sysctl(8)) there can be none, which is an error.
pub(crate) fn sealed_program(name: &CStr, program: &mut File) -> io::Result<OwnedFd> {
    let mut file = File::from(create_with(name, libc::MFD_EXEC)?);
    io::copy(program, &mut file)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(all_seals()))?;
    Ok(file.into())
}

/// Whether the bytes of this file can no longer change, whoever wants it.
pub(crate) fn is_sealed(file: BorrowedFd<'_>) -> bool {
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_retain);
    seals.is_ok_and(|seals| seals.contains(unchanging()))
}

/// Whether this is a memory file, sealed or not: only such a file has seals to ask for.
pub(crate) fn is_memory(file: BorrowedFd<'_>) -> bool {
    fcntl(file, FcntlArg::F_GET_SEALS).is_ok()
}

/// An empty memory file, which can change.
pub(crate) fn create(name: &CStr) -> nix::Result<OwnedFd> {
    // Where vm.memfd_noexec is 2 the kernel refuses a file that could be executed.
    create_with(name, libc::MFD_NOEXEC_SEAL)
}

/// `executable` is one of the flags that say whether the file can be executed, which Linux does not know before 6.3.
fn create_with(name: &CStr, executable: libc::c_uint) -> nix::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    match memfd_create(name, flags | MFdFlags::from_bits_retain(executable)) {
        Err(Errno::EINVAL) => memfd_create(name, flags),
        created => created,
    }
}

fn all_seals() -> SealFlag {
    unchanging() | SealFlag::F_SEAL_SEAL
}

fn unchanging() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
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
    fn a_program_is_copied_whole_can_be_executed_and_cannot_change() {
        let mut program = File::open("/bin/sh").unwrap();
        let copy = sealed_program(c"test", &mut program).unwrap();
        assert!(is_sealed(copy.as_fd()));
        let copied = read(copy.as_fd()).unwrap();
        assert!(copied == std::fs::read("/bin/sh").unwrap());
        assert!(File::from(copy).write_at(b"F", 0).is_err());
    }

    #[test]
    fn a_file_that_can_still_change_is_not_sealed() {
        assert!(!is_sealed(create(c"test").unwrap().as_fd()));
        assert!(!is_sealed(tempfile::tempfile().unwrap().as_fd()));
        assert!(is_sealed(sealed(c"test", b"").unwrap().as_fd()));
    }

    #[test]
    fn a_file_that_could_change_is_refused() {
        let file = create(c"test").unwrap();
        let error = read(file.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(read(File::open("/dev/null").unwrap().as_fd()).is_err());
    }
}
