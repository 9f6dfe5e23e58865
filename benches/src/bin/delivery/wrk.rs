//! One run of wrk.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// Makes requests of the paths in the file that the first argument names, in turn or at random,
/// and says at the end what happened in one line. Each thread begins elsewhere in the list.
const SCRIPT: &str = r#"
local requests, turn, random = {}, 0, false
function init(args)
  random = args[2] == "random"
  if args[3] then wrk.headers["If-None-Match"] = args[3] end
  for path in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("GET", path)
  end
  math.randomseed(tonumber(tostring({}):sub(8), 16))
  turn = math.random(#requests)
end
function request()
  turn = random and math.random(#requests) or turn % #requests + 1
  return requests[turn]
end
function done(summary, latency)
  local e = summary.errors
  print(string.format("RESULT %d %d %d %d %d %d", summary.duration, summary.requests, summary.bytes,
    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"#;

/// Threads that send.
const THREADS: usize = 2;

/// What to do.
pub struct Load<'a> {
    /// Connections at once.
    pub connections: usize,
    /// How long.
    pub duration: Duration,
    /// The paths to ask for.
    pub paths: &'a [String],
    /// Whether at random rather than in turn.
    pub random: bool,
    /// The `ETag` that the client has.
    pub known: Option<&'a str>,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Answers per second.
    pub rate: f64,
    /// Bytes per second, heads counted.
    pub bytes: f64,
    /// Latency, in ms.
    pub p50: f64,
    /// The same.
    pub p99: f64,
}

impl Load<'_> {
    /// Runs it against `url`. Fails if a single request did.
    pub async fn run(&self, url: &str) -> Result<Run> {
        let folder = tempfile::Builder::new().prefix("safelight-wrk-").tempdir()?;
        let (script, paths) = (folder.path().join("script.lua"), folder.path().join("paths"));
        std::fs::write(&script, SCRIPT)?;
        std::fs::write(&paths, self.paths.join("\n") + "\n")?;
        let mut command = self.command(url, &script, &paths);
        let output = tokio::task::spawn_blocking(move || command.output())
            .await?
            .context("is wrk installed? scripts/setup.sh bench-delivery")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let line = said.lines().find_map(|line| line.strip_prefix("RESULT "));
        let error = String::from_utf8_lossy(&output.stderr);
        let line = line.with_context(|| format!("wrk: {said}{error}"))?;
        let figures: Vec<f64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [micros, requests, bytes, p50, p99, errors] = figures[..] else {
            anyhow::bail!("wrk: {line}")
        };
        ensure!(errors < 0.5, "{errors} requests failed: {said}");
        let seconds = micros / 1e6;
        Ok(Run { rate: requests / seconds, bytes: bytes / seconds, p50: p50 / 1e3, p99: p99 / 1e3 })
    }

    fn command(&self, url: &str, script: &Path, paths: &Path) -> Command {
        let mut command = Command::new("wrk");
        command.arg(format!("-t{}", THREADS.min(self.connections)));
        command.arg(format!("-c{}", self.connections));
        command.arg(format!("-d{}s", self.duration.as_secs()));
        command.args(["--timeout", "30s", "-s"]).arg(script).arg(url).arg("--").arg(paths);
        command.arg(if self.random { "random" } else { "turn" });
        command.args(self.known).stdin(Stdio::null());
        command
    }
}
