//! Each command: ask, show the answer, and end with the code that says what became of it.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;
use std::{fs, process};

use clap::CommandFactory;
use handover::Error;
use handover::control::{Client, Fault, Reply, Request, Strategy};

use crate::arguments::{Arguments, Command};
use crate::exit::{Exit, io_kind};
use crate::following::{End, Following};
use crate::output::{Output, Paint, say};
use crate::progress::with_progress;
use crate::supervise::supervise;
use crate::{schema, text, watch};

pub(crate) async fn run(arguments: Arguments) -> Exit {
    let output = Output::new(arguments.json);
    let arguments = match arguments.command {
        Command::Run(run) => return supervise(output, *run, arguments.control).await,
        command => Arguments {
            command,
            ..arguments
        },
    };
    match &arguments.command {
        Command::Completions { shell } => return completions(*shell),
        Command::Man { directory } => return man(output, directory.as_deref()),
        _ => {}
    }
    let Some(path) = arguments.control else {
        let missing = "which service? Give --control PATH, or set HANDOVER_CONTROL";
        return output.trouble("error", missing, Exit::Usage);
    };
    let client = Client::new(path);
    match arguments.command {
        Command::Upgrade {
            strategy,
            plan,
            automatic,
            wait,
        } => {
            let plan = match plan.changes() {
                Ok(plan) => plan,
                Err(error) => return output.trouble("error", &error.to_string(), Exit::Usage),
            };
            let request = Request::Upgrade {
                wait: wait.is_wanted(),
                strategy: strategy.map(Strategy::from),
                plan,
                automatic,
            };
            await_verdict(output, &client, &request, wait.timeout).await
        }
        Command::Pause => answer(output, &client, &Request::Pause).await,
        Command::Resume => answer(output, &client, &Request::Resume).await,
        Command::Share { share } => answer(output, &client, &Request::Share { share }).await,
        Command::Promote { full, wait } => {
            let request = Request::Promote {
                wait: wait.is_wanted(),
                full,
            };
            await_verdict(output, &client, &request, wait.timeout).await
        }
        Command::Abort { undo } => {
            let request = Request::Abort {
                reason: undo.reason,
            };
            await_verdict(output, &client, &request, undo.timeout).await
        }
        Command::Rollback {
            undo,
            cold,
            no_wait,
            ..
        } => {
            let request = Request::Rollback {
                reason: undo.reason,
                cold,
                wait: !no_wait,
            };
            await_verdict(output, &client, &request, undo.timeout).await
        }
        Command::Drain {
            wait: true,
            timeout,
        } => {
            let client = client.deadline(timeout);
            answer(output, &client, &Request::Drain { wait: true }).await
        }
        Command::Verify => answer(output, &client, &Request::Verify).await,
        Command::Drill { inject, wait } => {
            let request = Request::Drill {
                inject: inject.map(Fault::from),
                wait: wait.is_wanted(),
            };
            await_verdict(output, &client, &request, wait.timeout).await
        }
        Command::Takeover { program } => takeover(output, &client, &program).await,
        Command::Status => answer(output, &client, &Request::Status).await,
        Command::Generations => answer(output, &client, &Request::Generations).await,
        Command::History => answer(output, &client, &Request::History).await,
        Command::Drain { .. } => answer(output, &client, &Request::Drain { wait: false }).await,
        Command::Schema(command) => {
            let (request, timeout) = command.request();
            let client = match timeout {
                Some(timeout) => client.deadline(timeout),
                None => client,
            };
            answer(output, &client, &request).await
        }
        Command::Stop { now } => answer(output, &client, &Request::Stop { now }).await,
        Command::Explain => answer(output, &client, &Request::Explain).await,
        Command::Events => events(output, &client).await,
        Command::Watch => watch::watch(output, client).await,
        Command::Scale { workers } => answer(output, &client, &Request::Scale { workers }).await,
        Command::Run(_) | Command::Completions { .. } | Command::Man { .. } => Exit::Usage,
    }
}

/// Does not return if it succeeds. The incumbent watches this very process, so the program must be this one.
async fn takeover(output: Output, client: &Client, program: &[OsString]) -> Exit {
    let Some((name, arguments)) = program.split_first() else {
        return output.trouble("error", "which program?", Exit::Usage);
    };
    let takeover = match client.takeover().await {
        Ok(takeover) => takeover,
        Err(error) => return output.error(&error),
    };
    let error = match takeover.leave_to_exec() {
        Ok((variable, value)) => process::Command::new(name)
            .args(arguments)
            .env(variable, value)
            .exec(),
        Err(error) => error,
    };
    let message = format!("starting {name:?}: {error}; the incumbent serves on");
    output.trouble("error", &message, Exit::Usage)
}

async fn answer(output: Output, client: &Client, request: &Request) -> Exit {
    match with_progress(output, client, client.ask(request)).await {
        Ok(reply) => show(output, request, &reply),
        Err(error) if is_late(&error) && takes_its_time(request) => {
            output.trouble("late", "the time to wait is over; it goes on", Exit::GoesOn)
        }
        Err(error) => output.error(&error),
    }
}

/// The generation that was asked may die before it has an answer, and another one serve.
async fn await_verdict(
    output: Output,
    client: &Client,
    request: &Request,
    timeout: Duration,
) -> Exit {
    let patient = client.clone().deadline(timeout);
    let asked = with_progress(output, client, patient.ask(request)).await;
    match asked {
        Ok(reply) => show(output, request, &reply),
        Err(error) if is_late(&error) => {
            let message = "the time to wait for the verdict is over; it goes on";
            output.trouble("late", message, Exit::GoesOn)
        }
        Err(error) if is_cut_off(&error) => {
            let now = match client.ask(&Request::Status).await {
                Ok(Reply::Status(status)) => {
                    format!(
                        "generation {} (pid {}) serves now",
                        status.generation, status.pid
                    )
                }
                Ok(_) | Err(_) => "nobody answers now".to_owned(),
            };
            let message = format!("the incumbent has gone without a verdict; {now}");
            output.trouble("degraded", &message, Exit::Degraded)
        }
        Err(error) => output.error(&error),
    }
}

fn show(output: Output, request: &Request, reply: &Reply) -> Exit {
    let shown = output.answer(reply, |paint| in_words(reply, paint));
    let exit = match (request, reply) {
        (
            Request::Abort { .. } | Request::Rollback { cold: false, .. },
            Reply::Verdict { upgrade },
        ) => Exit::of_undoing(upgrade),
        (_, Reply::Verdict { upgrade }) => Exit::of(upgrade),
        (_, Reply::Standby { .. } | Reply::Paused { .. } | Reply::Held { .. }) => Exit::Decide,
        (_, Reply::Verified { verification }) if !verification.passed => Exit::Degraded,
        (_, Reply::Drilled { drill }) if !drill.passed => Exit::Degraded,
        _ => Exit::Reached,
    };
    match shown {
        Ok(()) => exit,
        // Whoever reads may have had enough, as `head` does; what was asked for is done all the same.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => exit,
        Err(error) => output.trouble("error", &format!("writing the answer: {error}"), exit),
    }
}

fn in_words(reply: &Reply, paint: Paint) -> String {
    match reply {
        Reply::Status(status) => text::status(status, paint),
        Reply::Begun { generation } => format!("upgrade to generation {generation} goes on"),
        Reply::Standby { generation, pid } => {
            let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            format!("generation {generation}{pid} stands by: promote it, or abort")
        }
        Reply::Paused {
            generation,
            rollout,
        } => format!(
            "the rollout to generation {generation} waits: promote it, resume it or abort\n{}",
            text::rollout(rollout, paint)
        ),
        Reply::Held { generation, reason } => {
            format!("the update to release {generation} is held: {reason}; resume it or abort")
        }
        Reply::Done { generation } => format!("done, at generation {generation}"),
        Reply::Verdict { upgrade } => text::explain(Some(upgrade), paint),
        Reply::Explain { upgrade, underway } => {
            let rollout = underway.as_ref().and_then(|now| now.rollout.as_ref());
            let now = rollout.map(|rollout| text::rollout(rollout, paint));
            let last = text::explain(upgrade.as_deref(), paint);
            now.into_iter().chain([last]).collect::<Vec<_>>().join("\n")
        }
        Reply::Generations { generations } => text::generations(generations, paint),
        Reply::History { upgrades } => text::history(upgrades, paint),
        Reply::Drain(drain) => text::drain(drain),
        Reply::Verified { verification } => text::verification(verification, paint),
        Reply::Drilled { drill } => text::drill(drill, paint),
        Reply::Schema { schema } => schema::state(schema, paint),
        Reply::Stopping => "the service stops".to_owned(),
        other => format!("{other:?}"),
    }
}

async fn events(output: Output, client: &Client) -> Exit {
    let mut following = match Following::begin(client).await {
        Ok(following) => following,
        Err(error) => return output.error(&error),
    };
    loop {
        let happened = match following.next().await {
            Ok(happened) => happened,
            Err(End::Stopped) => return Exit::Reached,
            Err(End::Lost(error)) => {
                output.error(&error);
                return Exit::Degraded;
            }
        };
        let written = output.answer(&happened, |_| text::happened(&happened));
        if written.is_err() {
            return Exit::Reached; // nobody reads any more
        }
    }
}

fn takes_its_time(request: &Request) -> bool {
    matches!(
        request,
        Request::Drain { wait: true } | Request::Schema { .. }
    )
}

fn is_late(error: &Error) -> bool {
    io_kind(error) == Some(io::ErrorKind::TimedOut)
}

fn is_cut_off(error: &Error) -> bool {
    matches!(
        io_kind(error),
        Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
    )
}

fn completions(shell: clap_complete::Shell) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "handover", &mut script);
    written(say(String::from_utf8_lossy(&script).trim_end()))
}

fn man(output: Output, directory: Option<&Path>) -> Exit {
    let Some(directory) = directory else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(Arguments::command()).render(&mut page);
        return written(rendered.and_then(|()| say(String::from_utf8_lossy(&page).trim_end())));
    };
    let generated = fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Arguments::command(), directory));
    match generated {
        Ok(()) => Exit::Reached,
        Err(error) => {
            let message = format!("writing man pages to {}: {error}", directory.display());
            output.trouble("error", &message, Exit::Usage)
        }
    }
}

fn written(result: io::Result<()>) -> Exit {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Exit::Usage,
        _ => Exit::Reached,
    }
}
