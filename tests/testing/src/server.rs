//! `safelight` servers, and commands that run to their end.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{process::Guarded, wait::blocking_eventually};

/// How long a server may take to start on a busy machine.
const START_LIMIT: Duration = Duration::from_mins(1);

/// A server prints this, followed by its URL, when it is ready.
const LISTENING: &str = "listening on ";

/// The program that a tool runs: `chosen`, or the one in the directory of the tool.
pub fn find_binary(chosen: Option<&Path>) -> Result<PathBuf> {
    let binary = match chosen {
        Some(binary) => binary.to_owned(),
        None => std::env::current_exe()?.with_file_name("safelight"),
    };
    ensure!(binary.exists(), "no {}; hint: cargo build --release", binary.display());
    Ok(binary)
}

/// A command that runs `binary` with `args`. Of all Safelight, AWS and OpenTelemetry variables it gets only
/// those in `env`, so the environment of the test does not affect it.
pub fn safelight<A: AsRef<std::ffi::OsStr>>(
    binary: &Path,
    args: impl IntoIterator<Item = A>,
    env: &[(String, String)],
) -> Command {
    let mut command = Command::new(binary);
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        if ["SAFELIGHT_", "AWS_", "OTEL_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(&key);
        }
    }
    command.args(args).envs(env.iter().map(|(key, value)| (key, value))).stdin(Stdio::null());
    command
}

/// Variables for [`safelight`].
pub fn owned(env: &[(&str, &str)]) -> Vec<(String, String)> {
    env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A running `safelight` process. Dropping it ends it with SIGTERM, and after 5 s with SIGKILL.
pub struct Server {
    process: Guarded,
    log: PathBuf,
    url: Option<String>,
}

impl Server {
    /// Starts a process that serves HTTP, and waits until it prints its URL.
    pub fn start(command: Command) -> Result<Self> {
        let mut server = Self::spawn(command)?;
        let log = server.log.clone();
        blocking_eventually(START_LIMIT, "safelight listens", || {
            server.url = after_listening(&server.output()).map(str::to_owned);
            if server.url.is_none()
                && let Some(status) = server.process.child().try_wait()?
            {
                bail!("safelight ended with {status} instead of listening");
            }
            Ok(server.url.is_some())
        })
        .with_context(|| fs::read_to_string(log).unwrap_or_default())?;
        Ok(server)
    }

    /// Starts a process without waiting for its URL.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("safelight-run-").tempdir()?.keep();
        let log = folder.join("log");
        let file = File::create(&log)?;
        command.stdout(file.try_clone()?).stderr(file);
        let process = Guarded::spawn(&mut command, "TERM", &folder)?;
        Ok(Self { process, log, url: None })
    }

    /// Its URL, such as `http://127.0.0.1:40123`; empty if it serves no HTTP.
    pub fn url(&self) -> &str {
        self.url.as_deref().unwrap_or_default()
    }

    /// All its output so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Whether it is still running.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.child().try_wait()?.is_none())
    }

    /// Sends a signal by name, such as `TERM`, `STOP` or `CONT`.
    pub fn signal(&self, signal: &str) -> Result<()> {
        self.process.signal(signal)
    }

    /// Kills it with SIGKILL, and waits until it has ended.
    pub fn kill(&mut self) -> Result<()> {
        self.process.signal("KILL")?;
        self.process.child().wait()?;
        Ok(())
    }

    /// Waits until its output contains `text`.
    pub fn wait_for_output(&mut self, text: &str, limit: Duration) -> Result<()> {
        let what = format!("the output contains {text:?}");
        let found = blocking_eventually(limit, &what, || Ok(self.output().contains(text)));
        found.with_context(|| self.output())
    }

    /// Waits until it has ended.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.process.wait(limit).with_context(|| self.output())
    }
}

/// The URL after [`LISTENING`], once its line is complete. Color codes may surround it.
fn after_listening(output: &str) -> Option<&str> {
    let (_, rest) = output.split_once(LISTENING)?;
    let scheme = ["http://", "https://"].into_iter().find(|scheme| rest.starts_with(scheme))?;
    let address = &rest[scheme.len()..];
    let end = address.find(|c: char| !(c.is_ascii_digit() || ".:[]abcdef".contains(c)))?;
    Some(&rest[..scheme.len() + end])
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// Fails with all its output, unless it exited with 0.
    pub fn success(self) -> Result<Self> {
        if self.code == Some(0) {
            return Ok(self);
        }
        bail!("exit code {:?}\n{}{}", self.code, self.stdout, self.stderr)
    }
}

/// Runs a command to its end; ends it and fails after `limit`.
pub fn run(mut command: Command, limit: Duration) -> Result<Finished> {
    let folder = tempfile::Builder::new().prefix("safelight-run-").tempdir()?.keep();
    let (out, err) = (folder.join("out"), folder.join("err"));
    command.stdout(File::create(&out)?).stderr(File::create(&err)?);
    let mut process = Guarded::spawn(&mut command, "TERM", &folder)?;
    let status = process.wait(limit);
    let status = status.with_context(|| fs::read_to_string(&err).unwrap_or_default())?;
    let read = |path: &Path| fs::read_to_string(path).context("the command's output");
    Ok(Finished { code: status.code(), stdout: read(&out)?, stderr: read(&err)? })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn address_is_read_only_from_complete_line() {
        assert_eq!(after_listening("INFO listening on http://127.0.0.1:80"), None);
        let output = "INFO listening on http://127.0.0.1:8080\nmore";
        assert_eq!(after_listening(output), Some("http://127.0.0.1:8080"));
        let output = "listening on https://[::1]:80\u{1b}[0m\n";
        assert_eq!(after_listening(output), Some("https://[::1]:80"));
    }

    #[test]
    fn failed_start_reports_server_output() {
        let Err(error) = Server::start(sh("echo 'no disk' >&2; exit 1")) else {
            panic!("must not start")
        };
        assert!(error.to_string().contains("no disk"), "{error}");
    }

    #[test]
    fn killed_server_leaves_no_process_and_no_folder() -> Result<()> {
        let mut server = Server::start(sh("echo listening on http://127.0.0.1:1; sleep 60"))?;
        assert_eq!(server.url(), "http://127.0.0.1:1");
        let folder = server.process.folder().to_owned();
        server.kill()?;
        assert!(!server.is_running()?);
        let started = Instant::now();
        drop(server);
        assert!(!folder.exists());
        assert!(started.elapsed() < Duration::from_secs(3), "dropping a dead process is fast");
        Ok(())
    }

    #[test]
    fn dropped_server_has_time_to_end() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("file");
        let script = format!(
            "trap 'sleep 0.3; echo bye > {}; exit' TERM
             echo listening on http://127.0.0.1:1
             while :; do sleep 0.05; done",
            file.display()
        );
        drop(Server::start(sh(&script))?);
        assert_eq!(fs::read_to_string(&file)?, "bye\n");
        Ok(())
    }

    #[test]
    fn run_returns_both_streams_and_exit_code() -> Result<()> {
        let finished = run(sh("echo data; echo message >&2; exit 2"), Duration::from_secs(20))?;
        assert_eq!(
            (finished.code, finished.stdout.as_str(), finished.stderr.as_str()),
            (Some(2), "data\n", "message\n")
        );
        Ok(())
    }
}
