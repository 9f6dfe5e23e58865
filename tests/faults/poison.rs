//! Poison: pictures that crash, hang or bloat their decoder. Also decoders that are killed.

use std::{
    collections::HashSet,
    fs,
    io::{Cursor, ErrorKind},
    net::TcpListener,
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use image::{ImageBuffer, ImageFormat, Rgba};
use safelight_testing::{
    client::{Client, TestClient as _},
    fleet::Engines,
    pictures,
    server::{Server, safelight},
};
use serde_json::Value;
use tempfile::TempDir;

use super::{FAST_RECOVERY, LIMIT, TestCluster, binary, eventually};

/// Concurrent thumbnail jobs. There are two more decoders.
const SLOTS: usize = 2;

/// Attempts of a poison picture.
const ATTEMPTS: u64 = 3;

#[tokio::test]
async fn poison_uses_only_its_own_attempts() -> Result<()> {
    let data = TempDir::new()?;
    let settings = [("DECODE_CPU_SECONDS", "1"), ("DECODE_MEMORY_BYTES", "134217728")];
    let mut server = serve(data.path(), &settings).await?;
    let client = Client::new(server.url())?;
    let poisons = [
        ("crash", "decoder_crashed"),
        ("hang", "decoder_timed_out"),
        ("spin", "decoder_timed_out"),
        ("bloat", "decoder_out_of_memory"),
    ];
    let mut poisoned = Vec::new();
    let mut good = Vec::new();
    for (number, (fault, _)) in poisons.iter().enumerate() {
        poisoned.push(client.upload(poison(fault)?).await?);
        for seed in 0..5 {
            good.push(client.upload(pictures::jpeg(320, 240, number as u64 * 10 + seed)?).await?);
        }
    }
    all_succeed_on_first_attempt(&client, &good).await?;
    for (task, (fault, code)) in poisoned.iter().zip(poisons) {
        let task = client.finished(task).await?;
        assert_eq!(task["status"], "failed", "{fault}: {task:#}");
        for job in jobs(&task) {
            assert_eq!(job["error"]["code"], code, "{fault}: {task:#}");
            assert_eq!(job["attempt"], ATTEMPTS, "{fault}: {task:#}");
        }
        // The worker's timeout ends them, or the kernel's limit of processor time those that spin.
        assert!(fault == "spin" || !used_up_processor_time(&task), "{fault}: {task:#}");
    }
    // On a busy machine, a spinning decoder may get less than a quarter of a processor until its timeout.
    let spun = async || {
        let task = client.finished(&client.upload(poison("spin")?).await?).await?;
        Ok(used_up_processor_time(&task))
    };
    eventually("the kernel ends a spinning decoder", spun).await?;
    assert!(server.is_running()?, "{}", server.output());
    assert!(decoders(server.id()).len() <= SLOTS + 2, "hung decoders are left");
    let after = client.upload(pictures::jpeg(320, 240, 99)?).await?;
    all_succeed_on_first_attempt(&client, &[after]).await
}

#[tokio::test]
async fn sandbox_stops_hijacked_decoder() -> Result<()> {
    let data = TempDir::new()?;
    let mut server = serve(data.path(), &[]).await?;
    let client = Client::new(server.url())?;
    let mut outside = OutsideTargets::new()?;
    for fault in outside.faults()? {
        let task = client.finished(&client.upload(poison(&fault)?).await?).await?;
        assert_eq!(task["status"], "failed", "{fault}: {task:#}");
        for job in jobs(&task) {
            assert_eq!(job["error"]["code"], "decoder_crashed", "{fault}: {task:#}");
            assert_eq!(job["attempt"], ATTEMPTS, "{fault}: {task:#}");
            let message = job["error"]["message"].as_str().unwrap_or_default();
            assert!(message.contains("no decoder needs"), "{fault}: {task:#}");
        }
    }
    assert_eq!(outside.reached()?, (false, false));
    assert!(server.output().contains("the sandbox killed a decoder"), "{}", server.output());
    assert!(
        !server.output().contains("sandbox of the decoders is incomplete"),
        "{}",
        server.output()
    );
    assert!(server.is_running()?, "{}", server.output());
    let after = client.upload(pictures::jpeg(320, 240, 1)?).await?;
    all_succeed_on_first_attempt(&client, &[after]).await
}

/// Shows that the test above would notice a missing sandbox, and that the sandbox can be turned off.
#[tokio::test]
async fn hijacked_decoder_without_sandbox_reaches_everything() -> Result<()> {
    let data = TempDir::new()?;
    let server = serve(data.path(), &[("SANDBOX_DECODING", "false")]).await?;
    let client = Client::new(server.url())?;
    let mut outside = OutsideTargets::new()?;
    for fault in outside.faults()? {
        let task = client.upload(poison(&fault)?).await?;
        all_succeed_on_first_attempt(&client, &[task]).await?;
    }
    assert_eq!(outside.reached()?, (true, true));
    Ok(())
}

#[tokio::test]
async fn decoder_memory_stays_within_its_limit() -> Result<()> {
    const BOUND: u64 = 96 << 20;
    let data = TempDir::new()?;
    let server = serve(data.path(), &[("DECODE_MEMORY_BYTES", &BOUND.to_string())]).await?;
    let client = Client::new(server.url())?;
    // The first allocates on purpose. The second is large: its samples alone take 96 MB.
    let tasks =
        [client.upload(poison("bloat")?).await?, client.upload(deep_png(4000, 3000)?).await?];
    let mut peak = 0;
    let ended = async {
        let [bloat, deep] = &tasks;
        anyhow::Ok([client.finished(bloat).await?, client.finished(deep).await?])
    };
    let watch = async {
        loop {
            for decoder in decoders(server.id()) {
                peak = peak.max(peak_memory(decoder).unwrap_or(0));
            }
            // Polls, because the peak cannot be read after a decoder has ended.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let ended: [Value; 2] =
        tokio::select! { ended = ended => ended?, () = watch => [const { Value::Null }; 2] };
    assert!((1..=BOUND).contains(&peak), "a decoder used {peak} bytes");
    for task in ended {
        assert_eq!(task["status"], "failed", "{task:#}");
        let thumbnail = jobs(&task).find(|job| job["kind"] == "thumbnail").context("a job")?;
        let code = thumbnail["error"]["code"].as_str().unwrap_or_default();
        assert!(["decoder_out_of_memory", "too_much_memory"].contains(&code), "{task:#}");
        let message = thumbnail["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("memory"), "{task:#}");
    }
    let after = client.upload(pictures::jpeg(320, 240, 1)?).await?;
    all_succeed_on_first_attempt(&client, &[after]).await
}

#[tokio::test]
async fn killed_idle_decoder_costs_no_attempt() -> Result<()> {
    let data = TempDir::new()?;
    let server = serve(data.path(), &[]).await?;
    let client = Client::new(server.url())?;
    let mut seen = HashSet::new();
    for seed in 0..5 {
        let task = client.upload(pictures::jpeg(320, 240, seed)?).await?;
        all_succeed_on_first_attempt(&client, &[task]).await?;
        let idle = decoders(server.id());
        ensure!(!idle.is_empty(), "no idle decoder is kept");
        signal("KILL", &idle)?;
        seen.extend(idle);
    }
    assert!(seen.len() >= 5, "decoders were reused after a kill: {seen:?}");
    Ok(())
}

/// Like the OOM killer, which chooses decoders first. More kills than a harmful picture has attempts.
#[tokio::test]
async fn killed_working_decoders_fail_no_picture() -> Result<()> {
    let data = TempDir::new()?;
    let go = data.path().join("go");
    let server = serve(data.path(), &[("SANDBOX_DECODING", "false")]).await?;
    let client = Client::new(server.url())?;
    let task = client.upload(poison(&format!("until:{}", go.display()))?).await?;
    let kills = ATTEMPTS + 2;
    for _ in 0..kills {
        kill_working_decoders(server.id()).await?;
    }
    fs::write(&go, b"")?;
    let task = client.finished(&task).await?;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    assert!(jobs(&task).all(|job| job["attempt"] == kills + 1), "{task:#}");
    assert!(!server.output().contains("decoder_crashed"), "{}", server.output());
    Ok(())
}

#[tokio::test]
async fn picture_whose_decoder_is_always_killed_fails_after_all_attempts() -> Result<()> {
    const MAX_ATTEMPTS: u64 = ATTEMPTS + 1;
    let data = TempDir::new()?;
    let server = serve(data.path(), &[("MAX_ATTEMPTS", &MAX_ATTEMPTS.to_string())]).await?;
    let client = Client::new(server.url())?;
    let task = client.upload(poison("hang")?).await?;
    for _ in 0..MAX_ATTEMPTS {
        kill_working_decoders(server.id()).await?;
    }
    let task = client.finished(&task).await?;
    assert_eq!(task["status"], "failed", "{task:#}");
    for job in jobs(&task) {
        assert_eq!(job["error"]["code"], "decoder_killed", "{task:#}");
        assert_eq!(job["attempt"], MAX_ATTEMPTS, "{task:#}");
    }
    Ok(())
}

#[tokio::test]
async fn killed_server_leaves_no_decoder_behind() -> Result<()> {
    let data = TempDir::new()?;
    let mut server = serve(data.path(), &[]).await?;
    let client = Client::new(server.url())?;
    // One decoder is idle, the others would run for half a minute.
    let good = client.upload(pictures::jpeg(320, 240, 1)?).await?;
    all_succeed_on_first_attempt(&client, &[good]).await?;
    for fault in ["hang", "spin"] {
        client.upload(poison(fault)?).await?;
    }
    let server_id = server.id();
    eventually("all decoders are busy", async || Ok(decoders(server_id).len() == SLOTS + 2))
        .await?;
    let left = decoders(server_id);
    server.kill()?;
    eventually("all decoders have ended", async || {
        Ok(left.iter().all(|&decoder| !is_decoder(decoder)))
    })
    .await
}

#[tokio::test]
async fn drain_ends_decoders_of_running_jobs() -> Result<()> {
    let data = TempDir::new()?;
    let mut server = serve(data.path(), &[("DRAIN_TIMEOUT_MS", "100")]).await?;
    let client = Client::new(server.url())?;
    client.upload(poison("hang")?).await?;
    let server_id = server.id();
    eventually("decoders hang", async || Ok(decoders(server_id).len() == 2)).await?;
    let left = decoders(server_id);
    server.signal("TERM")?;
    let (ended, server) = tokio::task::spawn_blocking(move || (server.wait(LIMIT), server)).await?;
    assert_eq!(ended?.code(), Some(0), "{}", server.output());
    eventually("all decoders have ended", async || {
        Ok(left.iter().all(|&decoder| !is_decoder(decoder)))
    })
    .await
}

/// A hanging decoder that nothing but its worker ends within this test.
const PATIENT: (&str, &str) = ("DECODE_CPU_SECONDS", "60");

#[tokio::test]
async fn cancelled_job_ends_its_decoder() -> Result<()> {
    let data = TempDir::new()?;
    let server = serve(data.path(), &[PATIENT, ("LEASE_MS", "1500")]).await?;
    let client = Client::new(server.url())?;
    let task = client.upload(poison("hang")?).await?;
    let server_id = server.id();
    eventually("decoders hang", async || Ok(decoders(server_id).len() == 2)).await?;
    let left = decoders(server_id);
    client.cancel_task(task["id"].as_str().context("an id")?).await?;
    eventually("all decoders have ended", async || {
        Ok(left.iter().all(|&decoder| !is_decoder(decoder)))
    })
    .await
}

/// The lease is lost because its worker is frozen for longer, and another one takes over.
#[tokio::test(flavor = "multi_thread")]
async fn lost_job_ends_its_decoder() -> Result<()> {
    let env = [("SAFELIGHT_DECODE_CPU_SECONDS", "60"), ("SAFELIGHT_CONCURRENCY", "2")];
    let Engines { database_url, queue_url } = Engines::shared().await?;
    // The broker takes messages back from a frozen worker when it misses its heartbeats.
    let engines = Engines { database_url, queue_url: format!("{queue_url}?heartbeat=2") };
    let env = [FAST_RECOVERY, &env].concat();
    let cluster = TestCluster::start_on(engines, binary(), 1, 0, &env)?;
    let frozen = cluster.start_node(&["worker"], &[])?;
    cluster.client()?.upload(poison("hang")?).await?;
    eventually("decoders hang", async || Ok(decoders(frozen.id()).len() == 2)).await?;
    let left = decoders(frozen.id());
    frozen.signal("STOP")?;
    let other = cluster.start_node(&["worker"], &[])?;
    eventually("another worker has the jobs", async || Ok(decoders(other.id()).len() == 2)).await?;
    frozen.signal("CONT")?;
    eventually("all decoders of lost jobs have ended", async || {
        Ok(left.iter().all(|&decoder| !is_decoder(decoder)))
    })
    .await?;
    assert_eq!(decoders(other.id()).len(), 2, "those of the jobs' new worker hang on");
    Ok(())
}

#[tokio::test]
async fn signals_to_all_processes_drain_server_and_spare_decoders() -> Result<()> {
    for name in ["INT", "TERM"] {
        let data = TempDir::new()?;
        let mut server = serve(data.path(), &[]).await?;
        let client = Client::new(server.url())?;
        let photo = pictures::jpeg(1600, 1200, 1)?;
        let mut tasks = Vec::new();
        for number in 0..8 {
            tasks.push(client.upload(pictures::with_comment(&photo, &number.to_string())).await?);
        }
        let server_id = server.id();
        let ready = || decoders(server_id).into_iter().filter(|&decoder| is_set_up(decoder));
        eventually("decoders work", async || Ok(ready().next().is_some())).await?;
        // A terminal signals the whole process group, a service manager all processes.
        server.signal(name)?;
        signal(name, &ready().collect::<Vec<_>>())?;
        let (ended, server) =
            tokio::task::spawn_blocking(move || (server.wait(LIMIT), server)).await?;
        assert_eq!(ended?.code(), Some(0), "{}", server.output());
        assert!(!server.output().contains("a decoder died"), "{}", server.output());

        let server = serve(data.path(), &[]).await?;
        all_succeed_on_first_attempt(&Client::new(server.url())?, &tasks).await?;
    }
    Ok(())
}

/// Targets outside the sandbox that a decoder must not reach.
struct OutsideTargets {
    listener: TcpListener,
    bystander: Child,
}

impl OutsideTargets {
    fn new() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, bystander: Command::new("sleep").arg("600").spawn()? })
    }

    /// The faults that try to reach the targets.
    fn faults(&self) -> Result<[String; 4]> {
        let address = self.listener.local_addr()?;
        Ok([
            "open".to_owned(),
            "exec".to_owned(),
            format!("connect:{address}"),
            format!("signal:{}", self.bystander.id()),
        ])
    }

    /// Whether a connection was opened, and whether the bystander was killed.
    fn reached(&mut self) -> Result<(bool, bool)> {
        let connected = match self.listener.accept() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            other => other.map(|_| true)?,
        };
        Ok((connected, self.bystander.try_wait()?.is_some()))
    }
}

impl Drop for OutsideTargets {
    fn drop(&mut self) {
        // Errors do not matter: the bystander may be dead already.
        let _ = self.bystander.kill().and_then(|()| self.bystander.wait());
    }
}

/// Starts `safelight serve` on a folder, with short pauses between attempts.
async fn serve(data: &Path, settings: &[(&str, &str)]) -> Result<Server> {
    let slots = SLOTS.to_string();
    let data = data.to_string_lossy();
    let base = [
        ("DATA_DIR", data.as_ref()),
        ("LISTEN", "127.0.0.1:0"),
        ("CONCURRENCY", slots.as_str()),
        ("BACKOFF_BASE_MS", "10"),
        ("BACKOFF_CAP_MS", "50"),
        ("RELAY_POLL_MS", "20"),
    ];
    let variable = |(key, value): &(&str, &str)| (format!("SAFELIGHT_{key}"), (*value).to_owned());
    let env: Vec<_> = base.iter().chain(settings).map(variable).collect();
    let command = safelight(Path::new(env!("CARGO_BIN_EXE_safelight")), ["serve"], &env);
    tokio::task::spawn_blocking(move || Server::start(command)).await?
}

/// A valid picture that triggers a fault in its decoder.
fn poison(fault: &str) -> Result<Vec<u8>> {
    Ok(pictures::with_comment(&pictures::jpeg(64, 48, 1)?, &format!("SAFELIGHT-FAIL:{fault}")))
}

/// A PNG with 16 bits per sample and transparency: 8 bytes per pixel.
fn deep_png(width: u32, height: u32) -> Result<Vec<u8>> {
    let picture = ImageBuffer::<Rgba<u16>, _>::new(width, height);
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

async fn all_succeed_on_first_attempt(client: &Client, tasks: &[Value]) -> Result<()> {
    for task in tasks {
        let task = client.finished(task).await?;
        assert_eq!(task["status"], "succeeded", "{task:#}");
        assert!(jobs(&task).all(|job| job["attempt"] == 1), "{task:#}");
    }
    Ok(())
}

fn jobs(task: &Value) -> impl Iterator<Item = &Value> {
    task["jobs"].as_array().into_iter().flatten()
}

/// Whether a job failed because its decoder used too much processor time.
fn used_up_processor_time(task: &Value) -> bool {
    let message = |job: &Value| job["error"]["message"].as_str().map(str::to_owned);
    jobs(task).filter_map(message).any(|text| text.contains("processor time"))
}

/// The running decoders of a server.
fn decoders(server: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .filter(|&process| status(process, "PPid:") == Some(server.into()) && is_decoder(process))
        .collect()
}

/// Whether the process is a running decoder. Ended processes have no command line.
fn is_decoder(process: u32) -> bool {
    let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    line.split(|&byte| byte == 0).any(|word| word == b"decoder")
}

/// Whether a decoder has set its process name. A signal before that ends it, and another one is started.
fn is_set_up(decoder: u32) -> bool {
    fs::read_to_string(format!("/proc/{decoder}/comm")).is_ok_and(|name| name == "decoder\n")
}

/// Waits until both jobs of the only picture hang in their decoders, and kills these.
async fn kill_working_decoders(server: u32) -> Result<()> {
    let mut killed = Vec::new();
    eventually("two decoders hang", async || {
        killed = decoders(server).into_iter().filter(|&one| hangs_on_picture(one)).collect();
        Ok(killed.len() == 2)
    })
    .await?;
    signal("KILL", &killed)?;
    eventually("they are gone", async || Ok(killed.iter().all(|&decoder| !is_decoder(decoder))))
        .await
}

/// Whether a decoder sleeps while its processor time is limited: it has received a picture, and the fault that
/// the picture names makes it wait.
fn hangs_on_picture(decoder: u32) -> bool {
    let limits = fs::read_to_string(format!("/proc/{decoder}/limits")).unwrap_or_default();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max cpu time"));
    let is_limited = limit.is_some_and(|limit| !limit.trim_start().starts_with("unlimited"));
    let status = fs::read_to_string(format!("/proc/{decoder}/status")).unwrap_or_default();
    is_limited && status.lines().any(|line| line.starts_with("State:\tS"))
}

/// The peak memory of a process in bytes.
fn peak_memory(process: u32) -> Option<u64> {
    Some(status(process, "VmHWM:")? * 1024)
}

fn status(process: u32, key: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

fn signal(name: &str, processes: &[u32]) -> Result<()> {
    let ids = processes.iter().map(ToString::to_string);
    // A process may have ended meanwhile, so the exit code does not matter.
    Command::new("kill").args(["-s", name]).args(ids).output().context("kill")?;
    Ok(())
}
