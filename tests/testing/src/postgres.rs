//! A private PostgreSQL: its own data folder, a free port on 127.0.0.1, gone with this process.

use std::{
    env,
    fs::{self, File},
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{ChildStdin, Command, Output, Stdio},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use uuid::Uuid;

use crate::{
    faketime::FakeClock,
    process::{Guarded, free_port},
    wait::blocking_eventually,
};

/// The environment variable with the port of a server that several processes share.
pub const SHARED_PORT: &str = "SAFELIGHT_TEST_POSTGRES_PORT";

/// Where Debian keeps the server's binaries, by version.
const VERSIONS: &str = "/usr/lib/postgresql";

/// Until it is ready, or has stopped. A machine under full load takes seconds.
const PATIENCE: Duration = Duration::from_mins(1);

/// Runs the server (`$@`) once per line that comes in, and leaves its exit code in the file `ended`.
/// So the group and its watchdog outlive a server that a test stops and starts again. The traps let
/// the server have the signals that are sent to the group.
const KEEPER: &str = r#"
trap : INT TERM QUIT
while read -r _; do
    "$@" </dev/null
    echo $? >ended
done
"#;

/// A running server. Dropping it stops it and removes its data.
pub struct Postgres {
    /// Starts the server again; its end ends the keeper. Dropped before `process`.
    keeper: ChildStdin,
    process: Guarded,
    binaries: PathBuf,
    port: u16,
    clock: Option<FakeClock>,
}

impl Postgres {
    /// Makes a cluster and starts it: durable as in production (fsync is on), small, without
    /// passwords. Takes about a second, in which it blocks its thread.
    pub fn start() -> Result<Self> {
        Self::start_on(&[], None, initdb)
    }

    /// Like [`Postgres::start`], on a clock that is wrong by `offset`, such as `+1h`, until
    /// [`Postgres::set_clock`].
    pub fn start_with_clock(offset: &str) -> Result<Self> {
        Self::start_on(&[], Some(offset), initdb)
    }

    /// [`Postgres::start`] with additional settings, such as `fsync=off`.
    pub fn start_with(settings: &[&str]) -> Result<Self> {
        Self::start_on(settings, None, initdb)
    }

    /// Starts a standby that follows this server. Asynchronous, unless `synchronous_standby_names` of this
    /// server is set.
    pub fn start_standby(&self) -> Result<Self> {
        Self::start_on(&[], None, |binaries, folder| {
            checked(as_server_user(&binaries.join("pg_basebackup")).current_dir(folder).args([
                "--host=127.0.0.1",
                &format!("--port={}", self.port),
                "--username=postgres",
                "--pgdata=data",
                "--wal-method=stream",
                "--checkpoint=fast",
                "--no-sync",
                "--write-recovery-conf",
            ]))
        })
    }

    /// Starts a server on the cluster that `make` puts into the folder `data` of a folder.
    fn start_on(
        settings: &[&str],
        clock: Option<&str>,
        make: impl FnOnce(&Path, &Path) -> Result<Output>,
    ) -> Result<Self> {
        let binaries = binaries()?;
        let folder = tempfile::Builder::new().prefix("safelight-postgres-").tempdir()?.keep();
        let start = || {
            give_to_server_user(&folder)?;
            make(&binaries, &folder)?;
            Self::start_in(&folder, &binaries, settings, clock)
        };
        let started = start();
        if started.is_err() {
            // Nobody guards it yet, or its guard has gone.
            let _ = fs::remove_dir_all(&folder);
        }
        started
    }

    fn start_in(
        folder: &Path,
        binaries: &Path,
        settings: &[&str],
        clock: Option<&str>,
    ) -> Result<Self> {
        let port = free_port()?;
        let clock = clock.map(|offset| FakeClock::new(folder, offset)).transpose()?;
        let mut server = as_server_user(Path::new("env"));
        // Not in the environment of `setpriv`: what root has shared, the server could not open.
        for (key, value) in clock.iter().flat_map(FakeClock::env).flatten() {
            server.arg(format!("{key}={value}"));
        }
        server.arg(binaries.join("postgres"));
        let log = File::create(folder.join("log"))?;
        let mut keeper = Command::new("sh");
        keeper
            .current_dir(folder)
            .args(["-c", KEEPER, "keeper"])
            .arg(server.get_program())
            .args(server.get_args())
            .args(["-D", "data", "-p", &port.to_string()])
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            .args(["-c", "max_connections=200", "-c", "shared_buffers=32MB"])
            .args(settings.iter().flat_map(|setting| ["-c", setting]))
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut process = Guarded::spawn(&mut keeper, "INT", folder)?;
        let keeper = process.child().stdin.take().context("the keeper's input")?;
        let binaries = binaries.to_owned();
        let mut postgres = Self { keeper, process, binaries, port, clock };
        postgres.start_again()?;
        Ok(postgres)
    }

    /// The URL of a new, empty database on the server that tests share: that of `with-engines`, or
    /// otherwise one that this process starts at the first call.
    pub async fn fresh_database() -> Result<String> {
        // Not of the process's id: a run of all tests starts so many processes that ids come again.
        let name = format!("test_{}", Uuid::new_v4().simple());
        // Not on the runtime's threads: every test may wait here, each on its own runtime.
        tokio::task::spawn_blocking(move || {
            let port = shared_port()?;
            create_database(&binaries()?, port, &name)?;
            Ok(url(port, &name))
        })
        .await?
    }

    /// The URL of a database, as sqlx reads it.
    pub fn url(&self, database: &str) -> String {
        url(self.port, database)
    }

    /// The port, for proxies before it.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sets its clock, if it was started with one of its own.
    pub fn set_clock(&self, offset: &str) -> Result<()> {
        self.clock.as_ref().context("the clock of the machine")?.set(offset)
    }

    /// Makes an empty database.
    pub fn create_database(&self, name: &str) -> Result<()> {
        create_database(&self.binaries, self.port, name)
    }

    /// Runs SQL as the superuser; returns the rows, without headers. Statements with semicolons between are
    /// transactions of their own.
    pub fn sql(&self, database: &str, statements: &str) -> Result<String> {
        let mut psql = Command::new(self.binaries.join("psql"));
        psql.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &self.port.to_string()]);
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database]);
        for statement in statements.split(';') {
            psql.args(["-c", statement]);
        }
        Ok(String::from_utf8(checked(&mut psql)?.stdout)?.trim().to_owned())
    }

    /// Changes a setting of the running server.
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        self.sql("postgres", &format!("alter system set {setting} = '{value}'"))?;
        self.sql("postgres", "select pg_reload_conf()").map(drop)
    }

    /// Makes a primary of a standby, and waits until it is one.
    pub fn promote(&self) -> Result<()> {
        let promoted = self.sql("postgres", "select pg_promote(true, 60)")?;
        ensure!(promoted == "t", "not promoted");
        Ok(())
    }

    /// Ends it as if its machine had lost power: nothing is written, and no connection is closed in order.
    pub fn kill(&self) -> Result<()> {
        // The children first: they would write once more when they miss the postmaster.
        self.signal_backends("KILL")?;
        let _ = Command::new("kill").args(["-s", "KILL", &self.postmaster()?]).status()?;
        blocking_eventually(PATIENCE, "PostgreSQL has ended", || Ok(self.ended().is_some()))
    }

    fn postmaster(&self) -> Result<String> {
        let state = fs::read_to_string(self.process.folder().join("data/postmaster.pid"))?;
        Ok(state.lines().next().context("postmaster.pid is empty")?.to_owned())
    }

    /// Stops it in good order (`INT`: connections are cut, everything is written) and waits.
    pub fn stop(&self) -> Result<()> {
        self.end("INT")
    }

    /// Stops it as a crash would (`QUIT`: nothing is written, the next start recovers) and waits.
    pub fn crash(&self) -> Result<()> {
        self.end("QUIT")
    }

    fn end(&self, signal: &str) -> Result<()> {
        self.process.signal(signal)?;
        blocking_eventually(PATIENCE, "PostgreSQL has stopped", || Ok(self.ended().is_some()))
    }

    /// Freezes every process of it (`STOP`): connections stay open, nothing answers.
    pub fn freeze(&self) -> Result<()> {
        // The postmaster first, so that it starts no more of them.
        self.process.signal("STOP")?;
        self.signal_backends("STOP")
    }

    /// Ends [`Postgres::freeze`].
    pub fn thaw(&self) -> Result<()> {
        self.signal_backends("CONT")?;
        self.process.signal("CONT")
    }

    /// The server's children are not in its process group.
    fn signal_backends(&self, signal: &str) -> Result<()> {
        let postmaster = self.postmaster()?;
        let children =
            fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"))?;
        // One of them may have ended meanwhile; the others get the signal all the same.
        let mut kill = Command::new("kill");
        kill.args(["-s", signal, "--"]).args(children.split_whitespace()).output()?;
        Ok(())
    }

    /// Starts it on its port and its data, and waits until it answers.
    pub fn start_again(&mut self) -> Result<()> {
        let _ = fs::remove_file(self.process.folder().join("ended"));
        self.keeper.write_all(b"start\n")?;
        let state = self.process.folder().join("data/postmaster.pid");
        let ready = || {
            if let Some(code) = self.ended() {
                let log = fs::read_to_string(self.process.folder().join("log"))?;
                bail!("PostgreSQL ended with {code}:\n{log}");
            }
            // Line 8 of its lock file: unlike a connection, it is surely this server's word.
            let state = fs::read_to_string(&state).unwrap_or_default();
            Ok(state.lines().nth(7).is_some_and(|line| line.trim() == "ready"))
        };
        blocking_eventually(PATIENCE, "PostgreSQL is ready", ready)
    }

    /// The exit code of a server that has ended.
    fn ended(&self) -> Option<String> {
        let code = fs::read_to_string(self.process.folder().join("ended")).ok()?;
        code.ends_with('\n').then(|| code.trim().to_owned())
    }
}

/// The port of the server that tests share.
fn shared_port() -> Result<u16> {
    static SHARED: OnceLock<Result<Postgres, String>> = OnceLock::new();
    if let Ok(port) = env::var(SHARED_PORT) {
        return port.parse().with_context(|| format!("{SHARED_PORT}={port}"));
    }
    let start = || Postgres::start().map_err(|error| format!("{error:#}"));
    match SHARED.get_or_init(start) {
        Ok(server) => Ok(server.port),
        Err(error) => Err(anyhow!(error.clone())),
    }
}

fn url(port: u16, database: &str) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/{database}")
}

fn create_database(binaries: &Path, port: u16, name: &str) -> Result<()> {
    checked(
        Command::new(binaries.join("createdb"))
            .args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port.to_string()])
            .arg(name),
    )
    .map(drop)
}

/// The folder of the newest version's programs, such as `pg_dump`.
pub fn programs() -> Result<PathBuf> {
    binaries()
}

/// The newest server's binaries.
fn binaries() -> Result<PathBuf> {
    let found = fs::read_dir(VERSIONS)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            let folder = entry.path().join("bin");
            folder.join("initdb").exists().then_some((version, folder))
        })
        .max();
    found
        .map(|(_, folder)| folder)
        .with_context(|| format!("no PostgreSQL in {VERSIONS}; hint: apt-get install postgresql"))
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// Servers refuse to run as root.
pub(crate) fn give_to_server_user(folder: &Path) -> Result<()> {
    if is_root() {
        checked(Command::new("chown").arg("postgres:").arg(folder))?;
    }
    Ok(())
}

/// The command `program`, to be run as the user that Debian's package made if this is root.
pub(crate) fn as_server_user(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

/// Runs a command to its end; its talk is shown only if it fails.
fn checked(command: &mut Command) -> Result<Output> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let talk = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", command.get_program().display(), talk.trim());
    Ok(output)
}

/// Makes an empty cluster in the folder `data` of `folder`.
fn initdb(binaries: &Path, folder: &Path) -> Result<Output> {
    checked(as_server_user(&binaries.join("initdb")).current_dir(folder).args([
        "--pgdata=data",
        "--no-sync",
        "--username=postgres",
        "--auth=trust",
        "--no-locale",
        "--encoding=UTF8",
    ]))
}
