//! The files that this generation and the release before it run, held so that they can be started again whatever has
//! become of their names.
//!
//! 1. A descriptor leads to the file that a name had, after the name leads to another one or to none.
//! 2. It does not keep the bytes: once no process runs them, the file can be overwritten in place. So size and time of
//!    the last write are compared before it is started. The time of the last change of the inode (`st_ctime`, inode(7))
//!    says nothing: a rename over the file changes that as well, which is how releases are replaced.
//! 3. A sealed copy in memory keeps the bytes, for the price of their size.
//! 4. Shared libraries, and the script of an interpreter, are found by name all the same.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Image as Wanted};
use crate::protocol::message::{Slot, SlotKind};
use crate::schema::Declared;
use crate::state::{self, State};
use crate::sys::environment::Snapshot;
use crate::sys::memory;

/// The slot of the file that the incumbent runs.
const SLOT_OWN: &str = "handover.image";
/// The slot of the file that the release before it ran.
const SLOT_BEFORE: &str = "handover.image-before";
/// The slot of what is to be known about both.
const SLOT_ABOUT: &str = "handover.images";

/// Both of them, as far as they are held.
#[derive(Debug)]
pub(crate) struct Images {
    /// Or why not.
    own: Result<Image, String>,
    /// Of the last release that was the incumbent and is another one than this. Or why there is none.
    before: Result<Image, String>,
}

/// A release that can be started again.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    file: Arc<OwnedFd>,
    release: Release,
}

/// What is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Release {
    /// The generation that ran it last.
    pub(crate) generation: u64,
    /// What that one called its build.
    #[serde(default)]
    pub(crate) build: String,
    /// What it says of its schema, if it declares one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) schema: Option<Declared>,
    /// How that one was started.
    argv: Vec<Text>,
    env: Vec<(Text, Text)>,
    cwd: Option<Text>,
    /// The file that is held, as it was then.
    held: Identity,
    /// The file that the copy was made of, if one was made, however often it was started since.
    origin: Identity,
}

/// What need not be text but nearly always is, and then takes a fourth of the room and of the time: a successor reads an
/// environment of these before it serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Utf8(String),
    Bytes(Vec<u8>),
}

/// Which file, and whether its bytes are still the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    size: i64,
    written: (i64, i64),
}

/// What a generation is told that is the release before once more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ColdRollback {
    /// The generation whose image it runs.
    pub(crate) to: u64,
    /// Why, for the history.
    #[serde(default)]
    pub(crate) reason: String,
}

/// The content of [`SLOT_ABOUT`].
#[derive(Debug, Serialize, Deserialize)]
struct About {
    own: Option<Release>,
    before: Option<Release>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cold_rollback: Option<ColdRollback>,
}

impl From<OsString> for Text {
    fn from(value: OsString) -> Self {
        match value.into_string() {
            Ok(text) => Self::Utf8(text),
            Err(value) => Self::Bytes(value.into_vec()),
        }
    }
}

impl From<Text> for OsString {
    fn from(text: Text) -> Self {
        match text {
            Text::Utf8(text) => text.into(),
            Text::Bytes(bytes) => Self::from_vec(bytes),
        }
    }
}

impl Default for Images {
    fn default() -> Self {
        Self {
            own: Err("this generation's image is not held".to_owned()),
            before: Err(NO_RELEASE_BEFORE.to_owned()),
        }
    }
}

impl Images {
    /// Holds the file that this process runs, as far as it is to be held. What goes wrong with that costs the next
    /// generation its way back, and nothing else.
    pub(crate) fn hold(snapshot: &Snapshot, config: &Config) -> Self {
        let own = match config.image {
            Wanted::Nothing => Err("it is configured to hold no image".to_owned()),
            Wanted::Descriptor => Image::of_this_process(snapshot, config, Image::descriptor),
            Wanted::Copy => Image::of_this_process(snapshot, config, Image::copy),
        };
        Self {
            own,
            ..Self::default()
        }
    }

    /// What a successor needs to have a way back. Nothing if this generation holds nothing.
    pub(crate) fn offer(
        &self,
        generation: u64,
        cold_rollback: Option<&ColdRollback>,
    ) -> io::Result<Vec<(Slot, Arc<OwnedFd>)>> {
        let (own, before) = (self.own.as_ref().ok(), self.before.as_ref().ok());
        if own.is_none() && before.is_none() && cold_rollback.is_none() {
            return Ok(Vec::new());
        }
        let about = About {
            own: own.map(|own| Release {
                generation,
                ..own.release.clone()
            }),
            before: before.map(|before| before.release.clone()),
            cold_rollback: cold_rollback.cloned(),
        };
        let (slot, blob) = state::own_blob(SLOT_ABOUT, &serde_json::to_vec(&about)?)?;
        let files = [(SLOT_OWN, own), (SLOT_BEFORE, before)].into_iter();
        let files = files.filter_map(|(name, image)| Some((slot_of(name), image?.file.clone())));
        Ok([(slot, Arc::new(blob))].into_iter().chain(files).collect())
    }

    /// Takes over from the incumbent what it holds. Says whether this generation is the release before once more.
    ///
    /// A generation of the same release as its incumbent goes back to where that one would: there is no way back to the
    /// release that fails.
    pub(crate) fn inherit(&mut self, offered: &mut State) -> Option<ColdRollback> {
        let about = offered.take_blob(SLOT_ABOUT);
        let mut image = |name, release: Option<Release>| {
            let file = Arc::new(offered.take_descriptor(name)?);
            let release = release?;
            Some(Image { file, release })
        };
        let about: Option<About> = about.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let about = about.unwrap_or(About {
            own: None,
            before: None,
            cold_rollback: None,
        });
        let incumbent = image(SLOT_OWN, about.own);
        let before = image(SLOT_BEFORE, about.before);
        if let Ok(own) = &mut self.own {
            own.recognise(before.as_ref());
            own.recognise(incumbent.as_ref());
        }
        let own = self.own.as_ref().ok();
        let is_another = |image: &Image| own.is_none_or(|own| !own.is_same_release(image));
        self.before = match incumbent {
            None => Err("the generation before this one has not passed its image".to_owned()),
            Some(incumbent) if is_another(&incumbent) => Ok(incumbent),
            Some(_) => before
                .filter(is_another)
                .ok_or_else(|| NO_RELEASE_BEFORE.to_owned()),
        };
        about.cold_rollback
    }

    /// What this generation's release says of its schema goes with its image.
    pub(crate) fn declare(&mut self, schema: Declared) {
        if let Ok(own) = &mut self.own {
            own.release.schema = Some(schema);
        }
    }

    /// The release that serves, or why it cannot be started again.
    pub(crate) fn own(&self) -> Result<&Image, String> {
        let image = self.own.as_ref().map_err(Clone::clone)?;
        image.check()?;
        Ok(image)
    }

    /// The release that a cold rollback goes back to, or why there is none.
    pub(crate) fn before(&self) -> Result<&Image, String> {
        let image = self.before.as_ref().map_err(Clone::clone)?;
        image.check()?;
        Ok(image)
    }
}

impl Image {
    fn of_this_process(
        snapshot: &Snapshot,
        config: &Config,
        hold: impl FnOnce() -> io::Result<(OwnedFd, Identity)>,
    ) -> Result<Self, String> {
        let held = || {
            let (file, origin) = hold()?;
            let held = identity(file.as_fd())?;
            Ok((file, held, origin))
        };
        let (file, held, origin) =
            held().map_err(|error: io::Error| format!("its image cannot be held: {error}"))?;
        let release = Release {
            generation: 0,
            build: config.build.clone(),
            schema: None,
            argv: snapshot.argv.iter().cloned().map(Text::from).collect(),
            env: snapshot.env.iter().cloned().map(pair).collect(),
            cwd: snapshot.cwd.clone().map(|cwd| cwd.into_os_string().into()),
            held,
            origin,
        };
        let file = Arc::new(file);
        Ok(Self { file, release })
    }

    #[cfg(test)]
    pub(super) fn of_file(path: &Path, snapshot: &Snapshot) -> Self {
        let file: OwnedFd = File::open(path).unwrap().into();
        let held = identity(file.as_fd()).unwrap();
        let open = || Ok((file, held));
        Self::of_this_process(snapshot, &Config::default(), open).unwrap()
    }

    /// By O_PATH, which needs no permission to read the file (open(2)).
    fn descriptor() -> io::Result<(OwnedFd, Identity)> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_PATH);
        let file: OwnedFd = options.open(OWN_FILE)?.into();
        let origin = identity(file.as_fd())?;
        Ok((file, origin))
    }

    /// One that was started from such a copy needs no other.
    fn copy() -> io::Result<(OwnedFd, Identity)> {
        let mut file = File::open(OWN_FILE)?;
        let origin = identity(file.as_fd())?;
        if memory::is_sealed(file.as_fd()) {
            return Ok((file.into(), origin));
        }
        Ok((
            memory::sealed_program(c"handover-image", &mut file)?,
            origin,
        ))
    }

    pub(crate) fn release(&self) -> &Release {
        &self.release
    }

    /// Where exec(2) finds it in this process and in one that is being started by it.
    pub(super) fn path(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.file.as_raw_fd().to_string())
    }

    /// As the generation that ran it was started, with what the service manager tells the service by now.
    pub(super) fn snapshot(&self, current: &Snapshot) -> Snapshot {
        Snapshot {
            argv: self
                .release
                .argv
                .iter()
                .cloned()
                .map(OsString::from)
                .collect(),
            env: self.release.env.iter().cloned().map(pair).collect(),
            cwd: self
                .release
                .cwd
                .clone()
                .map(|cwd| OsString::from(cwd).into()),
            service_manager: current.service_manager.clone(),
            ..Snapshot::default()
        }
    }

    /// Whether it can be started: an error, in words, if its bytes are others by now.
    pub(super) fn check(&self) -> Result<(), String> {
        let Release {
            generation, held, ..
        } = self.release;
        let who = match generation {
            // Nobody has asked this process for its number yet.
            0 => "this generation".to_owned(),
            generation => format!("generation {generation}"),
        };
        match identity(self.file.as_fd()) {
            Ok(now) if now == held => Ok(()),
            Ok(_) => Err(format!(
                "the image of {who} has been overwritten in place since"
            )),
            Err(error) => Err(format!("the image of {who}: {error}")),
        }
    }

    /// A process that was started from a copy runs another file than the one that was copied, and is that release still.
    fn recognise(&mut self, other: Option<&Self>) {
        let Some(other) = other else { return };
        if other.release.held == self.release.origin {
            self.release.origin = other.release.origin;
        }
    }

    fn is_same_release(&self, other: &Self) -> bool {
        self.release.origin == other.release.origin
    }
}

fn pair<T, U: From<T>>((name, value): (T, T)) -> (U, U) {
    (name.into(), value.into())
}

pub(crate) fn identity(file: BorrowedFd<'_>) -> io::Result<Identity> {
    let found = fstat(file)?;
    Ok(Identity {
        device: found.st_dev,
        inode: found.st_ino,
        size: found.st_size,
        written: (found.st_mtime, found.st_mtime_nsec),
    })
}

fn slot_of(name: &str) -> Slot {
    Slot {
        name: name.to_owned(),
        kind: SlotKind::Descriptor,
        inode: None,
        keeper: None,
    }
}

/// The file that this process runs (proc_pid_exe(5)).
const OWN_FILE: &str = "/proc/self/exe";

const NO_RELEASE_BEFORE: &str = "no other release has been the incumbent before this one";

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_is_held_through_a_rename_over_it_and_refused_once_it_is_overwritten() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("app");
        fs::write(&path, "one").unwrap();
        let image = image_of(&path, 1);
        fs::write(room.path().join("next"), "two").unwrap();
        fs::rename(room.path().join("next"), &path).unwrap();
        assert_eq!(image.check(), Ok(()));
        assert_eq!(fs::read(image.path()).unwrap(), b"one");

        let image = image_of(&path, 2);
        let mut overwritten = OpenOptions::new().write(true).open(&path).unwrap();
        overwritten.write_all(b"owt").unwrap();
        drop(overwritten);
        let refused = image.check().unwrap_err();
        assert!(
            refused.contains("generation 2 has been overwritten"),
            "{refused}"
        );
    }

    #[test]
    fn a_copy_is_the_release_that_it_was_made_of() {
        let config = Config {
            image: Wanted::Copy,
            ..Config::default()
        };
        let snapshot = Snapshot::default();
        let copied = Images::hold(&snapshot, &config).own.unwrap();
        assert!(memory::is_sealed(copied.file.as_fd()));
        let held = Images::hold(&snapshot, &Config::default()).own.unwrap();
        assert!(copied.is_same_release(&held));
        assert_ne!(copied.release.held, held.release.held);
        assert_eq!(copied.check(), Ok(()));

        // What a process that was started from the copy sees of itself.
        let mut again = image_of(&copied.path(), 3);
        assert!(!again.is_same_release(&held));
        again.recognise(Some(&copied));
        assert!(again.is_same_release(&held));
    }

    #[test]
    fn the_way_back_leads_to_the_last_other_release_over_any_number_of_generations() {
        let room = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| {
            fs::write(room.path().join(name), name).unwrap();
            room.path().join(name)
        });
        let mut images = running(&a, 1);
        assert_eq!(images.before().unwrap_err(), NO_RELEASE_BEFORE);
        for (generation, program, back) in [
            (2, &a, None),
            (3, &b, Some(2)),
            (4, &b, Some(2)),
            // Back to the first one, and from there forward again.
            (5, &a, Some(4)),
            (6, &b, Some(5)),
        ] {
            images = succeeded(&images, generation - 1, running(program, generation));
            let found = images.before().ok().map(|image| image.release().generation);
            assert_eq!(found, back, "generation {generation}");
        }
    }

    #[test]
    fn what_is_passed_is_all_that_a_start_needs_and_need_not_be_text() {
        let config = Config {
            build: "a1b2".into(),
            ..Config::default()
        };
        let snapshot = Snapshot {
            argv: vec!["app".into(), not_text()],
            env: vec![("A".into(), not_text())],
            cwd: Some("/srv".into()),
            ..Snapshot::default()
        };
        let incumbent = Images::hold(&snapshot, &config);
        let room = tempfile::tempdir().unwrap();
        fs::write(room.path().join("b"), "b").unwrap();
        let next = succeeded(&incumbent, 7, running(&room.path().join("b"), 8));
        let back = next.before().unwrap();
        let manager: Vec<(OsString, OsString)> = vec![("NOTIFY_SOCKET".into(), "@n".into())];
        let started = back.snapshot(&Snapshot {
            env: vec![("B".into(), "2".into())],
            service_manager: manager.clone(),
            ..Snapshot::default()
        });
        assert_eq!((started.argv, started.env), (snapshot.argv, snapshot.env));
        assert_eq!(
            (started.cwd, started.service_manager),
            (snapshot.cwd, manager)
        );
        assert_eq!(
            (back.release().generation, &*back.release().build),
            (7, "a1b2")
        );
    }

    #[test]
    fn who_holds_nothing_passes_nothing_and_its_successor_says_so() {
        let config = Config {
            image: Wanted::Nothing,
            ..Config::default()
        };
        let nothing = Images::hold(&Snapshot::default(), &config);
        assert!(nothing.offer(1, None).unwrap().is_empty());
        let next = succeeded(
            &nothing,
            1,
            Images::hold(&Snapshot::default(), &Config::default()),
        );
        assert!(next.before().unwrap_err().contains("has not passed"));
    }

    #[test]
    fn a_cold_rollback_is_told_to_the_one_that_it_starts() {
        let rollback = ColdRollback {
            to: 3,
            reason: "slow".into(),
        };
        let mut offered = State::default();
        for (slot, file) in Images::default().offer(4, Some(&rollback)).unwrap() {
            offered.insert(slot, file.try_clone().unwrap());
        }
        assert_eq!(Images::default().inherit(&mut offered), Some(rollback));
        assert_eq!(offered.names().count(), 0);
    }

    #[test]
    fn what_another_build_has_passed_and_nobody_understands_is_nothing() {
        let mut offered = State::default();
        let (slot, blob) = state::own_blob(SLOT_ABOUT, b"[]").unwrap();
        offered.insert(slot, blob);
        let mut images = Images::default();
        assert_eq!(images.inherit(&mut offered), None);
        assert!(images.before().is_err());
    }

    fn not_text() -> OsString {
        OsString::from_vec(vec![0xff, b'a'])
    }

    fn image_of(path: &Path, generation: u64) -> Image {
        let mut image = Image::of_file(path, &Snapshot::default());
        image.release.generation = generation;
        image
    }

    fn running(path: &Path, generation: u64) -> Images {
        Images {
            own: Ok(image_of(path, generation)),
            ..Images::default()
        }
    }

    /// What a successor has once the incumbent has offered it what it holds.
    fn succeeded(incumbent: &Images, generation: u64, mut successor: Images) -> Images {
        let mut offered = State::default();
        for (slot, file) in incumbent.offer(generation, None).unwrap() {
            let file = file.try_clone().unwrap();
            assert!(offered.insert(slot, file).is_none());
        }
        assert_eq!(successor.inherit(&mut offered), None);
        assert_eq!(offered.names().count(), 0);
        successor
    }
}
