//! Drives a server that runs already: `drive ADDRESS [SECONDS [FILE.svg]]`.

use std::error::Error;
use std::io::{self, Write};
use std::time::Duration;

use handover_load::{Load, Mix};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().ok_or("no address given")?.parse()?;
    let seconds = arguments.next().map_or(Ok(10), |text| text.parse())?;
    let load = Load::start(server, Mix::standard());
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let report = load.stop().await;
    if let Some(path) = arguments.next() {
        std::fs::write(path, report.timeline.svg())?;
    }
    writeln!(io::stdout(), "{}\n{report}", report.timeline.plot(100))?;
    Ok(())
}
