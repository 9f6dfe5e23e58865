//! Child processes that never outlive their parent, even if it is killed.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::wait::blocking_eventually;

/// Waits until its standard input is closed, then ends the process group `$1` (with signal `$2`, after 5 s
/// with SIGKILL) and removes the folder `$3`.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
read -r _
kill -s "$2" -- "-$1" 2>/dev/null
n=0
while kill -s 0 -- "-$1" 2>/dev/null && [ $n -lt 100 ]; do n=$((n + 1)); sleep 0.05; done
kill -s KILL -- "-$1" 2>/dev/null
rm -rf -- "$3"
"#;

/// A process with its own process group and folder. Dropping it ends the group and removes the folder. If
/// this process dies, even by `kill -9`, a watchdog does the same.
pub struct Guarded {
    child: Child,
    folder: PathBuf,
    watchdog: Child,
    lifeline: Option<ChildStdin>,
}

impl Guarded {
    /// Starts `command` in its own process group. `stop` is the signal that ends it cleanly, such as `TERM`.
    /// `folder` is removed afterwards.
    pub fn spawn(command: &mut Command, stop: &str, folder: &Path) -> Result<Self> {
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog", &child.id().to_string(), stop])
            .arg(folder)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the watchdog")?;
        let lifeline = watchdog.stdin.take();
        Ok(Self { child, folder: folder.to_owned(), watchdog, lifeline })
    }

    /// Starts a server that logs to the file `log` in `folder`, and waits for at most `limit` until it is
    /// `ready`. Messages call it `name`.
    pub fn serving(
        name: &str,
        command: &mut Command,
        folder: &Path,
        limit: Duration,
        ready: impl Fn() -> bool,
    ) -> Result<Self> {
        let log = folder.join("log");
        let output = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut server = Self::spawn(command, "TERM", folder)
            .with_context(|| format!("is {name} installed? see scripts/setup.sh"))?;
        blocking_eventually(limit, &format!("{name} is ready"), || {
            ensure!(server.child.try_wait()?.is_none(), "{name} has ended");
            Ok(ready())
        })
        .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(server)
    }

    /// The process itself, for example to read from its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for at most `limit` until it has ended.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let mut status = None;
        blocking_eventually(limit, "the process has ended", || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        status.context("a status")
    }

    /// The id of the process and of its group.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Sends a signal by name (`KILL`, `STOP`, `CONT`, `TERM`) to the whole group.
    pub fn signal(&self, signal: &str) -> Result<()> {
        Command::new("kill")
            .args(["-s", signal, "--", &format!("-{}", self.id())])
            .status()
            .context("kill")?;
        Ok(())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        // The child first: until it is reaped, its group exists for the watchdog.
        let _ = self.child.wait();
        let _ = self.watchdog.wait();
    }
}

/// A TCP port on 127.0.0.1 that was free when this was called.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The peak resident memory of a process, in MiB.
pub fn peak_mib(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("VmHWM")?;
    let kib: u64 = line.split_whitespace().nth(1).context("VmHWM")?.parse()?;
    Ok(kib / 1024)
}

/// The processor time of a process, in seconds.
pub fn cpu_seconds(process: u32) -> Result<f64> {
    times(process, 2)
}

/// Adds up the first `count` of: user and system time of a process, and of its ended children, in seconds.
fn times(process: u32, count: usize) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    // The fields 14 to 17, in hundredths of a second: proc_pid_stat(5)
    let times = fields.split_whitespace().skip(11).take(count).map(str::parse::<f64>);
    Ok(times.sum::<Result<f64, _>>()? / 100.0)
}

/// The processor time of a process and of all that it started, in seconds.
pub fn family_cpu_seconds(process: u32) -> Result<f64> {
    let mut seconds = times(process, 4)?;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let children = fs::read_to_string(task?.path().join("children"))?;
        for child in children.split_whitespace() {
            // Otherwise it has just ended, and counts as such.
            seconds += family_cpu_seconds(child.parse()?).unwrap_or_default();
        }
    }
    Ok(seconds)
}

/// The seconds that all processors together were busy since the machine started.
pub fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat")?;
    // user, nice, system, idle, iowait, irq, softirq, … in hundredths of a second: proc_stat(5)
    let times = line.split_whitespace().skip(1).take(7).map(str::parse);
    let times: Vec<f64> = times.collect::<Result<_, _>>().context("/proc/stat")?;
    let idle: f64 = times.iter().skip(3).take(2).sum();
    Ok((times.iter().sum::<f64>() - idle) / 100.0)
}
