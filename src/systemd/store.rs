//! What the service manager keeps for the next start of the service, should this one crash or be restarted.
//!
//! The manager does not say whether it keeps a descriptor: it closes at once what it has no room for
//! (`FileDescriptorStoreMax=`), and only systemd 254 and later say in `FDSTORE` how much room there is in all. So the
//! room is measured, by storing the writing ends of pipes: one whose reading end is at its end was not kept.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::names;
use super::notify::{Manager, Notice};
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::message::{Keeper, Slot, SlotKind};
use crate::sys::environment::Snapshot;

/// What has to change so that the manager keeps what it should.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Names that it is to let go of, before it gets anything new.
    pub(crate) forget: Vec<String>,
    /// Names that it has and is to keep.
    pub(crate) keep: Vec<String>,
    /// Names that it is to get.
    pub(crate) store: Vec<String>,
}

/// One descriptor for the store.
#[derive(Debug)]
pub(crate) struct Deposit {
    pub(crate) name: String,
    pub(crate) kind: SlotKind,
    pub(crate) descriptor: OwnedFd,
}

/// What became of deposits.
#[derive(Debug, Default)]
pub(crate) struct Deposited {
    /// The names of those that the manager keeps.
    pub(crate) kept: Vec<String>,
    /// Which it does not keep and why, in words.
    pub(crate) problem: Option<String>,
}

impl Plan {
    /// What to do about these sockets, if those of the names in `stored` are in the store. A unit keeps its own.
    pub(crate) fn new<'a>(stored: &[String], sockets: impl IntoIterator<Item = &'a Slot>) -> Self {
        let mut plan = Self::default();
        let mut stale: BTreeSet<&String> = stored.iter().collect();
        for slot in sockets {
            match slot.keeper {
                Some(Keeper::Unit) => {}
                // Taken back under another name, it is stored again under that one.
                Some(Keeper::Store | Keeper::Unknown) if stale.remove(&slot.name) => {
                    plan.keep.push(slot.name.clone());
                }
                _ => plan.store.push(slot.name.clone()),
            }
        }
        plan.forget = stale.into_iter().cloned().collect();
        plan
    }
}

/// Has the manager let go of sockets by their names.
pub(crate) fn forget_sockets(manager: &Manager, names: &[String]) {
    let stored = names.iter().filter_map(|name| names::socket(name));
    stored.for_each(|stored| manager.tell(Notice::new().forget(&stored)));
}

/// As [`forget_sockets`]; resolves once the manager has let go of them.
///
/// # Errors
///
/// As [`Manager::barrier`]: then it may have them still.
pub(crate) async fn let_go(manager: &Manager, names: &[String]) -> Result<()> {
    forget_sockets(manager, names);
    manager.barrier().await
}

/// Has the manager let go of blobs of state by their names.
pub(crate) fn forget_state(manager: &Manager, names: &[String]) {
    let stored = names.iter().filter_map(|name| names::blob(name));
    stored.for_each(|stored| manager.tell(Notice::new().forget(&stored)));
}

/// Stores what there is room for, the first ones first, and says what is not kept.
///
/// Nothing is stored if the manager does not say whether there is room, within
/// [`NOTIFY_DEADLINE`](crate::config::NOTIFY_DEADLINE): what it keeps must be known at a stop.
///
/// Not cancel safe: what was measured stays taken until the manager sees that its other end is gone.
pub(crate) fn deposit(
    manager: &Manager,
    deposits: Vec<Deposit>,
    room_max: Option<usize>,
) -> impl Future<Output = Deposited> + Send + use<> {
    let manager = manager.clone();
    async move {
        let _alone = manager.alone_with_the_store().await;
        let mut deposited = Deposited::default();
        let (mut named, unnamed) = named(deposits);
        let mut refused = Vec::new();
        if !named.is_empty() {
            match room(&manager, named.len()).await {
                Ok(room) => refused.extend(named.drain(room.min(named.len())..)),
                Err(error) => {
                    deposited.problem =
                        Some(format!("nothing is kept for the next start: {error:?}"));
                    return deposited;
                }
            }
        }
        for (stored_as, deposit) in named {
            manager.tell(Notice::new().store(&stored_as, deposit.descriptor));
            deposited.kept.push(deposit.name);
        }
        let refused: Vec<String> = refused
            .into_iter()
            .map(|(_, deposit)| deposit.name)
            .collect();
        deposited.problem = problem(&refused, &unnamed, room_max);
        deposited
    }
}

/// How much the manager keeps in all, if it says so (systemd 254 and later).
pub(crate) fn room_max(snapshot: &Snapshot) -> Option<usize> {
    snapshot.var("FDSTORE")?.to_str()?.parse().ok()
}

/// Finds out whether there is room for so many more.
async fn room(manager: &Manager, wanted: usize) -> Result<usize> {
    let failed =
        |error| Error::new(ErrorKind::Io, "measuring the service manager's store").because(error);
    let mut readers = Vec::new();
    for _ in 0..wanted {
        let (reader, writer) = io::pipe().map_err(failed)?;
        manager.tell(Notice::new().lend(names::PROBE, writer.into()));
        readers.push(reader);
    }
    let read = manager.barrier().await;
    manager.tell(Notice::new().forget(names::PROBE));
    read?;
    let is_kept = |reader: &io::PipeReader| is_open(reader).map_err(failed);
    let kept: Vec<bool> = readers.iter().map(is_kept).collect::<Result<_>>()?;
    Ok(kept.into_iter().filter(|kept| *kept).count())
}

/// Whether somebody has the other end of the pipe, who has written nothing.
fn is_open(reader: &io::PipeReader) -> io::Result<bool> {
    let mut polled = [PollFd::new(reader.as_fd(), PollFlags::empty())];
    Ok(poll(&mut polled, PollTimeout::ZERO)? == 0)
}

/// Each with the name that it is stored under, and the names of those that have none.
fn named(deposits: Vec<Deposit>) -> (Vec<(String, Deposit)>, Vec<String>) {
    let (mut named, mut unnamed) = (Vec::new(), Vec::new());
    for deposit in deposits {
        let stored_as = match deposit.kind {
            SlotKind::Blob => names::blob(&deposit.name),
            _ => names::socket(&deposit.name),
        };
        match stored_as {
            Some(stored_as) => named.push((stored_as, deposit)),
            None => unnamed.push(deposit.name),
        }
    }
    (named, unnamed)
}

fn problem(refused: &[String], unnamed: &[String], room_max: Option<usize>) -> Option<String> {
    let mut problems = Vec::new();
    if !refused.is_empty() {
        let room = match room_max {
            Some(room) => format!("FileDescriptorStoreMax={room}"),
            None => {
                "FileDescriptorStoreMax=, or it does not listen to this process (NotifyAccess=)"
                    .to_owned()
            }
        };
        problems.push(format!(
            "the service manager has no room to keep {refused:?} for the next start: {room}"
        ));
    }
    if !unnamed.is_empty() {
        problems.push(format!(
            "the service manager cannot keep {unnamed:?} for the next start: the names are too long for it"
        ));
    }
    (!problems.is_empty()).then(|| problems.join("; "))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::super::testing::{FakeManager, Store, within};
    use super::*;
    use crate::config::NOTIFY_DEADLINE;
    use crate::sys::descriptors;

    fn slot(name: &str, keeper: Option<Keeper>) -> Slot {
        Slot {
            name: name.into(),
            kind: SlotKind::Tcp,
            inode: None,
            keeper,
        }
    }

    fn plan(stored: &[&str], sockets: &[Slot]) -> Plan {
        let stored: Vec<String> = stored.iter().map(ToString::to_string).collect();
        Plan::new(&stored, sockets)
    }

    fn deposits(names: &[&str]) -> Vec<Deposit> {
        let deposit = |name: &&str| Deposit {
            name: name.to_string(),
            kind: SlotKind::Tcp,
            descriptor: io::pipe().unwrap().0.into(),
        };
        names.iter().map(deposit).collect()
    }

    #[test]
    fn a_plan_forgets_what_nobody_has_keeps_what_came_back_and_stores_what_is_new() {
        let sockets = [
            slot("unit", Some(Keeper::Unit)),
            slot("back", Some(Keeper::Store)),
            slot("new", None),
            slot("renamed", Some(Keeper::Store)),
            slot("moved", None),
        ];
        let plan = plan(&["back", "moved", "gone", "former"], &sockets);
        assert_eq!(plan.keep, ["back"]);
        assert_eq!(plan.store, ["new", "renamed", "moved"]);
        assert_eq!(plan.forget, ["former", "gone", "moved"]);
    }

    #[test]
    fn a_plan_that_was_carried_out_is_an_empty_one_the_next_time() {
        let sockets = ["a", "b"].map(|name| slot(name, Some(Keeper::Store)));
        let again = plan(&["a", "b"], &sockets);
        assert!(again.forget.is_empty() && again.store.is_empty());
        assert_eq!(again.keep, ["a", "b"]);
    }

    #[tokio::test]
    async fn what_there_is_room_for_is_kept_and_the_rest_is_named() {
        for room in 0..4 {
            let fake = FakeManager::at_path();
            let (manager, mut problems) = fake.connected();
            let store = Store::behind(fake, room);
            let names = ["a", "b", "c"];
            let deposited = within(deposit(&manager, deposits(&names), None)).await;
            within(manager.barrier()).await.unwrap();
            let (kept, refused) = names.split_at(room.min(3));
            assert_eq!(deposited.kept, kept);
            let stored_as = kept.iter().map(|name| format!("handover.socket.{name}"));
            assert_eq!(store.names(), stored_as.collect::<Vec<_>>());
            match deposited.problem {
                Some(problem) => assert!(problem.contains(&format!("{refused:?}")), "{problem}"),
                None => assert!(refused.is_empty()),
            }
            assert!(problems.try_recv().is_err());
        }
    }

    #[tokio::test]
    async fn what_is_in_the_store_already_takes_room() {
        let fake = FakeManager::at_path();
        let (manager, _problems) = fake.connected();
        let store = Store::behind(fake, 2);
        let first = within(deposit(&manager, deposits(&["a"]), Some(2))).await;
        assert!(first.problem.is_none());
        let second = within(deposit(&manager, deposits(&["b", "c"]), Some(2))).await;
        assert_eq!(second.kept, ["b"]);
        let problem = second.problem.unwrap();
        assert!(
            problem.contains("[\"c\"]") && problem.contains("StoreMax=2"),
            "{problem}"
        );
        forget_sockets(&manager, &["a".into()]);
        let third = within(deposit(&manager, deposits(&["c"]), Some(2))).await;
        assert_eq!(third.kept, ["c"]);
        within(manager.barrier()).await.unwrap();
        assert_eq!(store.names(), ["handover.socket.b", "handover.socket.c"]);
    }

    /// As a generation does that keeps its sockets and some state as soon as it serves.
    #[tokio::test]
    async fn deposits_at_the_same_time_do_not_measure_each_other() {
        let fake = FakeManager::at_path();
        let (manager, _problems) = fake.connected();
        let _store = Store::behind(fake, 3);
        let mut one = pin!(deposit(&manager, deposits(&["a"]), None));
        let mut context = Context::from_waker(Waker::noop());
        assert!(one.as_mut().poll(&mut context).is_pending());
        // The other one is done with its probes before the first one looks at its own.
        let other = tokio::spawn(deposit(&manager, deposits(&["b", "c"]), None));
        for _ in 0..3 {
            within(manager.barrier()).await.unwrap();
        }
        let (one, other) = (within(one).await, within(other).await.unwrap());
        assert_eq!((one.problem, other.problem), (None, None));
        assert_eq!((one.kept.len(), other.kept.len()), (1, 2));
    }

    #[tokio::test]
    async fn state_is_stored_apart_from_sockets_and_forgotten_by_its_name() {
        let fake = FakeManager::at_path();
        let (manager, _problems) = fake.connected();
        let store = Store::behind(fake, 9);
        let mut both = deposits(&["web"]);
        both.push(Deposit {
            kind: SlotKind::Blob,
            ..deposits(&["web"]).remove(0)
        });
        assert_eq!(
            within(deposit(&manager, both, None)).await.kept,
            ["web", "web"]
        );
        forget_state(&manager, &["web".into()]);
        within(manager.barrier()).await.unwrap();
        assert_eq!(store.names(), ["handover.socket.web"]);
    }

    #[tokio::test]
    async fn a_name_that_the_manager_cannot_write_is_a_problem_of_its_own() {
        let fake = FakeManager::at_path();
        let (manager, _problems) = fake.connected();
        let _store = Store::behind(fake, 9);
        let long = "ü".repeat(100);
        let deposited = within(deposit(&manager, deposits(&[&long, "a:b"]), None)).await;
        assert_eq!(deposited.kept, ["a:b"]);
        assert!(deposited.problem.unwrap().contains(&long));
    }

    #[tokio::test(start_paused = true)]
    async fn a_manager_that_says_nothing_keeps_nothing_and_the_deadline_holds() {
        let mut fake = FakeManager::at_path();
        let (manager, _problems) = fake.connected();
        let begun = tokio::time::Instant::now();
        let deposited = deposit(&manager, deposits(&["a"]), None).await;
        assert_eq!(begun.elapsed(), NOTIFY_DEADLINE);
        assert!(deposited.kept.is_empty());
        assert!(deposited.problem.unwrap().contains("5s"));
        let told = [
            fake.next().await.0,
            fake.next().await.0,
            fake.next().await.0,
        ];
        assert_eq!(told[0], "FDSTORE=1\nFDNAME=handover.probe\n");
        assert_eq!(told[1], "BARRIER=1\n");
        assert_eq!(told[2], "FDSTOREREMOVE=1\nFDNAME=handover.probe\n");
    }

    #[tokio::test]
    async fn a_stored_socket_is_the_very_one_and_our_copy_is_closed() {
        let fake = FakeManager::at_path();
        let (manager, _problems) = fake.connected();
        let store = Store::behind(fake, 1);
        let null = File::open("/dev/null").unwrap();
        let inode = descriptors::inode(null.as_fd()).unwrap();
        let it = Deposit {
            name: "it".into(),
            kind: SlotKind::Descriptor,
            descriptor: null.into(),
        };
        within(deposit(&manager, vec![it], None)).await;
        within(manager.barrier()).await.unwrap();
        assert_eq!(store.inodes(), [inode]);
    }

    #[test]
    fn the_room_is_what_the_manager_says_and_garbage_says_nothing() {
        for (value, room) in [("4", Some(4)), ("", None), ("-1", None), ("many", None)] {
            let snapshot = Snapshot {
                env: vec![("FDSTORE".into(), value.into())],
                ..Snapshot::default()
            };
            assert_eq!(room_max(&snapshot), room);
        }
        assert_eq!(room_max(&Snapshot::default()), None);
    }
}
