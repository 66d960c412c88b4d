//! The server that the demo replaces: everything a service does to hand over is in `run`.

use std::error::Error;
use std::time::Duration;

use handover_load::routes::app_with;

use crate::news;
use crate::release::Release;

/// A process that finds this in its environment is a server, not the demo.
pub(crate) const MODE: &str = "DEMO_SERVER";
/// What says where the service is asked how it is.
pub(crate) const CONTROL: &str = "DEMO_CONTROL";
/// How long a release that took over is watched by a warm incumbent; short, so that the demo is.
pub(crate) const BAKE: Duration = Duration::from_millis(1500);
/// How long a release may take until it is ready.
pub(crate) const START_DEADLINE: Duration = Duration::from_millis(2000);

pub(crate) async fn run() -> Result<(), Box<dyn Error>> {
    let release = Release::running()?;
    release.read_config()?;

    let control = std::env::var_os(CONTROL).ok_or("no path for the control socket")?;
    let builder = handover::builder()
        .bake(BAKE)
        .start_deadline(START_DEADLINE)
        .control(control);
    let mut starting = builder.start().await?;
    let web = starting.listen_tcp("web", "127.0.0.1:0").await?;
    println!("listening web {}", web.local_addr());
    release.warm_up().await;

    let events = starting.events();
    let generation = starting.ready().await?;
    let telling = tokio::spawn(news::tell(generation.clone(), events));
    tokio::spawn(release.settle_in(generation.clone()));

    let on_drain = generation.clone();
    let app = app_with(generation.number(), move || on_drain.draining());
    handover::http::serve(&generation, web, release.spoil(app)).await?;
    telling.await?;
    Ok(())
}
