//! Background jobs: one that can finish before its class's deadline does, and one that cannot puts the rest of itself
//! back into the queue, where the successor finds it. The queue is a UDP socket, to need nothing else.
//!
//! ```sh
//! cargo run --example jobs
//! echo -n 'report 5'  >/dev/udp/127.0.0.1/3000     # (bash) a job of 5 steps, half a second
//! echo -n 'index 200' >/dev/udp/127.0.0.1/3000     # one of 20 seconds
//! kill -HUP $(pgrep -n jobs)      # upgrade: generation 1 puts `index` back when its 3 s are up, 2 takes it
//! kill -TERM $(pgrep -n jobs)     # stop: what goes back now is lost here, and is not in a queue that lasts
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use handover::drain::Signal;
use tokio::net::UdpSocket;

const STEP: Duration = Duration::from_millis(100);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".into());
    // The default is ten seconds; one is for trying this out.
    let bake = Duration::from_secs(1);
    let mut starting = handover::builder().bake(bake).start().await?;
    let queue = starting.bind_udp("queue", address).await?;
    println!("listening on {}", queue.local_addr());
    let generation = starting.ready().await?;

    let limit = Duration::from_secs(3);
    let jobs = generation.drain().class_with_deadline("job", limit);
    let mut draining = std::pin::pin!(generation.draining());
    let mut buffer = [0; 512];
    loop {
        let (length, _) = tokio::select! {
            received = queue.recv_from(&mut buffer) => received?,
            () = &mut draining => break,
        };
        let job = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let work = work(
            job.clone(),
            generation.number(),
            queue.local_addr(),
            jobs.signal(),
        );
        tokio::spawn(jobs.track(job, work));
    }
    generation.drained().await;
    Ok(())
}

async fn work(job: String, number: u64, queue: SocketAddr, signal: Signal) -> std::io::Result<()> {
    let (name, steps) = job.split_once(' ').unwrap_or((&job, "1"));
    println!("{name}: begun by generation {number}");
    for left in (0..steps.parse().unwrap_or(1)).rev() {
        tokio::time::sleep(STEP).await;
        let is_time_up = signal.time_left().is_some_and(|time| time < 3 * STEP);
        if is_time_up && left > 0 {
            println!("{name}: {left} steps left by generation {number}");
            let sender = UdpSocket::bind("127.0.0.1:0").await?;
            return sender
                .send_to(format!("{name} {left}").as_bytes(), queue)
                .await
                .map(drop);
        }
    }
    println!("{name}: done by generation {number}");
    Ok(())
}
