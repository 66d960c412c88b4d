//! Clients that nobody wants: silent, garrulous, foreign, many, gone.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use handover::config::{CONTROL_CLIENTS_MAX, CONTROL_DEADLINE};
use handover::control::{Client, Request};
use handover_load::process::descriptors;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::operated::{Operated, rest, run};
use crate::support::{DEADLINE, Setup, Upload, eventually, until_descriptors};

/// A user without any right.
const NOBODY: u32 = 65_534;

/// How many sockets of a service belong to connections of its control socket.
fn connections(operated: &Operated) -> usize {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let path = operated.path.to_str().unwrap();
    // The column before the inode is the state: 03 is connected.
    let of_it = table.lines().filter(|line| line.ends_with(path));
    let mut fields = of_it.map(|line| line.split_whitespace().nth(5) == Some("03"));
    fields.by_ref().filter(|connected| *connected).count()
}

async fn until_connections(operated: &Operated, count: usize) {
    eventually("connections", || connections(operated), count).await;
}

#[tokio::test]
async fn only_its_user_reaches_the_path() {
    let operated = Operated::start(Setup::new()).await;
    let mode = std::fs::metadata(&operated.path)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_client_that_says_nothing_is_sent_away_and_holds_up_nobody() {
    let operated = Operated::start(Setup::new()).await;
    // The generation that they are connected to stays until this is finished.
    let _upload = Upload::begin(operated.service.web).await;
    let since = Instant::now();
    let mut silent = operated.connect().await;
    let mut half = operated.connect().await;
    half.write_all(br#"{"version":1,"#).await.unwrap();
    operated.run(&["upgrade"]).await.assert_code(0);
    assert_eq!(operated.status().await.generation, 2);
    assert!(since.elapsed() < CONTROL_DEADLINE, "too slow to tell");
    for stream in [&mut silent, &mut half] {
        let refusal = rest(stream).await;
        assert_eq!(refusal["kind"], "malformed", "{refusal}");
    }
    assert!(since.elapsed() >= CONTROL_DEADLINE);
}

#[tokio::test]
async fn garbage_is_answered_with_a_line_that_says_so() {
    let operated = Operated::start(Setup::new()).await;
    for garbage in [
        &b"\n"[..],
        b"GET / HTTP/1.1\r\n",
        b"\0\xff\xfe\n",
        b"{\"version\":1}\n",
        b"{\"version\":1,\"request\":\"dance\"}\n",
        b"{\"version\":0,\"request\":\"status\"}\n",
    ] {
        let mut stream = operated.connect().await;
        stream.write_all(garbage).await.unwrap();
        let refusal = rest(&mut stream).await;
        assert_eq!(refusal["reply"], "error", "{refusal}");
        assert_eq!(refusal["kind"], "malformed", "{refusal}");
    }
    assert_eq!(operated.status().await.generation, 1);
}

#[tokio::test]
async fn a_line_without_end_is_cut_off_with_a_line_that_says_so() {
    let operated = Operated::start(Setup::new()).await;
    let (mut reader, mut writer) = operated.connect().await.into_split();
    let writing = tokio::spawn(async move {
        loop {
            if let Err(error) = writer.write_all(&[b'a'; 4096]).await {
                return error.kind();
            }
        }
    });
    let mut said = vec![0; 512];
    let length = timeout(DEADLINE, reader.read(&mut said))
        .await
        .unwrap()
        .unwrap();
    let said = String::from_utf8_lossy(&said[..length]);
    assert!(said.contains("longer than 16384 bytes"), "{said}");
    let end = timeout(DEADLINE, writing).await.unwrap().unwrap();
    assert!(
        matches!(
            end,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
        ),
        "{end}"
    );
}

#[tokio::test]
async fn another_user_is_refused_even_where_the_path_lets_everybody_in() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can be another user");
        return;
    }
    let operated = Operated::start(Setup::new()).await;
    let room = operated.path.parent().unwrap();
    std::fs::set_permissions(room, PermissionsExt::from_mode(0o755)).unwrap();
    // A copy: where this was built need not be open to everybody.
    let copy = room.join("handover");
    std::fs::copy(env!("CARGO_BIN_EXE_handover"), &copy).unwrap();
    let as_nobody = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(&copy);
        command.args(arguments).arg("--control").arg(&operated.path);
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
        command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        run(command).await
    };
    let ran = as_nobody(&["stop"]).await;
    ran.assert_code(1);
    ran.assert_says(&["ermission denied"]);
    std::fs::set_permissions(&operated.path, PermissionsExt::from_mode(0o666)).unwrap();
    let ran = as_nobody(&["stop"]).await;
    ran.assert_code(2);
    ran.assert_says(&["user 65534 is neither the service's nor root"]);
    operated.service.assert_serving(1).await;
}

#[tokio::test]
async fn a_hundred_clients_at_once_are_all_answered() {
    let operated = Operated::start(Setup::new()).await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(operated.connect().await);
    }
    let mut asking = JoinSet::new();
    for mut stream in streams {
        asking.spawn(async move {
            stream
                .write_all(b"{\"request\":\"status\"}\n")
                .await
                .unwrap();
            rest(&mut stream).await
        });
    }
    let answers = asking.join_all().await;
    assert_eq!(answers.len(), 100);
    assert!(answers.iter().all(|answer| answer["generation"] == 1));
}

#[tokio::test]
async fn more_clients_than_there_are_places_are_told_so() {
    let operated = Operated::start(Setup::new()).await;
    let mut silent = Vec::new();
    for _ in 0..CONTROL_CLIENTS_MAX {
        silent.push(operated.connect().await);
    }
    let refusal = rest(&mut operated.connect().await).await;
    assert_eq!(refusal["kind"], "busy", "{refusal}");
    drop(silent);
    until_connections(&operated, 0).await;
    assert_eq!(operated.status().await.generation, 1);
}

#[tokio::test]
async fn clients_that_listen_for_ever_leave_room_for_those_who_ask() {
    let operated = Operated::start(Setup::new()).await;
    let client = operated.client();
    let mut listening = Vec::new();
    let refused = loop {
        match client.events().await {
            Ok(events) => listening.push(events),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), handover::ErrorKind::Refused, "{refused:?}");
    assert_eq!(listening.len(), handover::config::CONTROL_WAITING_MAX);
    assert_eq!(operated.status().await.generation, 1);
    operated.run(&["upgrade", "--no-wait"]).await.assert_code(0);
}

#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_leaves_nothing_behind_and_its_upgrade_goes_on() {
    let operated = Operated::start(Setup::new().with("TESTD_BAKE_MS", 60_000)).await;
    assert_eq!(operated.status().await.generation, 1);
    until_connections(&operated, 0).await;
    let before = descriptors(operated.service.pid()).unwrap();
    for _ in 0..10 {
        let mut stream = operated.connect().await;
        stream.write_all(b"{\"request\":\"sta").await.unwrap();
        drop(stream);
        let mut stream = operated.connect().await;
        stream
            .write_all(b"{\"request\":\"history\"}\n")
            .await
            .unwrap();
        drop(stream);
        drop(operated.client().events().await.unwrap());
    }
    until_descriptors(operated.service.pid(), before).await;

    let mut stream = operated.connect().await;
    let ask = b"{\"request\":\"upgrade\",\"wait\":true}\n";
    stream.write_all(ask).await.unwrap();
    operated.phase(1, 2, "launching").await;
    drop(stream);
    until_connections(&operated, 0).await;
    operated.phase(1, 2, "baking").await;
    operated.service.assert_serving(2).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_keeps_nobody_from_handing_over() {
    let operated = Operated::start(Setup::new()).await;
    let mut deaf = operated.connect().await;
    deaf.write_all(b"{\"request\":\"events\"}\n").await.unwrap();
    until_connections(&operated, 1).await;
    operated.run(&["upgrade"]).await.assert_code(0);
    crate::support::gone(operated.service.pid()).await;
    assert_eq!(operated.status().await.generation, 2);
}

#[tokio::test]
async fn a_client_without_a_service_is_told_in_time() {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("control.sock");
    let _mute = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let client = Client::new(&path).deadline(Duration::from_millis(50));
    let error = client.ask(&Request::Status).await.unwrap_err();
    assert_eq!(error.kind(), handover::ErrorKind::Io);
    assert!(format!("{error:?}").contains("timed out"), "{error:?}");
    assert!(matches!(
        Client::new(room.path().join("none")).ask(&Request::Status).await,
        Err(error) if error.kind() == handover::ErrorKind::Io
    ));
}
