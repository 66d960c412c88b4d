//! A pool of workers, in the foreground: its log is standard error.

use std::path::PathBuf;

use crate::arguments::Run;
use crate::exit::Exit;
use crate::output::Output;
use crate::text;

pub(crate) async fn supervise(output: Output, run: Run, control: Option<PathBuf>) -> Exit {
    let Some(builder) = run.builder() else {
        return output.trouble("error", "which program?", Exit::Usage);
    };
    let builder = match control {
        Some(path) => builder.control(path),
        None => builder,
    };
    let mut pool = match builder.start().await {
        Ok(pool) => pool,
        Err(error) => return output.error(&error),
    };
    let mut events = pool.events();
    let log = tokio::spawn(async move {
        while let Some(happened) = events.next().await {
            let is_last = text::is_end(&happened);
            output.log(&happened, || text::happened(&happened));
            if is_last {
                return;
            }
        }
    });
    pool.stopped().await;
    // It ends with the last event, which is there by now.
    let _ = log.await;
    Exit::Reached
}
