use super::*;

const UPGRADE: &str =
    "GET /upgrade HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\n";
const EVENTS: &str = "GET /events HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n\r\n";

async fn upgraded(rig: &Rig) -> (Client, Upgrade) {
    let mut client = rig.connect().await;
    client.send(UPGRADE).await;
    assert!(client.head().await.starts_with("HTTP/1.1 101"));
    (client, rig.upgrade().await)
}

async fn subscribed(rig: &Rig) -> Client {
    let mut client = rig.connect().await;
    client.send(EVENTS).await;
    client.head().await;
    client
}

#[tokio::test]
async fn an_upgraded_connection_counts_until_the_application_ends_it() {
    let rig = Rig::brief().await;
    let (mut client, (mut stream, signal)) = upgraded(&rig).await;
    rig.until_counted("upgrade", 1).await;
    rig.until_counted("http1", 0).await;
    rig.drain_past_grace().await;
    within(signal.unwrap().draining()).await;
    client.send("ping").await;
    within(stream.read_exact(&mut [0; 4])).await.unwrap();
    stream.write_all(b"bye!").await.unwrap();
    assert_eq!(client.read_to("bye!").await, "bye!");
    assert!(!rig.server.is_finished());
    drop(stream);
    client.closed().await;
    assert!(rig.gone().await.stragglers.is_empty());
}

#[tokio::test]
async fn an_upgraded_connection_is_told_of_the_flip_and_of_a_rollback() {
    let rig = Rig::new(server()).await;
    let (_client, (_stream, signal)) = upgraded(&rig).await;
    let mut signal = signal.unwrap();
    rig.drain.quiesce();
    within(signal.quiesced()).await;
    assert!(!signal.is_draining());
    rig.drain.resume();
    assert_eq!(within(signal.changed()).await, crate::drain::Stage::Serving);
}

#[tokio::test]
async fn an_upgraded_connection_is_cut_at_its_deadline() {
    let rig = Rig::new(server().upgrade_deadline(SHORT)).await;
    let (client, (stream, _)) = upgraded(&rig).await;
    // A writer that the client does not read from, and a reader that the client does not write to.
    let (mut reader, mut writer) = tokio::io::split(stream);
    let reading = tokio::spawn(async move { reader.read(&mut [0; 1]).await });
    let writing = tokio::spawn(async move { writer.write_all(&vec![0; 64 << 20]).await });
    rig.drain.begin();
    assert_eq!(
        within(reading).await.unwrap().unwrap_err().kind(),
        io::ErrorKind::ConnectionAborted
    );
    assert_eq!(
        within(writing).await.unwrap().unwrap_err().kind(),
        io::ErrorKind::ConnectionAborted
    );
    assert!(rig.gone().await.took >= SHORT);
    drop(client);
}

#[tokio::test]
async fn switching_protocols_on_the_way_out_does_not_say_close() {
    let rig = Rig::new(server()).await;
    let mut client = rig.idle().await;
    rig.drain.quiesce();
    rig.until_counted("idle", 1).await;
    client.send(UPGRADE).await;
    let head = client.head().await.to_ascii_lowercase();
    assert!(
        head.contains("connection: upgrade") && !head.contains("close"),
        "{head}"
    );
    rig.until_counted("upgrade", 1).await;
}

#[tokio::test]
async fn an_event_stream_is_counted_as_one_and_ended_whole_at_its_deadline() {
    let rig = Rig::new(server().idle_grace(SHORT).stream_deadline(SHORT * 2)).await;
    let mut client = subscribed(&rig).await;
    rig.until_counted("stream", 1).await;
    rig.until_counted("http1", 0).await;
    let mut feed = rig.feed();
    rig.drain_past_grace().await;
    feed.send_data(Bytes::from("data: 1\n\n")).await.unwrap();
    client.read_to("data: 1\n\n\r\n").await;
    client.read_to("0\r\n\r\n").await;
    client.closed().await;
    let report = rig.gone().await;
    // It ended well for its client, but not because it was complete.
    let left = report.stragglers.iter().map(|left| left.class);
    assert_eq!(left.collect::<Vec<_>>(), ["stream"]);
    assert!(report.took >= SHORT * 2);
}

#[tokio::test]
async fn an_event_stream_that_the_application_ends_is_waited_for_no_longer() {
    let rig = Rig::new(server()).await;
    let mut client = subscribed(&rig).await;
    rig.drain.quiesce();
    drop(rig.feed());
    client.read_to("0\r\n\r\n").await;
    rig.until_counted("stream", 0).await;
    // Its head was sent before the flip and said nothing of closing.
    rig.until_counted("idle", 1).await;
    client.get("/").await;
    assert!(client.response().await.says_close());
    client.closed().await;
    rig.drain.begin();
    rig.gone().await;
}

#[tokio::test]
async fn a_client_that_leaves_its_event_stream_is_not_waited_for() {
    let rig = Rig::new(server()).await;
    let client = subscribed(&rig).await;
    rig.until_counted("stream", 1).await;
    rig.drain.begin();
    drop(client);
    rig.gone().await;
}
