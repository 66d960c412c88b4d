use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;

const DEADLINE: Duration = Duration::from_secs(600);
const HARD_STOP: Duration = Duration::from_secs(900);

fn drain() -> Drain {
    Drain::new(DEADLINE, HARD_STOP)
}

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn nothing_in_flight_is_drained_the_moment_it_begins() {
    let drain = drain();
    let mut drained = pin!(drain.drained());
    assert!(poll(drained.as_mut()).is_pending());
    drain.begin();
    let Poll::Ready(report) = poll(drained.as_mut()) else {
        panic!("it waits for nothing")
    };
    assert!(report.stragglers.is_empty());
}

#[tokio::test]
async fn a_tracked_future_can_be_spawned_where_its_class_does_not_live() {
    let drain = drain();
    let tracked = tokio::spawn(drain.class("job").track("a", async { 7 }));
    assert_eq!(drain.in_flight(), 1);
    assert_eq!(tracked.await.unwrap(), 7);
    assert_eq!(drain.in_flight(), 0);
}

#[tokio::test]
async fn the_last_guard_of_any_class_ends_the_drain() {
    let drain = drain();
    let (request, job) = (
        drain.class("http").guard("1"),
        drain.class("jobs").guard("2"),
    );
    drain.begin();
    let mut drained = pin!(drain.drained());
    assert!(poll(drained.as_mut()).is_pending());
    drop(request);
    assert!(poll(drained.as_mut()).is_pending());
    drop(job);
    assert!(poll(drained.as_mut()).is_ready());
}

#[tokio::test]
async fn whoever_leaves_last_is_waited_for_and_waits_for_everybody_else() {
    let drain = drain();
    let (request, last) = (
        drain.class("http").guard("1"),
        drain.class("last").guard("2"),
    );
    let mut drained = pin!(drain.drained());
    {
        let mut alone = pin!(drain.drained_beside(&last));
        assert!(poll(alone.as_mut()).is_pending());
        drain.begin();
        assert!(poll(alone.as_mut()).is_pending());
        drop(request);
        assert!(poll(alone.as_mut()).is_ready());
    }
    assert!(poll(drained.as_mut()).is_pending());
    drop(last);
    assert!(poll(drained.as_mut()).is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_waiting_task_is_woken_by_the_last_guard_and_not_by_a_deadline() {
    let drain = drain();
    let guard = drain.class("http").guard("1");
    drain.begin();
    let begun = Instant::now();
    let waiting = tokio::spawn({
        let drain = drain.clone();
        async move { drain.drained().await }
    });
    tokio::task::yield_now().await;
    drop(guard);
    waiting.await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn work_begun_while_draining_is_waited_for() {
    let drain = drain();
    let first = drain.class("http").guard("1");
    drain.begin();
    let mut drained = pin!(drain.drained());
    let second = drain.class("http").guard("2");
    drop(first);
    assert!(poll(drained.as_mut()).is_pending());
    drop(second);
    assert!(poll(drained.as_mut()).is_ready());
}

#[tokio::test(start_paused = true)]
async fn each_class_is_waited_for_until_its_own_deadline() {
    let drain = drain();
    let _request = drain.class("http").guard("10.0.0.1");
    let stream = drain.class_with_deadline("stream", Duration::from_secs(5));
    let _stream = stream.guard("10.0.0.2");
    let cut = stream.signal();
    drain.begin();
    let begun = Instant::now();
    cut.cut().await;
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    let report = drain.drained().await;
    assert_eq!(begun.elapsed(), DEADLINE);
    let left: Vec<_> = report
        .stragglers
        .iter()
        .map(|left| (left.class, &*left.label))
        .collect();
    assert_eq!(left, [("http", "10.0.0.1"), ("stream", "10.0.0.2")]);
}

#[tokio::test(start_paused = true)]
async fn the_hard_stop_caps_every_class() {
    let drain = drain();
    let _guard = drain
        .class_with_deadline("upload", Duration::from_secs(3600))
        .guard("big");
    drain.begin();
    let begun = Instant::now();
    drain.drained().await;
    assert_eq!(begun.elapsed(), HARD_STOP);
}

#[tokio::test(start_paused = true)]
async fn a_drain_with_less_time_cuts_every_class_earlier_and_its_signals_know() {
    let limit = Duration::from_secs(20);
    let drain = drain();
    let (slow, quick) = (
        drain.class("http").guard("slow"),
        drain.class_with_deadline("job", Duration::from_secs(5)),
    );
    let quick = quick.guard("quick");
    drain.begin_within(limit);
    let begun = Instant::now();
    assert_eq!(slow.signal().time_left(), Some(limit));
    assert_eq!(quick.signal().time_left(), Some(Duration::from_secs(5)));
    assert_eq!(drain.progress().classes[0].time_left, Some(limit));
    slow.signal().cut().await;
    assert_eq!(begun.elapsed(), limit);
    assert_eq!(drain.drained().await.stragglers.len(), 2);
    assert_eq!(begun.elapsed(), limit);
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_has_begun_can_get_less_time_and_never_more() {
    let drain = drain();
    let unit = drain.class("http").guard("slow");
    drain.begin();
    let limit = Duration::from_secs(20);
    drain.begin_within(limit);
    assert_eq!(unit.signal().time_left(), Some(limit));
    drain.begin_within(limit * 2);
    assert_eq!(unit.signal().time_left(), Some(limit));
    let begun = Instant::now();
    unit.signal().cut().await;
    assert_eq!(begun.elapsed(), limit);
}

#[tokio::test(start_paused = true)]
async fn a_second_stop_cuts_at_once_and_reports_who_was_left() {
    let drain = drain();
    let guard = drain.class("http").guard("slow");
    let signal = guard.signal();
    drain.begin();
    let mut drained = pin!(drain.drained());
    assert!(poll(drained.as_mut()).is_pending());
    drain.cut_now();
    let Poll::Ready(report) = poll(drained.as_mut()) else {
        panic!("it still waits")
    };
    assert_eq!(report.stragglers.len(), 1);
    signal.cut().await;
    assert_eq!(signal.time_left(), Some(Duration::ZERO));
}

#[tokio::test]
async fn quiesced_can_be_called_back_and_draining_cannot() {
    let drain = drain();
    let mut signal = drain.signal();
    drain.quiesce();
    signal.quiesced().await;
    assert!(signal.is_quiesced() && !signal.is_draining());
    drain.resume();
    assert_eq!(signal.changed().await, Stage::Serving);
    drain.begin();
    drain.resume();
    drain.quiesce();
    assert!(signal.is_draining());
}

#[tokio::test(start_paused = true)]
async fn tasks_can_see_how_much_time_is_left() {
    let drain = drain();
    let signal = drain
        .class_with_deadline("job", Duration::from_secs(60))
        .signal();
    assert_eq!(signal.time_left(), None);
    drain.begin();
    tokio::time::advance(Duration::from_secs(20)).await;
    assert_eq!(signal.time_left(), Some(Duration::from_secs(40)));
}

#[tokio::test]
async fn a_tracked_future_counts_until_it_completes_or_is_dropped() {
    let drain = drain();
    let class = drain.class("job");
    let mut done = Box::pin(class.track("a", async {}));
    let dropped = Box::pin(class.track("b", std::future::pending::<()>()));
    assert_eq!(drain.in_flight(), 2);
    assert!(poll(done.as_mut()).is_ready());
    assert_eq!(drain.in_flight(), 1);
    drop(dropped);
    assert_eq!(drain.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn progress_names_each_class_its_count_and_its_oldest() {
    let drain = drain();
    let _first = drain.class("http").guard("1");
    tokio::time::advance(Duration::from_secs(3)).await;
    let _second = drain.class("http").guard("2");
    let progress = drain.progress();
    assert_eq!(progress.classes.len(), 1);
    assert_eq!(progress.classes[0].in_flight, 2);
    assert_eq!(progress.classes[0].oldest, Some(Duration::from_secs(3)));
    assert_eq!(progress.classes[0].time_left, None);
}

#[tokio::test(start_paused = true)]
async fn a_unit_that_ends_because_it_was_cut_is_reported_although_it_is_gone() {
    let drain = drain();
    let (late, cut) = (
        drain.class_with_deadline("late", Duration::from_secs(1)),
        drain.class("cut"),
    );
    let (on_time, late, cut) = (late.guard("on time"), late.guard("late"), cut.guard("cut"));
    drain.begin();
    drop(on_time);
    tokio::time::advance(Duration::from_secs(1)).await;
    drop(late);
    drain.cut_now();
    drop(cut);
    let report = drain.drained().await;
    let left: Vec<_> = report.stragglers.iter().map(|left| &*left.label).collect();
    assert_eq!(left, ["late", "cut"]);
}
