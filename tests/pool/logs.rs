//! Lines of workers that say whose they are, whoever dies.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use handover_load::process::{children, descriptors, eventually, is_alive, signal, wait_gone};
use handover_load::{Load, Signal};
use tempfile::TempDir;

use crate::first::{FIRST, can_unshare};
use crate::rig::{Pool, QUICK, mix};
use crate::support::{DEADLINE, assert_no_failure, free_address, more_answers};

pub(crate) const PREFIXED: [&str; 2] = ["--logs", "prefixed"];
/// The writer's two streams.
const STREAMS: [&str; 2] = ["out", "err"];

fn flags(more: &[&str]) -> Vec<String> {
    let all = QUICK.iter().chain(&PREFIXED).chain(more);
    all.map(|flag| (*flag).to_owned()).collect()
}

/// Testds, each with a writer beside it that ends when it does.
async fn serving(workers: usize, more: &[&str]) -> Pool {
    let room = tempfile::tempdir().unwrap();
    // A testd that wrote to the same pipes would write into the midst of lines.
    let script = format!(
        "python3 {} & exec >writer.py.log 2>&1",
        writer(&room).display()
    );
    let flags = flags(more);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    Pool::start_in(room, &script, workers, &flags).await
}

/// Nothing but these workers, under whatever starts the supervisor.
fn of(prefix: &[&str], room: TempDir, workers: usize, more: &[&str], program: &[&str]) -> Pool {
    let flags = flags(&[&["--ready", "50ms"], more].concat());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    Pool::under(prefix, room, free_address(), workers, &flags, program)
}

fn writer(room: &TempDir) -> PathBuf {
    let path = room.path().join("writer.py");
    fs::write(&path, WRITER).unwrap();
    path
}

/// What writers have said, as the log has it.
#[derive(Debug, Default)]
struct Told {
    /// For each worker and stream: the numbers of its whole lines, in their order.
    lines: BTreeMap<(u64, String), Vec<u64>>,
    /// How many it has written in the end, as far as it has said so.
    ends: BTreeMap<(u64, String), u64>,
    /// Lines behind a prefix that are no whole lines of a writer.
    torn: Vec<String>,
}

impl Told {
    fn by(pool: &Pool) -> Self {
        Self::of(&pool.server.log())
    }

    fn of(log: &str) -> Self {
        let mut told = Self::default();
        for line in log.lines() {
            match of_worker(line) {
                Some((worker, _, text)) if told.add(worker, text).is_none() => {
                    told.torn.push(line.to_owned());
                }
                Some(_) => {}
                None => assert!(!line.contains("xxx"), "whose is this: {line}"),
            }
        }
        told
    }

    /// None if it is not what a writer writes.
    fn add(&mut self, worker: u64, text: &str) -> Option<()> {
        let mut words = text.split(' ');
        let stream = words.next().filter(|it| STREAMS.contains(it))?.to_owned();
        match (words.next()?, words.next()?, words.next()) {
            ("end", count, None) => drop(self.ends.insert((worker, stream), count.parse().ok()?)),
            (number, filler, None) => {
                let number: u64 = number.parse().ok()?;
                let wanted = FILLERS[number as usize % FILLERS.len()];
                if filler.len() != wanted + 1 || filler != format!("{}.", "x".repeat(wanted)) {
                    return None;
                }
                self.lines.entry((worker, stream)).or_default().push(number);
            }
            _ => return None,
        }
        Some(())
    }

    fn workers(&self) -> BTreeSet<u64> {
        self.lines.keys().map(|(worker, _)| *worker).collect()
    }

    /// Every line of everybody who has written one, to the end.
    fn assert_whole(&self) {
        assert_eq!(self.torn, [""; 0]);
        for (whose, numbers) in &self.lines {
            let all: Vec<u64> = (1..=numbers.len() as u64).collect();
            assert_eq!(*numbers, all, "{whose:?}");
            assert_eq!(self.ends.get(whose), Some(&(all.len() as u64)), "{whose:?}");
        }
    }
}

/// Worker, release and text.
fn of_worker(line: &str) -> Option<(u64, u64, &str)> {
    let (worker, rest) = line.strip_prefix("worker ")?.split_once(" release ")?;
    let (release, text) = rest.split_once(" | ")?;
    Some((worker.parse().ok()?, release.parse().ok()?, text))
}

/// More lines of each of these streams than there are by now.
async fn more_lines(pool: &Pool, workers: impl IntoIterator<Item = u64>) {
    for worker in workers {
        for stream in STREAMS {
            let count = |told: &Told| {
                told.lines
                    .get(&(worker, stream.to_owned()))
                    .map_or(0, Vec::len)
            };
            let before = count(&Told::by(pool));
            let has_more = || count(&Told::by(pool)) > before;
            eventually("more lines", has_more, true, DEADLINE)
                .await
                .unwrap();
        }
    }
}

/// None is 0.
pub(crate) fn relay(supervisor: u32) -> u32 {
    let mut relays = children(supervisor).into_iter().filter(|child| {
        let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
        name == "handover-logs\n" && is_alive(*child)
    });
    let relay = relays.next().unwrap_or(0);
    assert!(relays.next().is_none(), "two relays");
    relay
}

#[tokio::test]
async fn no_line_of_four_workers_is_torn_or_lost_over_updates_and_upgrades_of_the_supervisor() {
    let pool = serving(4, &[]).await;
    let load = Load::start(pool.web, mix());
    load.until_answers(1, 100, DEADLINE).await.unwrap();
    more_lines(&pool, 1..=4).await;
    let by = relay(pool.server.pid());
    for round in 1..=3 {
        let (code, reply) = pool.json(&["upgrade"]).await;
        assert_eq!(code, 0, "{reply}");
        pool.run(&["upgrade", "--supervisor"]).await.assert_code(0);
        more_lines(&pool, 4 * round + 1..=4 * round + 4).await;
    }
    assert_eq!(relay(pool.server.pid()), by);
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
    pool.run(&["stop"]).await.assert_code(0);
    pool.server.wait_all_gone(DEADLINE).await.unwrap();
    let told = Told::by(&pool);
    assert_eq!(told.workers(), (1..=16).collect());
    told.assert_whole();
    for line in pool.server.log().lines() {
        if let Some((worker, release, _)) = of_worker(line) {
            assert_eq!(release, (worker - 1) / 4 + 1, "{line}");
        }
    }
}

#[tokio::test]
async fn what_a_killed_worker_had_written_is_there() {
    let room = tempfile::tempdir().unwrap();
    let (writer, counts) = (writer(&room), room.path().join("wrote-"));
    let program = [
        "python3",
        writer.to_str().unwrap(),
        counts.to_str().unwrap(),
    ];
    let pool = of(&[], room, 2, &["--backoff-max", "50ms"], &program);
    pool.until_ready(2).await;
    for round in 1..=3 {
        more_lines(&pool, [round]).await;
        let workers = pool.pool().await.workers;
        let killed = workers
            .iter()
            .find(|worker| worker.worker == round)
            .unwrap()
            .pid;
        let kept = pool.file(&format!("wrote-{killed}"));
        let wrote = || -> u64 { fs::read_to_string(&kept).unwrap().trim().parse().unwrap() };
        // Much of it is to be read only when its writer is long gone.
        let by = relay(pool.server.pid());
        signal(by, Signal::STOP).unwrap();
        let before = wrote();
        let has_written = || wrote() > before + 30;
        eventually("more of it", has_written, true, DEADLINE)
            .await
            .unwrap();
        signal(killed, Signal::KILL).unwrap();
        pool.line(&format!("pid {killed}) ended")).await;
        signal(by, Signal::CONT).unwrap();
        let wrote = wrote();
        for stream in STREAMS {
            let whose = (round, stream.to_owned());
            let last = || Told::by(&pool).lines[&whose].last().copied() >= Some(wrote);
            eventually("the last line", last, true, DEADLINE)
                .await
                .unwrap();
            let numbers = Told::by(&pool).lines[&whose].clone();
            let all: Vec<u64> = (1..=numbers.len() as u64).collect();
            assert_eq!(numbers, all);
        }
        pool.until_rests_on(1, 2).await;
    }
}

#[tokio::test]
async fn workers_of_a_killed_supervisor_serve_on_and_all_of_their_lines_come_to_the_last() {
    let pool = serving(2, &[]).await;
    let load = Load::start(pool.web, mix());
    load.until_answers(1, 50, DEADLINE).await.unwrap();
    more_lines(&pool, 1..=2).await;
    let (supervisor, by) = (pool.server.pid(), relay(pool.server.pid()));
    signal(supervisor, Signal::KILL).unwrap();
    wait_gone(supervisor, DEADLINE).await.unwrap();
    more_lines(&pool, 1..=2).await;
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
    // Everybody is told to leave, as a service manager does: the relay too, which has others to hear out.
    let live = pool.server.live();
    assert!(live.contains(&by));
    for pid in live {
        // A writer's shell may be gone.
        let _ = signal(pid, Signal::TERM);
    }
    pool.server.wait_all_gone(DEADLINE).await.unwrap();
    wait_gone(by, DEADLINE).await.unwrap();
    let told = Told::by(&pool);
    assert_eq!(told.workers(), BTreeSet::from([1, 2]));
    told.assert_whole();
}

#[tokio::test]
async fn a_relay_that_is_killed_is_followed_by_another_and_loses_no_more_than_it_had_read() {
    const KILLED: usize = 4;
    let pool = serving(3, &[]).await;
    let load = Load::start(pool.web, mix());
    load.until_answers(1, 50, DEADLINE).await.unwrap();
    let before = pool.pids().await;
    let supervisor = pool.server.pid();
    let mut killed = BTreeSet::new();
    for _ in 0..KILLED {
        more_lines(&pool, 1..=3).await;
        let by = relay(supervisor);
        assert!(killed.insert(by), "{by} twice");
        signal(by, Signal::KILL).unwrap();
        let is_another = || ![0, by].contains(&relay(supervisor));
        eventually("another relay", is_another, true, DEADLINE)
            .await
            .unwrap();
    }
    more_lines(&pool, 1..=3).await;
    pool.line("the relay of the workers' lines has died (signal: 9 (SIGKILL))")
        .await;
    assert_eq!(pool.pids().await, before);
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
    pool.run(&["stop"]).await.assert_code(0);
    pool.server.wait_all_gone(DEADLINE).await.unwrap();
    let told = Told::by(&pool);
    // The rest of a line of which the killed one had read the beginning.
    assert!(told.torn.len() <= 6 * KILLED, "{:?}", told.torn);
    for (whose, numbers) in &told.lines {
        assert!(
            numbers.is_sorted_by(|one, next| one < next),
            "{whose:?} twice"
        );
        let gaps = numbers
            .windows(2)
            .filter(|pair| pair[1] != pair[0] + 1)
            .count();
        assert!(gaps <= KILLED, "{whose:?}: {gaps} gaps");
        assert!(told.ends.contains_key(whose), "{whose:?}");
    }
}

#[tokio::test]
async fn a_failed_candidate_s_last_words_explain_why_the_update_was_undone() {
    let more = ["--healthy-deadline", "1s", "--logs-within", "500ms"];
    let pool = serving(2, &more).await;
    let crash =
        "for n in $(seq 60); do echo line $n >&2; done; printf 'no such database' >&2; exit 7";
    // One that has left a helper behind, which keeps its standard error, is not waited for without end.
    let helper = format!("setsid sleep 1000 & {crash}");
    let hang =
        "echo waits for the migration >&2; echo before-ready=hang >bad; export TESTD_PLAN=bad";
    for (script, words, lines) in [
        (crash, "no such database", 40),
        (&helper, "no such database", 40),
        (hang, "waits for the migration\n", 2),
    ] {
        pool.release(script);
        let (code, reply) = pool.json(&["upgrade"]).await;
        assert_eq!(code, 3, "{reply}");
        let said = reply["upgrade"]["last_words"].as_str().unwrap();
        assert!(said.contains(words), "{reply}");
        assert_eq!(said.lines().count(), lines, "{reply}");
        let explained = pool.run(&["explain"]).await;
        explained.assert_says(&["last words", words.trim()]);
    }
    // They are not the next one's.
    pool.release("");
    let (code, reply) = pool.json(&["upgrade"]).await;
    assert_eq!(
        (code, &reply["upgrade"]["last_words"]),
        (0, &serde_json::Value::Null),
        "{reply}"
    );
}

#[tokio::test]
async fn plain_lines_are_as_they_were_written_and_there_are_no_last_words() {
    let pool = Pool::start(1, &[&QUICK[..], &["--logs", "plain"]].concat()).await;
    assert_eq!(relay(pool.server.pid()), 0);
    pool.release("echo no such database >&2; exit 7");
    let (code, reply) = pool.json(&["upgrade"]).await;
    assert_eq!(
        (code, &reply["upgrade"]["last_words"]),
        (3, &serde_json::Value::Null),
        "{reply}"
    );
    assert!(
        pool.server
            .log()
            .lines()
            .any(|line| line == "no such database")
    );
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_its_writers_and_neither_the_supervisor_nor_the_other_stream()
{
    for unread in ["1<>\"$0\"", "1<>\"$0\" 2>&1"] {
        goes_on_with(unread).await;
    }
}

/// The standard output that nobody reads, or both.
async fn goes_on_with(unread: &str) {
    let is_other_read = !unread.contains("2>&1");
    let room = tempfile::tempdir().unwrap();
    let (fifo, full) = (room.path().join("fifo"), room.path().join("full-"));
    let unread = format!("mkfifo \"$0\" && exec \"$@\" {unread}");
    let under = ["sh", "-c", &unread, fifo.to_str().unwrap()];
    let program = ["python3", "-c", FLOOD, full.to_str().unwrap()];
    let mut pool = of(&under, room, 2, &["--logs-within", "200ms"], &program);
    let control = pool.file("control.sock");
    let answers = || UnixStream::connect(&control).is_ok();
    eventually("a control socket", answers, true, DEADLINE)
        .await
        .unwrap();
    for release in 1..=2 {
        pool.until_rests_on(release, 2).await;
        for worker in pool.pool().await.workers {
            let full = pool.file(&format!("full-{}", worker.pid));
            eventually("full", || full.exists(), true, DEADLINE)
                .await
                .unwrap();
            if is_other_read {
                let line = format!("worker {} release {release} | full", worker.worker);
                pool.line(&line).await;
            }
        }
        let status = pool.run(&["status"]).await;
        status.assert_says(&["2 of 2 ready"]);
        pool.run(&["upgrade", "--supervisor"]).await.assert_code(0);
        pool.run(&["upgrade"]).await.assert_code(0);
    }
    pool.run(&["stop"]).await.assert_code(0);
    let ended = pool.server.exit_status(DEADLINE).await.unwrap();
    assert_eq!(ended.code(), Some(0), "{}", pool.server.log());
}

#[tokio::test]
async fn workers_that_crash_behind_a_log_that_nobody_reads_cost_no_more_descriptors_each() {
    const CRASHES: u64 = 200;
    let room = tempfile::tempdir().unwrap();
    let fifo = room.path().join("fifo");
    let unread = "mkfifo \"$0\" && exec \"$@\" 1<>\"$0\"";
    let under = ["sh", "-c", unread, fifo.to_str().unwrap()];
    let script = "head -c 16000 /dev/zero | tr '\\0' x; exit 1";
    let more = ["--backoff-max", "1ms", "--logs-within", "200ms"];
    let pool = of(&under, room, 2, &more, &["sh", "-c", script]);
    pool.line(&format!("worker {CRASHES} (release 1, pid"))
        .await;
    let supervisor = pool.server.pid();
    // Three for each of 64 that wait, or the one that is not at its end, and some of its own.
    for (pid, each) in [(supervisor, 3), (relay(supervisor), 1)] {
        let open = descriptors(pid).unwrap().len();
        let most = 66 * each + 30;
        assert!((64..most).contains(&open), "{open}");
    }
    pool.run(&["stop", "--now"]).await.assert_code(0);
}

#[tokio::test]
async fn standard_output_goes_to_standard_output_and_standard_error_to_standard_error() {
    let room = tempfile::tempdir().unwrap();
    let file = room.path().join("out");
    let under = ["sh", "-c", "exec \"$@\" >\"$0\"", file.to_str().unwrap()];
    let script = "echo '<4>to out'; echo to err >&2; exec sleep 1000";
    let pool = of(&under, room, 1, &[], &["sh", "-c", script]);
    pool.until_ready(1).await;
    pool.line("worker 1 release 1 | to err").await;
    let out = || fs::read_to_string(pool.file("out")).unwrap();
    let wanted = "<4>worker 1 release 1 | to out\n".to_owned();
    eventually("standard output", out, wanted, DEADLINE)
        .await
        .unwrap();
    assert!(!pool.server.log().contains("to out"));
}

#[tokio::test]
async fn the_last_word_of_a_worker_is_heard_before_the_first_process_ends_with_its_code() {
    let prefixes = [&[][..], &FIRST].into_iter();
    for prefix in prefixes.take(1 + usize::from(can_unshare())) {
        let script = "trap 'printf bye; exit 7' TERM; while :; do sleep 0.05; done";
        let room = tempfile::tempdir().unwrap();
        let more = ["--logs-within", "20s"];
        let mut pool = of(prefix, room, 2, &more, &["sh", "-c", script]);
        pool.until_ready(2).await;
        let supervisor = match prefix {
            [] => pool.server.pid(),
            _ => children(pool.server.pid())[0],
        };
        // Neither a relay that was killed nor the one after it is taken for somebody's orphan.
        let by = relay(supervisor);
        signal(by, Signal::KILL).unwrap();
        pool.line("the relay of the workers' lines has died (signal: 9 (SIGKILL))")
            .await;
        let is_another = || ![0, by].contains(&relay(supervisor));
        eventually("another relay", is_another, true, DEADLINE)
            .await
            .unwrap();
        eventually("children", || children(supervisor).len(), 3, DEADLINE)
            .await
            .unwrap();
        // Whoever reads takes his time.
        let by = relay(supervisor);
        signal(by, Signal::STOP).unwrap();
        pool.run(&["stop"]).await.assert_code(0);
        let left = || children(supervisor);
        eventually("children", left, vec![by], DEADLINE)
            .await
            .unwrap();
        signal(by, Signal::CONT).unwrap();
        let ended = pool.server.exit_status(DEADLINE).await.unwrap();
        assert_eq!(ended.code(), Some(7), "{}", pool.server.log());
        for worker in [1, 2] {
            pool.line(&format!("worker {worker} release 1 | bye")).await;
        }
    }
}

/// How long the filler of each line is, by turns.
const FILLERS: [usize; 6] = [3, 7, 60, 400, 3_900, 4];

/// Numbered lines of all lengths, each in two writes, until it is told to stop, and then how many it were. What it has
/// written is kept in a file, if it is given the beginning of its name.
const WRITER: &str = "
import os, signal, sys, time
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
fillers = [3, 7, 60, 400, 3900, 4]
kept = len(sys.argv) > 1 and os.open(sys.argv[1] + str(os.getpid()), os.O_RDWR | os.O_CREAT, 0o600)
def put(to, text):
    while text:
        text = text[os.write(to, text):]
number = 0
while not stopped:
    number += 1
    for name, to in (('out', 1), ('err', 2)):
        line = ('%s %d %s.\\n' % (name, number, 'x' * fillers[number % 6])).encode()
        cut = number * 31 % len(line)
        put(to, line[:cut])
        put(to, line[cut:])
    if kept:
        os.pwrite(kept, b'%d\\n' % number, 0)
    time.sleep(0.005)
for name, to in (('out', 1), ('err', 2)):
    put(to, ('%s end %d\\n' % (name, number)).encode())
";

/// Fills its standard output, and then says so, by a file and on standard error.
const FLOOD: &str = "
import os, select, signal, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
os.set_blocking(1, False)
while select.select([], [1], [], 1)[1]:
    try:
        os.write(1, b'x' * 99 + b'\\n')
    except BlockingIOError:
        pass
open(sys.argv[1] + str(os.getpid()), 'w').close()
os.write(2, b'full\\n')
while True:
    signal.pause()
";
