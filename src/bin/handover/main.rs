//! `handover`: asks a running service how it is, and upgrades, rolls back and stops it, over its control socket; and runs
//! pools of workers.

mod arguments;
mod commands;
mod curves;
mod exit;
mod following;
mod log;
mod output;
mod progress;
mod schema;
mod supervise;
mod text;
mod view;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use self::arguments::Arguments;
use self::exit::Exit;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors. The others must not end with the 2 that clap has for them, which means
            // here that the service refused.
            let exit = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Reached
            };
            // Without a standard error there is nobody to tell.
            let _ = error.print();
            return exit.into();
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(commands::run(arguments)),
        Err(error) => {
            output::complain(&format!("no runtime: {error}"));
            Exit::Usage.into()
        }
    }
}
