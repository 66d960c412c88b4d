//! Which file is the next generation's program: found anew at each upgrade, so that a release that was switched in the
//! meantime is the one that starts.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, eaccess};

use crate::sys::environment::Snapshot;

/// The program to start: the chosen one, else what this process was started as, else the file it runs.
///
/// A path is taken as it was given and never resolved: `current` in `/srv/current/app` is followed by the kernel, to
/// wherever it leads by then. A bare name is looked for here, since a spawn that searches cannot avoid a fork.
pub(crate) fn resolve(chosen: Option<&Path>, snapshot: &Snapshot) -> PathBuf {
    let name = snapshot.argv.first().cloned().unwrap_or_default();
    let given = Path::new(&name);
    chosen
        .map(PathBuf::from)
        .or_else(|| name.as_bytes().contains(&b'/').then(|| given.into()))
        .or_else(|| search(given, snapshot))
        .or_else(|| Some(alive(snapshot.exe.clone()?)))
        .unwrap_or_else(|| given.into())
}

/// The first executable of this name along the PATH that this process was started with.
fn search(name: &Path, snapshot: &Snapshot) -> Option<PathBuf> {
    if name.as_os_str().is_empty() {
        return None;
    }
    let here = snapshot.cwd.clone().unwrap_or_default();
    std::env::split_paths(snapshot.var("PATH")?)
        .map(|directory| here.join(directory).join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && eaccess(path, AccessFlags::X_OK).is_ok()
}

/// The kernel marks a file that has been replaced since; its successor has the name without the mark (proc(5)).
fn alive(exe: PathBuf) -> PathBuf {
    match exe.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(path) => OsString::from_vec(path.to_vec()).into(),
        None => exe,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_chosen_program_comes_first_and_a_given_path_stays_as_it_is() {
        let snapshot = started_as("./current/../app", "/bin");
        assert_eq!(resolve(Some(Path::new("/x")), &snapshot), Path::new("/x"));
        let as_given = resolve(None, &snapshot);
        assert_eq!(as_given.as_os_str(), "./current/../app");
    }

    #[test]
    fn a_bare_name_is_the_first_executable_along_the_recorded_path() {
        let room = tempfile::tempdir().unwrap();
        for (place, mode) in [("plain", 0o644), ("first", 0o755), ("second", 0o755)] {
            let directory = room.path().join(place);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("app"), "").unwrap();
            fs::set_permissions(directory.join("app"), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir_all(room.path().join("directory/app")).unwrap();
        let mut snapshot = started_as("app", "directory:plain:first:second");
        snapshot.cwd = Some(room.path().into());
        assert_eq!(resolve(None, &snapshot), room.path().join("first/app"));
    }

    #[test]
    fn a_name_that_is_nowhere_falls_back_to_the_file_that_runs() {
        let mut snapshot = started_as("-no such name", "/nowhere");
        snapshot.exe = Some("/srv/app (deleted)".into());
        assert_eq!(resolve(None, &snapshot), Path::new("/srv/app"));
        snapshot.argv.clear();
        assert_eq!(resolve(None, &snapshot), Path::new("/srv/app"));
        snapshot.exe = None;
        assert_eq!(resolve(None, &snapshot), Path::new(""));
    }

    fn started_as(name: &str, path: &str) -> Snapshot {
        Snapshot {
            argv: vec![name.into()],
            env: vec![("PATH".into(), path.into())],
            ..Snapshot::default()
        }
    }
}
