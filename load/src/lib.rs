//! Load and process harness for handover: the demo, the process tests and the benches stand on it.
//!
//! [`Load`] drives a server with a [`Mix`] of clients and counts every failure by kind, without ever retrying one.
//! [`Server`] holds a server under test with all its generations: reads what they print, signals them, and leaves none
//! behind. [`routes::app`] is what such servers answer.
//!
//! ```no_run
//! # use std::{process::Command, time::Duration};
//! # use handover_load::{Load, Mix, Server, Signal};
//! # async fn example() -> std::io::Result<()> {
//! let server = Server::spawn(Command::new("target/debug/testd"))?;
//! let web = server.address("web", Duration::from_secs(10)).await?;
//! let load = Load::start(web, Mix::standard());
//! server.signal(Signal::HUP)?;
//! load.until_answers(2, 100, Duration::from_secs(10)).await?;
//! let report = load.stop().await;
//! assert_eq!(report.failures(), 0, "{report}\n{}", server.log());
//! # Ok(())
//! # }
//! ```

mod client;
mod histogram;
mod kind;
mod load;
mod mix;
pub mod process;
mod recorder;
mod report;
pub mod routes;
mod sides;
mod timeline;

pub use histogram::Histogram;
pub use kind::{Failure, Kind};
pub use load::Load;
pub use mix::{Clients, Mix};
pub use process::{Server, Signal};
pub use recorder::Progress;
pub use report::{Generation, KindReport, Report, Sample, brief, grouped};
pub use sides::{Sides, SidesReport};
pub use timeline::{Bin, Mark, MarkKind, Timeline};
