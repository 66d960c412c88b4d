//! State beside sockets: a cache that may be a little old goes with the offer, and a counter that must be exact goes at
//! the flip, when nothing can change it any more.
//!
//! ```sh
//! cargo run --example state
//! nc 127.0.0.1 8080               # ticket 1, price 97, cached by generation 1, sold by generation 1
//! kill -HUP $(pgrep -n state)     # upgrade: the count goes on, and the cache is still the first one's
//! nc 127.0.0.1 8080               # ticket 2, price 97, cached by generation 1, sold by generation 2
//! kill -TERM $(pgrep -n state)    # stop
//! ```
//!
//! A rollback goes on from the incumbent's own count: what the successor sold is sold again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::AsyncWriteExt;

// One thread, so that nothing comes between accepting a connection and counting it, least of all a flip.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8080".into());
    // The default is ten seconds; one is for trying this out.
    let bake = Duration::from_secs(1);
    let mut starting = handover::builder().bake(bake).start().await?;
    let office = starting.listen_tcp("office", address).await?;
    println!("listening on {}", office.local_addr());
    let offered = starting.state().blob("cache")?;
    let generation = starting.ready().await?;

    let number = generation.number();
    let cache =
        offered.unwrap_or_else(|| format!("price 97, cached by generation {number}").into());
    let passed = generation.state().blob("sold")?.unwrap_or_default();
    let sold = Arc::new(AtomicU64::new(
        String::from_utf8(passed)?.parse().unwrap_or(0),
    ));
    let (cache_to_offer, sold_by_flip) = (cache.clone(), Arc::clone(&sold));
    generation.on_offer(move |offer| {
        offer.blob("cache", &cache_to_offer);
        Ok(())
    });
    generation.on_flip(move |offer| {
        offer.blob("sold", sold_by_flip.load(SeqCst).to_string());
        Ok(())
    });

    let cache = String::from_utf8(cache)?;
    let class = generation.class("sale");
    let mut draining = std::pin::pin!(generation.draining());
    loop {
        let (mut stream, peer) = tokio::select! {
            accepted = office.accept() => accepted?,
            () = &mut draining => break,
        };
        let ticket = sold.fetch_add(1, SeqCst) + 1;
        let text = format!("ticket {ticket}, {cache}, sold by generation {number}\n");
        tokio::spawn(class.track(peer.to_string(), async move {
            stream.write_all(text.as_bytes()).await
        }));
    }
    generation.drained().await;
    Ok(())
}
