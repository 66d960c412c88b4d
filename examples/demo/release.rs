//! Releases of the service, each with its own way to be good or bad, and how they are deployed: a `current` link.

use std::error::Error;
use std::fs;
use std::future::ready;
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::map_response;
use axum::response::Response;
use handover::Serving;
use tempfile::TempDir;

use crate::news::{self, What};

/// One build of the service. The demo deploys them in order, so that release vN runs as generation N.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Release {
    pub(crate) version: u64,
    pub(crate) conduct: Conduct,
}

/// How a release behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conduct {
    Good,
    NeverReady,
    Crashes,
    DoesNotStart,
    Fails,
}

/// How an upgrade ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Committed,
    Aborted,
    RolledBack,
    Refused,
}

impl Release {
    /// The release that this process was started from: what `current` pointed to.
    pub(crate) fn running() -> Result<Self, Box<dyn Error>> {
        let current = std::env::args_os().next().ok_or("no argv[0]")?;
        let target = fs::read_link(current)?;
        let name = target.file_name().and_then(|name| name.to_str());
        Ok(name.and_then(Self::named).ok_or("not a release")?)
    }

    /// v6 fails here.
    pub(crate) fn read_config(self) -> Result<(), Box<dyn Error>> {
        if self.conduct != Conduct::DoesNotStart {
            return Ok(());
        }
        eprintln!("{self}: reading shop.toml");
        Err(format!("{self}: shop.toml:12: unknown key `worker_treads`").into())
    }

    /// v3 never gets through this.
    pub(crate) async fn warm_up(self) {
        if self.conduct == Conduct::NeverReady {
            eprintln!("{self}: waiting for the database at 10.0.0.7:5432");
            std::future::pending::<()>().await;
        }
    }

    /// v5 does not survive this.
    pub(crate) async fn settle_in(self, generation: Serving) {
        if self.conduct != Conduct::Crashes {
            return;
        }
        tokio::time::sleep(CRASHES_AFTER).await;
        eprintln!("{self}: corrupted cache entry, giving up");
        // A core file would help nobody, and writing it keeps the sockets open: prctl(2), PR_SET_DUMPABLE.
        let _ = nix::sys::prctl::set_dumpable(false);
        let progress = generation.drain().progress();
        let classes = progress.classes.iter();
        let held = classes.map(|class| (class.name.to_owned(), class.in_flight));
        let held = held.collect();
        news::say(generation.number(), What::Crashes { held });
        std::process::abort();
    }

    /// v7 answers requests with errors, once it has been up for a while.
    pub(crate) fn spoil(self, app: Router) -> Router {
        if self.conduct != Conduct::Fails {
            return app;
        }
        let (up_since, requests) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        app.layer(map_response(move |mut response: Response| {
            let request = requests.fetch_add(1, Relaxed);
            if up_since.elapsed() > FAILS_AFTER && request.is_multiple_of(FAILS_ONE_IN) {
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            }
            ready(response)
        }))
    }

    fn named(name: &str) -> Option<Self> {
        let (version, conduct) = name.strip_prefix('v')?.split_once('-')?;
        let conduct = Conduct::ALL
            .into_iter()
            .find(|known| known.name() == conduct)?;
        Some(Self {
            version: version.parse().ok()?,
            conduct,
        })
    }
}

impl std::fmt::Display for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "v{}", self.version)
    }
}

impl Conduct {
    const ALL: [Self; 5] = [
        Self::Good,
        Self::NeverReady,
        Self::Crashes,
        Self::DoesNotStart,
        Self::Fails,
    ];

    /// What must become of the upgrade to such a release.
    pub(crate) fn expected(self) -> Ending {
        match self {
            Self::Good => Ending::Committed,
            Self::NeverReady | Self::DoesNotStart | Self::Fails => Ending::Aborted,
            Self::Crashes => Ending::RolledBack,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::NeverReady => "never-ready",
            Self::Crashes => "crashes",
            Self::DoesNotStart => "does-not-start",
            Self::Fails => "fails",
        }
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Committed => "committed",
            Self::Aborted => "aborted",
            Self::RolledBack => "rolled back",
            Self::Refused => "refused",
        })
    }
}

/// Where releases are deployed.
#[derive(Debug)]
pub(crate) struct Site(TempDir);

impl Site {
    pub(crate) fn new() -> io::Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("handover-demo-")
            .tempdir()?;
        fs::create_dir(directory.path().join("releases"))?;
        Ok(Self(directory))
    }

    /// The program that the service is started as.
    pub(crate) fn current(&self) -> PathBuf {
        self.0.path().join("current")
    }

    /// Where the service is asked how it is.
    pub(crate) fn control(&self) -> PathBuf {
        self.0.path().join("control.sock")
    }

    /// Points `current` to a release in one step, as a deployment would.
    pub(crate) fn deploy(&self, release: Release) -> io::Result<()> {
        let name = format!("v{}-{}", release.version, release.conduct.name());
        let (image, next) = (
            self.0.path().join("releases").join(name),
            self.0.path().join("next"),
        );
        symlink(std::env::current_exe()?, &image)?;
        symlink(image, &next)?;
        fs::rename(next, self.current())
    }
}

const CRASHES_AFTER: Duration = Duration::from_secs(1);
const FAILS_AFTER: Duration = Duration::from_millis(1_800);
const FAILS_ONE_IN: u64 = 20;
