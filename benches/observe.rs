//! What counting costs: nanoseconds of processor time that the observe layer adds to a request, beside the same service without it.
//!
//! Contenders take turns round by round, so that the machine's moods meet all of them, and what is reported is the median
//! of the differences within one round. Each request has eight headers, and its service is cloned for it, as servers do.
//!
//! - alone: one thread.
//! - together: as many threads as there are processors, each with a connection of its own, as under `http::serve`.
//! - crowded: the same threads clone one and the same service, as around a router that all connections share.
//! - failing: alone, and every request fails, each for another client: the path that takes a lock.
//!
//! `cargo bench --bench observe`

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::pin::pin;
use std::sync::Barrier;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use handover::http::ObserveLayer;
use handover::observe::{Client, Observed, Outcome};
use http::header::HeaderName;
use http::{HeaderValue, Request, Response, StatusCode};
use nix::time::{ClockId, clock_gettime};
use tower_layer::Layer;
use tower_service::Service;

/// Requests of one thread in a round.
const REQUESTS: u32 = 10_000;
/// How long all rounds of one setting may take.
const BUDGET: Duration = Duration::from_secs(4);
/// Nanoseconds.
const GOAL: f64 = 100.0;

thread_local! {
    /// The request goes back here, so that none has to be built or freed for the next one.
    static REQUEST: Cell<Option<Request<()>>> = const { Cell::new(None) };
}

/// Answers at once.
#[derive(Clone)]
struct Echo(StatusCode);

impl Service<Request<()>> for Echo {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        REQUEST.set(Some(request));
        let mut response = Response::new(());
        *response.status_mut() = self.0;
        ready(Ok(response))
    }
}

fn main() {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let observed = Observed::default();
    let layer = ObserveLayer::new(&observed).generation(1);
    let ok = Echo(StatusCode::OK);
    let own = |_: usize| layer.layer(ok.clone());
    let one = layer.layer(ok.clone());
    println!(
        "{:<24} {:>9} {:>9} {:>9} {:>7}",
        "", "bare", "observed", "adds", "ratio"
    );
    report("alone", 1, |_| ok.clone(), own);
    report("together", processors, |_| ok.clone(), own);
    report("crowded", processors, |_| ok.clone(), |_| one.clone());
    counting(&observed);
    let clients = layer.clone().client_by(|_, _| Some(Client::unknown()));
    let broken = Echo(StatusCode::INTERNAL_SERVER_ERROR);
    report(
        "failing",
        1,
        |_| broken.clone(),
        |_| clients.layer(broken.clone()),
    );
    black_box(observed.snapshot());
    println!("the goal is {GOAL} ns; {processors} processors");
}

/// What of it is counting itself, as a service that is not HTTP does it.
fn counting(observed: &Observed) {
    let client = Client::from("somebody");
    let each = |act: &dyn Fn()| {
        let rounds = (0..1_000).map(|_| {
            let begin = cpu_time();
            (0..REQUESTS).for_each(|_| act());
            (cpu_time() - begin).as_secs_f64() * 1e9 / f64::from(REQUESTS)
        });
        median(rounds)
    };
    let counted = each(&|| black_box(observed).begin(client).end(Outcome::Answered));
    let clocks = each(&|| {
        black_box([Instant::now(), Instant::now()]);
    });
    println!(
        "counting without a layer: {counted:.1} ns, of which two looks at the clock are {clocks:.1} ns"
    );
}

fn report<A, B>(
    name: &str,
    threads: usize,
    bare: impl Fn(usize) -> A + Sync,
    observed: impl Fn(usize) -> B + Sync,
) where
    A: Service<Request<()>, Response = Response<()>, Error = Infallible> + Clone,
    B: Service<Request<()>, Response = Response<()>, Error = Infallible> + Clone,
{
    let mut rounds = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < BUDGET {
        rounds.push([together(threads, &bare), together(threads, &observed)]);
    }
    let bare = median(rounds.iter().map(|[bare, _]| *bare));
    let observed = median(rounds.iter().map(|[_, observed]| *observed));
    let adds = median(rounds.iter().map(|[bare, observed]| observed - bare));
    println!(
        "{name:<24} {bare:>6.1} ns {observed:>6.1} ns {adds:>6.1} ns x{:>5.2}",
        observed / bare
    );
}

/// Nanoseconds of a request, on average over all threads.
fn together<S>(threads: usize, service: impl Fn(usize) -> S + Sync) -> f64
where
    S: Service<Request<()>, Response = Response<()>, Error = Infallible> + Clone,
{
    let (start, service) = (Barrier::new(threads), &service);
    let took: Vec<Duration> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|number| {
                let start = &start;
                scope.spawn(move || {
                    let service = service(number);
                    start.wait();
                    drive(&service)
                })
            })
            .collect();
        running
            .into_iter()
            .filter_map(|run| run.join().ok())
            .collect()
    });
    let total: Duration = took.iter().sum();
    total.as_secs_f64() * 1e9 / f64::from(REQUESTS) / took.len() as f64
}

fn drive<S>(service: &S) -> Duration
where
    S: Service<Request<()>, Response = Response<()>, Error = Infallible> + Clone,
{
    REQUEST.set(Some(request()));
    let mut cx = Context::from_waker(Waker::noop());
    let begin = cpu_time();
    for _ in 0..REQUESTS {
        let request = REQUEST.take().unwrap_or_default();
        let answer = pin!(service.clone().call(request));
        let _answered = black_box(answer.poll(&mut cx));
    }
    cpu_time() - begin
}

/// Of this thread, so that whoever else uses the machine is not counted.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    now.map_or(Duration::ZERO, Duration::from)
}

fn request() -> Request<()> {
    let mut request = Request::new(());
    for name in [
        "host",
        "accept",
        "accept-encoding",
        "accept-language",
        "authorization",
        "cookie",
        "user-agent",
        "x-request-id",
    ] {
        let name = HeaderName::from_static(name);
        request
            .headers_mut()
            .insert(name, HeaderValue::from_static("value"));
    }
    request
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
