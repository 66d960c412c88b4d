//! How the last generation gives its sockets up: nobody follows who would serve what is left in a queue.
//!
//! | socket | new connections | ends |
//! |---|---|---|
//! | TCP | refused at once; handshakes under way complete | when its queue has been empty for the settle time |
//! | Unix, with a gate | refused at once | when its queue is empty: nobody is on the way |
//! | Unix without a gate, with a path | nobody finds the path any more | when its queue has been empty for the settle time |
//! | TCP that shares its port, an abstract name without a gate, UDP | as before | when its queue is empty |
//!
//! One without a gate is emptied by whoever accepts from it, who is told to stop only after that.
//!
//! What a refusal does is done to the socket, not to a descriptor of it: a generation that is still to accept would
//! lose it. So whoever is not alone refuses nobody and only empties (I8).

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::claim::{Held, Refusal};
use super::gate::has_waiting;
use super::table::{Table, unlink_all};
use crate::config::STOP_LOOK;

/// How sockets that nobody inherits are given up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FinalStop {
    /// No other generation accepts from them, or ever will.
    pub(crate) is_alone: bool,
    /// How long a queue must have been empty before nobody is on the way to it any more.
    pub(crate) settle: Duration,
    /// When they are closed whoever waits.
    pub(crate) deadline: Duration,
}

impl Table {
    /// Refuses new connections where that harms nobody, lets the accept loops that still run empty the queues of all
    /// sockets, and closes them. Returns the names of those that were closed with connections waiting.
    ///
    /// Duplicates given to the application without a gate are its own to close.
    ///
    /// Not cancel safe: if the future is dropped, every socket closes at once.
    pub(crate) fn final_stop(&self, how: FinalStop) -> impl Future<Output = Vec<String>> + use<> {
        let (held, paths) = self.take_all();
        let held = held.into_iter();
        let leaving: Vec<_> = held.map(|held| Leaving::new(held, how.is_alone)).collect();
        let until = Instant::now() + how.deadline;
        async move {
            let mut ending = JoinSet::new();
            let is_by_path =
                |leaving: &Leaving| how.is_alone && leaving.is_found_by_its_path_alone();
            let (by_path, others) = leaving.into_iter().partition::<Vec<_>, _>(is_by_path);
            for leaving in others {
                ending.spawn(leaving.end(how.settle, until));
            }
            if how.is_alone {
                unlink_all(paths, until).await;
            }
            for mut leaving in by_path {
                leaving.refusal = Refusal::Begun;
                ending.spawn(leaving.end(how.settle, until));
            }
            let mut cut_off = Vec::new();
            while let Some(ended) = ending.join_next().await {
                cut_off.extend(ended.ok().flatten());
            }
            cut_off.sort();
            cut_off
        }
    }
}

/// A socket on its way out. Dropped, it closes for good, whoever waits in its queue.
struct Leaving {
    held: Held,
    refusal: Refusal,
}

impl Leaving {
    fn new(held: Held, is_alone: bool) -> Self {
        let refusal = match is_alone {
            true => held.refuse_new(),
            false => Refusal::None,
        };
        if let (Refusal::Begun, Some(gate)) = (refusal, held.gate()) {
            gate.settle();
        }
        Self { held, refusal }
    }

    /// Whether new connections come as long as its path is there, and no longer.
    fn is_found_by_its_path_alone(&self) -> bool {
        self.refusal == Refusal::None && self.held.is_ungated() && self.held.bound_path().is_some()
    }

    /// Returns its name if somebody was still waiting.
    async fn end(self, settle: Duration, until: Instant) -> Option<String> {
        match self.refusal {
            Refusal::Begun => self.settle(settle, until).await,
            // Where they come as before nobody is the last one, and any moment without anybody is as good.
            Refusal::None if self.held.is_ungated() => self.settle(Duration::ZERO, until).await,
            Refusal::None | Refusal::Complete => {}
        }
        let is_waited_at = match self.held.gate() {
            Some(gate) => {
                gate.finish();
                let mut retired = gate.retired();
                let retiring = retired.wait_for(|retired| *retired);
                timeout_at(until, retiring).await.is_err() && self.held.cuts_off()
            }
            None => self.held.is_ungated() && has_waiting(&self.held.socket),
        };
        is_waited_at.then(|| self.held.slot.name.clone())
    }

    /// Waits until nobody has come for `settle` and the queue is empty, which are one: who comes is accepted or waits.
    ///
    /// Without a gate nobody knows when the last one was accepted, and only the queue is looked at.
    async fn settle(&self, settle: Duration, until: Instant) {
        let mut seen_waiting = Instant::now();
        loop {
            let quiet_since = match self.held.gate() {
                Some(gate) => gate.quiet_since(),
                None => Some(seen_waiting),
            };
            let Some(quiet_since) = quiet_since else {
                return;
            };
            let now = Instant::now();
            let mut look_at = quiet_since.max(seen_waiting) + settle;
            if now >= look_at && has_waiting(&self.held.socket) {
                seen_waiting = now;
                look_at = now + settle.max(STOP_LOOK);
            }
            if now >= look_at || now >= until {
                return;
            }
            sleep_until(look_at.min(until)).await;
        }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(gate) = self.held.gate() {
            gate.retire();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind::ConnectionRefused;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::pin::pin;

    use super::super::options::ListenOptions;
    use super::super::tcp::TcpListener;
    use super::super::testing::{
        DEADLINE, await_queue, connect, descriptors, inode, poll_once, within,
    };
    use super::*;

    const SETTLE: Duration = Duration::from_millis(100);

    fn alone() -> FinalStop {
        FinalStop {
            is_alone: true,
            settle: SETTLE,
            deadline: DEADLINE,
        }
    }

    fn listen(table: &Table, options: &ListenOptions) -> TcpListener {
        let address = "127.0.0.1:0".parse().unwrap();
        let web = table.tcp("web", &[address], options).unwrap();
        table.open_all().unwrap();
        web
    }

    fn leaving(table: &Table) -> Leaving {
        let held = table.take_all().0.remove(0);
        held.gate().unwrap().settle();
        let refusal = Refusal::Begun;
        Leaving { held, refusal }
    }

    #[tokio::test(start_paused = true)]
    async fn the_settle_time_counts_from_the_last_one_who_came() {
        let table = Table::default();
        let web = listen(&table, &ListenOptions::new());
        let leaving = leaving(&table);
        let (begun, until) = (Instant::now(), Instant::now() + DEADLINE);
        let mut settling = pin!(leaving.settle(SETTLE, until));
        assert!(poll_once(settling.as_mut()).await.is_pending());
        let _client = connect(web.local_addr());
        await_queue(&leaving.held.socket);
        tokio::time::advance(SETTLE * 3 / 5).await;
        web.accept().await.unwrap();
        settling.await;
        assert_eq!(begun.elapsed(), SETTLE * 8 / 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_nobody_empties_is_not_quiet_until_the_deadline() {
        let table = Table::default();
        let web = listen(&table, &ListenOptions::new());
        let leaving = leaving(&table);
        let _client = connect(web.local_addr());
        await_queue(&leaving.held.socket);
        let begun = Instant::now();
        leaving.settle(SETTLE, begun + DEADLINE).await;
        assert_eq!(begun.elapsed(), DEADLINE);
    }

    #[tokio::test]
    async fn a_unix_listener_refuses_who_comes_late_and_serves_who_came_before() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("socket");
        for name in [path.clone(), format!("@{}", path.display()).into()] {
            let table = Table::default();
            let options = ListenOptions::new();
            let api = table.unix("api", &name, &options).await.unwrap();
            table.open_all().unwrap();
            let address = api.local_addr().clone();
            let _clients = [0; 3].map(|_| UnixStream::connect_addr(&address).unwrap());
            let inode = inode(&table.offer()[0].1);
            let stop = table.final_stop(alone());
            let late = UnixStream::connect_addr(&address).unwrap_err();
            assert_eq!(late.kind(), ConnectionRefused);
            let accepting = tokio::spawn(async move {
                for _ in 0..3 {
                    api.accept().await.unwrap();
                }
                // What the kernel says at the end of the queue is not for the application.
                api.accept().await.map(drop)
            });
            assert!(within(stop).await.is_empty());
            assert_eq!(descriptors(inode), 0);
            assert!(!accepting.is_finished());
            accepting.abort();
        }
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_unix_listener_that_nobody_accepts_from_is_closed_and_only_reported_if_somebody_waits()
     {
        for (clients, reported) in [(0, &[][..]), (1, &["api"][..])] {
            let room = tempfile::tempdir().unwrap();
            let path = room.path().join("socket");
            let table = Table::default();
            let api = table.unix("api", &path, &ListenOptions::new()).await;
            table.open_all().unwrap();
            let clients: Vec<_> = (0..clients)
                .map(|_| UnixStream::connect(&path).unwrap())
                .collect();
            let deadline = SETTLE;
            let stop = table.final_stop(FinalStop {
                deadline,
                ..alone()
            });
            assert_eq!(within(stop).await, reported);
            drop((api, clients));
        }
    }

    #[tokio::test]
    async fn who_is_not_alone_refuses_nobody_and_leaves_the_path() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("socket");
        let (table, options) = (Table::default(), ListenOptions::new());
        let api = table.unix("api", &path, &options).await.unwrap();
        let web = listen(&table, &options);
        let shared: Vec<_> = table.offer().into_iter().map(|(_, fd)| fd).collect();
        let stop = table.final_stop(FinalStop {
            is_alone: false,
            ..alone()
        });
        assert!(within(stop).await.is_empty());
        connect(web.local_addr());
        UnixStream::connect(&path).unwrap();
        drop((api, shared));
    }

    #[tokio::test]
    async fn a_socket_that_shares_its_port_is_not_refused() {
        let table = Table::default();
        let web = listen(&table, &ListenOptions::new().reuse_port(true));
        let shared = table.offer().remove(0).1;
        let stop = table.final_stop(alone());
        connect(web.local_addr());
        await_queue(&shared);
        let serving = tokio::spawn(async move {
            web.accept().await.unwrap();
            web.accept().await.map(drop)
        });
        assert!(within(stop).await.is_empty());
        assert!(!serving.is_finished());
        serving.abort();
    }

    #[tokio::test]
    async fn a_listener_without_a_gate_is_refused_and_its_duplicate_empties_the_queue() {
        let table = Table::default();
        let options = ListenOptions::new();
        let address = "127.0.0.1:0".parse().unwrap();
        let web = table.std_tcp("web", &[address], &options).unwrap();
        let address = web.local_addr().unwrap();
        let _client = connect(address);
        await_queue(&table.offer()[0].1);
        let mut stop = pin!(table.final_stop(alone()));
        assert!(poll_once(stop.as_mut()).await.is_pending());
        let late = std::net::TcpStream::connect_timeout(&address, DEADLINE);
        assert_eq!(late.unwrap_err().kind(), ConnectionRefused);
        web.accept().unwrap();
        assert!(within(stop).await.is_empty());
    }

    #[tokio::test]
    async fn a_unix_listener_without_a_gate_is_found_no_longer_and_its_duplicate_empties_the_queue()
    {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("socket");
        let (table, options) = (Table::default(), ListenOptions::new());
        let api = table.std_unix("api", &path, &options).await.unwrap();
        let _clients = [0; 2].map(|_| UnixStream::connect(&path).unwrap());
        let mut stop = pin!(table.final_stop(alone()));
        while path.exists() {
            assert!(poll_once(stop.as_mut()).await.is_pending());
            tokio::task::yield_now().await;
        }
        api.accept().unwrap();
        assert!(poll_once(stop.as_mut()).await.is_pending());
        api.accept().unwrap();
        assert!(within(stop).await.is_empty());
    }

    #[tokio::test]
    async fn listeners_without_a_gate_that_nobody_accepts_from_are_reported_if_somebody_waits() {
        for (clients, reported) in [(0, &[][..]), (1, &["api", "hidden", "web"])] {
            let room = tempfile::tempdir().unwrap();
            let path = room.path().join("socket");
            let name = format!("@{}", path.display());
            let (table, options) = (Table::default(), ListenOptions::new());
            let address = "127.0.0.1:0".parse().unwrap();
            let web = table.std_tcp("web", &[address], &options).unwrap();
            let api = table.std_unix("api", &path, &options).await.unwrap();
            let hidden = table.std_unix("hidden", Path::new(&name), &options);
            let hidden = hidden.await.unwrap();
            let waiting: Vec<_> = (0..clients)
                .map(|_| {
                    let address = hidden.local_addr().unwrap();
                    let by_name = UnixStream::connect_addr(&address).unwrap();
                    let by_path = UnixStream::connect(&path).unwrap();
                    (by_name, by_path, connect(web.local_addr().unwrap()))
                })
                .collect();
            let deadline = SETTLE * 3;
            let stop = table.final_stop(FinalStop {
                deadline,
                ..alone()
            });
            assert_eq!(within(stop).await, reported);
            drop((web, api, hidden, waiting));
        }
    }

    #[tokio::test]
    async fn a_unix_listener_without_a_gate_is_not_shut_down_under_its_accept_loop() {
        let table = Table::default();
        let room = tempfile::tempdir().unwrap();
        let name = format!("@{}", room.path().display());
        let options = ListenOptions::new();
        let api = table.std_unix("api", Path::new(&name), &options).await;
        let api = api.unwrap();
        assert!(within(table.final_stop(alone())).await.is_empty());
        let would_block = api.accept().unwrap_err();
        assert_eq!(would_block.kind(), std::io::ErrorKind::WouldBlock);
    }

    #[tokio::test]
    async fn a_final_stop_that_is_dropped_closes_at_once() {
        let table = Table::default();
        let web = listen(&table, &ListenOptions::new());
        let inode = inode(&table.offer()[0].1);
        drop(table.final_stop(alone()));
        assert_eq!(descriptors(inode), 0);
        assert!(format!("{web:?}").contains("Gate(retired)"));
    }
}
