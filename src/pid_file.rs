//! The PID file: whose number is in it is who serves.

use std::ffi::OsString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Writes the file anew: a reader sees the former number or this one, never half of it.
pub(crate) fn write(path: &Path, pid: u32) -> io::Result<()> {
    let draft = draft_of(path, pid)?;
    let result = fill(&draft, pid).and_then(|()| fs::rename(&draft, path));
    if result.is_err() {
        // The first error is the one to tell; a draft that cannot be removed does no harm.
        let _ = fs::remove_file(&draft);
    }
    result
}

/// Removes the file, unless it has another process's number by now.
///
/// Nothing comes between look and removal: a successor writes only after its incumbent has given up the role.
pub(crate) fn remove_if_ours(path: &Path, pid: u32) -> io::Result<()> {
    match fs::read_to_string(path) {
        Ok(text) if text.trim() == pid.to_string() => fs::remove_file(path),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn draft_of(path: &Path, pid: u32) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut draft = OsString::from(".");
    draft.push(name);
    draft.push(format!(".{pid}"));
    Ok(path.with_file_name(draft))
}

fn fill(draft: &Path, pid: u32) -> io::Result<()> {
    // What an earlier process with our number left when it was killed halfway. Opening it instead could follow a link.
    if let Err(error) = fs::remove_file(draft)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(draft)?;
    // A strict umask would keep the number from those who are to signal us.
    file.set_permissions(Permissions::from_mode(MODE))?;
    writeln!(file, "{pid}")
}

const MODE: u32 = 0o644;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_replaces_what_was_there_and_leaves_nothing_beside_it() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("app.pid");
        write(&path, 41).unwrap();
        fs::write(draft_of(&path, 42).unwrap(), "stale").unwrap();
        write(&path, 42).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "42\n");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o644
        );
        assert_eq!(fs::read_dir(room.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_replaced_is_an_error_and_leaves_no_draft() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("app.pid");
        fs::create_dir(&path).unwrap();
        assert!(write(&path, 42).is_err());
        assert_eq!(fs::read_dir(room.path()).unwrap().count(), 1);
        assert!(write(Path::new("/"), 42).is_err());
        assert!(write(&room.path().join("none/app.pid"), 42).is_err());
    }

    #[test]
    fn only_our_own_number_is_removed() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("app.pid");
        write(&path, 42).unwrap();
        remove_if_ours(&path, 4).unwrap();
        assert!(path.exists());
        remove_if_ours(&path, 42).unwrap();
        assert!(!path.exists());
        remove_if_ours(&path, 42).unwrap();
    }
}
