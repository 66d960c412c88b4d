//! The live view's terminal: draws, listens to the service and to the keyboard, and leaves the terminal as it was.

use std::io::{self, IsTerminal};
use std::time::Duration;

use handover::control::{Client, Happened, Reply, Request};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::exit::Exit;
use crate::following::Following;
use crate::output::Output;
use crate::view::View;

/// How often the service is asked how it is.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) async fn watch(output: Output, client: Client) -> Exit {
    if output.json || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let message = "the live view needs a terminal; `events` and `status` do not";
        return output.trouble("error", message, Exit::Usage);
    }
    // Before the terminal is taken over: its answer is for the shell.
    if let Err(error) = client.ask(&Request::Status).await {
        return output.error(&error);
    }
    let outcome = match Screen::take() {
        Ok(mut screen) => screen.show(&client).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => Exit::Reached,
        Err(error) => output.trouble("error", &format!("the terminal: {error}"), Exit::Usage),
    }
}

/// The terminal, given back whatever happens: an error that is returned past it must not leave a raw one behind.
struct Screen(DefaultTerminal);

impl Screen {
    fn take() -> io::Result<Self> {
        ratatui::try_init().map(Self)
    }

    async fn show(&mut self, client: &Client) -> io::Result<()> {
        let mut view = View::default();
        let mut keys = keys();
        let mut happened = listen(client.clone());
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            self.0.draw(|frame| view.draw(frame))?;
            tokio::select! {
                _ = looks.tick() => look(client, &mut view).await,
                Some(happened) = happened.recv() => view.add(&happened),
                key = keys.recv() => match key {
                    Some(Key::Redraw) => {}
                    Some(Key::Quit) | None => return Ok(()),
                },
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

async fn look(client: &Client, view: &mut View) {
    let client = client.clone().deadline(LOOK);
    match client.ask(&Request::Status).await {
        Ok(Reply::Status(status)) => view.set_status(*status),
        Ok(_) => {}
        Err(error) => return view.set_trouble(format!("nobody answers: {error:?}")),
    }
    if let Ok(Reply::Generations { generations }) = client.ask(&Request::Generations).await {
        view.set_generations(generations);
    }
}

/// Goes on listening when the service is back.
fn listen(client: Client) -> mpsc::Receiver<Happened> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        while !sender.is_closed() {
            if let Ok(mut following) = Following::begin(&client).await {
                while let Ok(happened) = following.next().await {
                    if sender.send(happened).await.is_err() {
                        return;
                    }
                }
            }
            sleep(LOOK).await;
        }
    });
    receiver
}

enum Key {
    Quit,
    Redraw,
}

/// On a thread, which ends with the process: reading the keyboard blocks.
fn keys() -> mpsc::Receiver<Key> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            let key = match event {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    let is_interrupt = key.modifiers.contains(KeyModifiers::CONTROL)
                        && key.code == KeyCode::Char('c');
                    match key.code {
                        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
                        _ if is_interrupt => Key::Quit,
                        _ => continue,
                    }
                }
                Event::Resize(..) => Key::Redraw,
                _ => continue,
            };
            if sender.blocking_send(key).is_err() {
                return;
            }
        }
    });
    receiver
}
