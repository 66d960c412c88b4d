use super::*;

#[tokio::test]
async fn an_idle_connection_is_answered_once_more_and_told_to_close() {
    let rig = Rig::new(server()).await;
    let mut client = rig.idle().await;
    rig.drain.quiesce();
    rig.until_counted("idle", 1).await;
    client.get("/").await;
    let response = client.response().await;
    assert!(response.says_close() && response.body == "hello");
    client.closed().await;
    rig.drain.begin();
    rig.gone().await;
}

#[tokio::test]
async fn an_idle_connection_is_answered_once_more_after_a_drain_without_a_flip() {
    let (rig, mut client) = Rig::leaving().await;
    client.get("/").await;
    assert!(client.response().await.says_close());
    rig.ends_with(client).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_grace_and_not_before() {
    let rig = Rig::brief().await;
    let client = rig.idle().await;
    let begun = tokio::time::Instant::now();
    rig.drain.begin();
    client.closed().await;
    assert!(begun.elapsed() >= SHORT);
    assert!(rig.gone().await.stragglers.is_empty());
}

#[tokio::test]
async fn grace_counts_from_the_flip_and_not_from_the_drain() {
    let rig = Rig::brief().await;
    let client = rig.idle().await;
    rig.drain.quiesce();
    client.closed().await;
    let begun = tokio::time::Instant::now();
    rig.drain.begin();
    rig.gone().await;
    assert!(begun.elapsed() < SHORT);
}

#[tokio::test]
async fn a_new_connection_is_served_on_the_way_out() {
    let rig = Rig::new(server()).await;
    let mut client = rig.connect().await;
    rig.until_counted("http1", 1).await;
    rig.drain.begin();
    rig.until_counted("idle", 1).await;
    client.get("/").await;
    assert!(client.response().await.says_close());
    rig.ends_with(client).await;
}

#[tokio::test]
async fn a_new_connection_that_stays_silent_is_closed_after_its_grace() {
    let rig = Rig::brief().await;
    let client = rig.connect().await;
    rig.until_counted("http1", 1).await;
    rig.drain.begin();
    rig.ends_with(client).await;
}

#[tokio::test]
async fn a_request_whose_head_is_not_complete_is_in_flight() {
    for split in [1, 3, 20, GET.len() - 1] {
        let rig = Rig::brief().await;
        let mut client = rig.idle().await;
        // Of the two connections only this one is idle, so that its end shows that graces are over.
        let idle = rig.idle().await;
        client.send(&GET[..split]).await;
        rig.drain.begin();
        idle.closed().await;
        assert_eq!(rig.counted("http1"), 1, "split at {split}");
        client.send(&GET[split..]).await;
        assert!(client.response().await.says_close());
        rig.ends_with(client).await;
    }
}

#[tokio::test]
async fn the_first_bytes_of_a_new_connection_are_in_flight() {
    let rig = Rig::brief().await;
    let mut client = rig.connect().await;
    let idle = rig.idle().await;
    client.send("P").await;
    rig.drain.begin();
    idle.closed().await;
    assert_eq!(rig.counted("http1"), 1);
    client
        .send("OST /upload HTTP/1.1\r\nContent-Length: 2\r\n\r\nab")
        .await;
    assert_eq!(client.response().await.body, "2");
    rig.ends_with(client).await;
}

#[tokio::test]
async fn half_a_request_behind_a_whole_one_is_kept_at_the_end_of_the_grace() {
    let rig = Rig::brief().await;
    let mut client = rig.connect().await;
    client.send(format!("{GET}GET / HT")).await;
    assert!(!client.response().await.says_close());
    rig.drain_past_grace().await;
    rig.until_counted("http1", 1).await;
    client.send("TP/1.1\r\nHost: test\r\n\r\n").await;
    assert!(client.response().await.says_close());
    rig.ends_with(client).await;
}

#[tokio::test]
async fn bytes_of_a_body_are_never_taken_for_a_request() {
    let rig = Rig::brief().await;
    let mut client = rig.connect().await;
    client.post("/hold", 9_000, "x").await;
    assert_eq!(client.response().await.body, "later");
    // hyper has no room for a second part of the body, so that this stays in the socket.
    client.send(GET).await;
    rig.drain.begin();
    rig.ends_with(client).await;
}

#[tokio::test]
async fn bytes_of_a_body_that_hyper_holds_are_never_taken_for_a_request() {
    let rig = Rig::brief().await;
    let mut client = rig.connect().await;
    let head = "POST /hold HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";
    client
        .send(format!("{head}1\r\nx\r\n{:x}\r\n{GET}", GET.len()))
        .await;
    assert_eq!(client.response().await.body, "later");
    rig.drain.begin();
    rig.ends_with(client).await;
}

#[tokio::test]
async fn a_slow_answer_is_waited_for_and_says_close() {
    let rig = Rig::new(server()).await;
    let mut client = rig.busy().await;
    rig.drain.begin();
    rig.until_counted("http1", 1).await;
    assert!(!rig.server.is_finished());
    rig.app.release.notify_one();
    let response = client.response().await;
    assert!(response.says_close() && response.body == "slow");
    rig.ends_with(client).await;
}

/// A connection over which a body comes, as it is fed.
async fn streamed(rig: &Rig) -> (Client, Sender<Bytes, Infallible>) {
    let mut client = rig.connect().await;
    client.get("/stream").await;
    client.head().await;
    (client, rig.feed())
}

#[tokio::test]
async fn a_body_that_is_being_streamed_is_finished() {
    let rig = Rig::brief().await;
    let (mut client, mut feed) = streamed(&rig).await;
    rig.drain_past_grace().await;
    for part in ["one", "two"] {
        feed.send_data(Bytes::from(part)).await.unwrap();
        client.read_to(part).await;
    }
    drop(feed);
    client.read_to("0\r\n\r\n").await;
    rig.ends_with(client).await;
}

#[tokio::test]
async fn a_body_that_the_client_reads_slowly_is_written_to_its_end() {
    const SIZE: usize = 16 << 20;
    let rig = Rig::brief().await;
    let (mut client, mut feed) = streamed(&rig).await;
    feed.send_data(Bytes::from(vec![b'x'; SIZE])).await.unwrap();
    drop(feed);
    rig.drain_past_grace().await;
    // The application is done, and most of the bytes are still in this process.
    assert_eq!(rig.counted("http1"), 1);
    client.read_large(SIZE).await;
    rig.ends_with(client).await;
}

#[tokio::test]
async fn an_upload_is_finished() {
    let rig = Rig::brief().await;
    let mut client = rig.connect().await;
    client.post("/upload", 6, "abc").await;
    rig.app.begun.notified().await;
    rig.drain_past_grace().await;
    client.send("def").await;
    let response = client.response().await;
    assert!(response.says_close() && response.body == "6");
    rig.ends_with(client).await;
}

#[tokio::test]
async fn pipelined_requests_are_all_answered() {
    let rig = Rig::new(server()).await;
    let mut client = rig.connect().await;
    client
        .send(format!(
            "GET /slow HTTP/1.1\r\nHost: test\r\n\r\n{GET}{GET}"
        ))
        .await;
    rig.app.begun.notified().await;
    rig.drain.begin();
    rig.until_counted("http1", 1).await;
    rig.app.release.notify_one();
    assert_eq!(client.response().await.body, "slow");
    assert!(!client.response().await.says_close());
    assert!(client.response().await.says_close());
    rig.ends_with(client).await;
}

#[tokio::test]
async fn requests_behind_the_last_answer_do_not_cut_it() {
    const SIZE: usize = 2 << 20;
    let rig = Rig::new(server()).await;
    rig.drain.quiesce();
    let (mut client, mut feed) = streamed(&rig).await;
    // Most of the answer waits in the server's socket when it is complete.
    let socket = socket2::SockRef::from(&client.stream);
    socket.set_recv_buffer_size(64 << 10).unwrap();
    // More than hyper takes into its buffer: when this connection is closed, the rest is in the socket.
    client.send(GET.repeat(4_000)).await;
    feed.send_data(Bytes::from(vec![b'x'; SIZE])).await.unwrap();
    drop(feed);
    client.read_large(SIZE).await;
    client.closed().await;
}

#[tokio::test]
async fn a_rollback_keeps_connections_alive() {
    let rig = Rig::brief().await;
    let mut client = rig.idle().await;
    rig.drain.quiesce();
    rig.until_counted("idle", 1).await;
    rig.drain.resume();
    rig.until_counted("http1", 1).await;
    // Another generation shows that a grace which began later is over.
    let other = Rig::brief().await;
    let idle = other.idle().await;
    other.drain.quiesce();
    idle.closed().await;
    for _ in 0..2 {
        client.get("/").await;
        assert!(!client.response().await.says_close());
    }
}

#[tokio::test]
async fn a_body_that_was_not_read_does_not_cost_the_client_its_answer() {
    let (rig, mut client) = Rig::leaving().await;
    client.post("/ignore", 9_000_000, "").await;
    // Sent in part after the answer: without lingering, this would be answered by a reset.
    let response = client.response().await;
    assert!(response.says_close());
    assert_eq!(rig.counted("http1"), 1);
    for _ in 0..90 {
        client.send([b'x'; 100_000]).await;
    }
    rig.ends_with(client).await;
}

#[tokio::test]
async fn a_body_that_was_read_costs_no_lingering() {
    let (rig, mut client) = Rig::leaving().await;
    client.post("/upload", 3, "abc").await;
    assert_eq!(client.response().await.body, "3");
    // The client keeps its end open, and the generation leaves all the same.
    let answered = tokio::time::Instant::now();
    rig.gone().await;
    assert!(answered.elapsed() < crate::config::LINGER_DEADLINE);
}

#[tokio::test]
async fn what_is_left_at_the_deadline_is_cut() {
    let rig = Rig::with_drain(server(), Drain::new(SHORT, LONG)).await;
    let client = rig.busy().await;
    rig.drain.begin();
    client.closed().await;
    let report = rig.gone().await;
    assert!(report.took >= SHORT);
}

#[tokio::test]
async fn a_second_stop_cuts_at_once() {
    let rig = Rig::new(server()).await;
    let client = rig.busy().await;
    rig.drain.begin();
    rig.drain.cut_now();
    rig.ends_with(client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_in_the_socket_at_the_end_of_the_grace_is_answered() {
    const TRIALS: usize = 200;
    let grace = Duration::from_millis(5);
    let rig = Rig::new(server().idle_grace(grace)).await;
    let mut clients = Vec::new();
    for _ in 0..TRIALS {
        clients.push(rig.idle().await);
    }
    rig.drain.begin();
    let end = tokio::time::Instant::now() + grace;
    let trials = clients.into_iter().enumerate().map(|(trial, mut client)| {
        let at = end - Duration::from_millis(2) + Duration::from_micros(20 * trial as u64);
        tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            let was_open = client.is_open();
            client.send(GET).await;
            (was_open && client.is_open(), client.response_or_end().await)
        })
    });
    let (mut answered, mut lost) = (0, 0);
    for trial in trials.collect::<Vec<_>>() {
        let (in_time, reply) = within(trial).await.unwrap();
        assert!(reply.is_empty() || reply.ends_with("hello"), "{reply}");
        answered += usize::from(!reply.is_empty());
        lost += usize::from(in_time && reply.is_empty());
    }
    // Nobody can close the instant between the last look and the close, but it is short.
    assert!(
        answered > 0 && lost <= TRIALS / 50,
        "{answered} answered, {lost} lost"
    );
    rig.gone().await;
}
