//! A pool of workers, in the foreground: its log is standard error.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::arguments::Run;

use crate::exit::Exit;
use crate::log::Log;
use crate::output::Output;
use crate::text;

/// Ends with what the [pool](handover::pool::Pool::exit_code) ends with.
pub(crate) async fn supervise(output: Output, run: Run, control: Option<PathBuf>) -> ExitCode {
    let Some(builder) = run.builder() else {
        return output
            .trouble("error", "which program?", Exit::Usage)
            .into();
    };
    let builder = match control {
        Some(path) => builder.control(path),
        None => builder,
    };
    let mut pool = match builder.start().await {
        Ok(pool) => pool,
        Err(error) => return output.error(&error).into(),
    };
    let mut events = pool.events();
    // Standard output is the workers'.
    let mut log = Log::on_stderr(output);
    let logged = tokio::spawn(async move {
        while let Some(happened) = events.next().await {
            let is_last = text::is_end(&happened);
            log.say(&happened);
            if is_last {
                return;
            }
        }
    });
    pool.stopped().await;
    // It ends with the last event, which is there by now.
    let _ = logged.await;
    pool.exit_code().into()
}
