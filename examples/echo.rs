//! A protocol of your own over TCP: each connection is counted, hears of the drain, and has a deadline.
//!
//! ```sh
//! cargo run --example echo
//! nc 127.0.0.1 8080               # type a line: it comes back with the generation's number
//! kill -HUP $(pgrep -n echo)      # upgrade: a second later the connection is asked to leave, within 30 s
//! nc 127.0.0.1 8080               # another connection: generation 2
//! kill -TERM $(pgrep -n echo)     # stop
//! ```

use std::time::Duration;

use handover::drain::Signal;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8080".into());
    // The default is ten seconds; one is for trying this out.
    let bake = Duration::from_secs(1);
    let mut starting = handover::builder().bake(bake).start().await?;
    let listener = starting.listen_tcp("echo", address).await?;
    println!("listening on {}", listener.local_addr());
    let generation = starting.ready().await?;

    let limit = Duration::from_secs(30);
    let class = generation.drain().class_with_deadline("connection", limit);
    let mut draining = std::pin::pin!(generation.draining());
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => accepted?,
            () = &mut draining => break,
        };
        // A client that leaves in the middle of a line is no failure of ours, so its error is dropped.
        let work = echo(stream, generation.number(), class.signal());
        tokio::spawn(class.track(peer.to_string(), work));
    }
    println!("left behind: {:?}", generation.drained().await.stragglers);
    Ok(())
}

async fn echo(mut stream: TcpStream, number: u64, signal: Signal) -> std::io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    let mut was_told = false;
    loop {
        let answer = tokio::select! {
            line = lines.next_line() => match line? {
                Some(line) => format!("{line} from generation {number}\n"),
                None => return Ok(()),
            },
            () = signal.draining(), if !was_told => {
                was_told = true;
                let left = signal.time_left().unwrap_or_default().as_secs_f32();
                format!("please leave within {left:.1} s\n")
            }
        };
        writer.write_all(answer.as_bytes()).await?;
    }
}
