//! A PostgreSQL server of the test's own, from the Debian package `postgresql`: in a temporary directory, on a Unix socket
//! alone unless a test wants TLS, run by nobody.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};

/// What bounds its start.
const PATIENCE: Duration = Duration::from_secs(60);
/// The user of Linux systems that owns nothing (nobody).
const NOBODY: u32 = 65_534;

pub(crate) struct Server {
    room: TempDir,
    programs: PathBuf,
    /// Where it listens beside its Unix socket.
    address: Option<IpAddr>,
    process: Option<Child>,
}

impl Server {
    /// None, which it says, where there is no PostgreSQL.
    pub(crate) async fn start() -> Option<Self> {
        let mut server = Self::make()?;
        server.restart().await;
        Some(server)
    }

    /// The same, on an address too, with this certificate and key (PEM): there it lets in only who speaks TLS.
    pub(crate) async fn start_with_tls(
        address: IpAddr,
        certificate: &str,
        key: &str,
    ) -> Option<Self> {
        let mut server = Self::make()?;
        server.address = Some(address);
        server.put("server.crt", certificate);
        server.put("server.key", key);
        let who = "local all all trust\nhostssl all all all trust\n";
        server.put("pg_hba.conf", who);
        server.restart().await;
        Some(server)
    }

    fn make() -> Option<Self> {
        let Some(programs) = programs() else {
            eprintln!("skipped: the Debian package postgresql is not installed");
            return None;
        };
        let room = tempfile::tempdir().unwrap();
        own(room.path(), 0o700);
        let server = Self {
            room,
            programs,
            address: None,
            process: None,
        };
        let made = server
            .command("initdb")
            .args([
                "--username=app",
                "--auth=trust",
                "--no-sync",
                "--encoding=UTF8",
            ])
            .arg("--locale=C")
            .arg(server.data())
            .stdout(Stdio::null())
            .status();
        assert!(made.unwrap().success());
        Some(server)
    }

    /// A file of the server's own, beside its data.
    fn put(&self, name: &str, text: &str) {
        let path = self.data().join(name);
        fs::write(&path, text).unwrap();
        own(&path, 0o600);
    }

    pub(crate) async fn restart(&mut self) {
        let address = self.address.map(|address| address.to_string());
        let listens = format!("listen_addresses={}", address.as_deref().unwrap_or(""));
        let encrypts = format!("ssl={}", address.is_some());
        let mut command = self.command("postgres");
        command
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.room.path())
            .args(["-c", &listens, "-c", &encrypts, "-c", "fsync=off"])
            .args(["-c", "logging_collector=off"])
            .stderr(Stdio::null());
        self.process = Some(command.spawn().unwrap());
        let up = async {
            while self.try_connect("postgres").await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, up).await.unwrap();
    }

    /// At once, with whatever its clients were doing.
    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // SIGQUIT, which its own processes get from it (postgres(1)).
            let pid = rustix::process::Pid::from_child(&process);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
            let _ = process.wait();
        }
    }

    /// How to connect to a new database.
    pub(crate) async fn database(&self, name: &str) -> String {
        let client = self.connect("postgres").await;
        let sql = format!("CREATE DATABASE {name}");
        client.batch_execute(&sql).await.unwrap();
        self.config(name)
    }

    pub(crate) async fn connect(&self, database: &str) -> Client {
        self.try_connect(database).await.unwrap()
    }

    async fn try_connect(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(&self.config(database), NoTls).await?;
        tokio::spawn(async move {
            // Whoever waits for an answer sees that it has ended.
            let _ = connection.await;
        });
        Ok(client)
    }

    fn config(&self, database: &str) -> String {
        format!(
            "host={} user=app dbname={database}",
            self.room.path().display()
        )
    }

    fn data(&self) -> PathBuf {
        self.room.path().join("data")
    }

    /// Neither program runs as root.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(self.room.path()).stdin(Stdio::null());
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn own(path: &Path, mode: u32) {
    if rustix::process::geteuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// Of the newest version that is installed.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let versions = versions.collect::<io::Result<Vec<_>>>().ok()?;
    let programs = versions.iter().map(|version| version.path().join("bin"));
    programs.filter(|path| path.join("initdb").exists()).max()
}
