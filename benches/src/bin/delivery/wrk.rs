//! One run of wrk.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// Requests the paths in the file that the first argument names, in turn or at random, and prints the
/// results in one line. Each thread starts at a different path.
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

/// Threads of wrk.
const THREADS: usize = 2;

/// The load to generate.
pub struct Load<'a> {
    /// Concurrent connections.
    pub connections: usize,
    /// Duration.
    pub duration: Duration,
    /// The requested paths.
    pub paths: &'a [String],
    /// Whether paths are chosen at random instead of in turn.
    pub random: bool,
    /// The value of `If-None-Match`.
    pub etag: Option<&'a str>,
}

/// The results of a run.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Responses per second.
    pub rate: f64,
    /// Bytes per second, including headers.
    pub bytes: f64,
    /// Median latency in ms.
    pub p50: f64,
    /// 99th percentile of the latency in ms.
    pub p99: f64,
}

impl Load<'_> {
    /// Runs wrk against `url`. Fails if any request failed.
    pub async fn run(&self, url: &str) -> Result<Run> {
        let folder = tempfile::Builder::new().prefix("safelight-wrk-").tempdir()?;
        let (script, paths) = (folder.path().join("script.lua"), folder.path().join("paths"));
        std::fs::write(&script, SCRIPT)?;
        std::fs::write(&paths, self.paths.join("\n") + "\n")?;
        let mut command = self.command(url, &script, &paths);
        let output = tokio::task::spawn_blocking(move || command.output())
            .await?
            .context("is wrk installed? scripts/setup.sh bench-delivery")?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        let line = stdout.lines().find_map(|line| line.strip_prefix("RESULT "));
        let stderr = String::from_utf8_lossy(&output.stderr);
        let line = line.with_context(|| format!("wrk: {stdout}{stderr}"))?;
        let figures: Vec<f64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [micros, requests, bytes, p50, p99, errors] = figures[..] else {
            anyhow::bail!("wrk: {line}")
        };
        ensure!(errors < 0.5, "{errors} requests failed: {stdout}");
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
        command.args(self.etag).stdin(Stdio::null());
        command
    }
}
