//! A fleet imports thousands of pictures while uploads continue. Everything that takes part in the import is
//! killed, paused and resumed. At the end, the report must be complete.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use safelight_testing::{
    client::Client,
    load::Load,
    pictures,
    server::{Server, run},
    wait::eventually_within,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::{block_in_place, spawn_blocking};

use crate::{Deployment, fleet::FleetUnderTest};

/// One of this many files is equal to another file.
const DUPLICATE_EVERY: usize = 100;

/// One of this many files is not a picture.
const INVALID_EVERY: usize = 500;

/// The width and height of the pictures.
const SIZE: (u32, u32) = (640, 480);

/// How long any step may take, including the whole import, on a busy machine.
const LIMIT: Duration = Duration::from_hours(1);

/// How long the paused backfill is observed.
const PAUSE: Duration = Duration::from_secs(5);

/// The files to import, and how many of them are duplicates or invalid.
struct Photos {
    folder: TempDir,
    duplicates: usize,
    invalid: usize,
}

/// Imports `count` pictures under faults; prints the results, and returns whether they are correct.
pub async fn soak(binary: &Path, count: usize, clients: usize) -> Result<bool> {
    let photos = Photos::write(count)?;
    let mut fleet = FleetUnderTest::start(binary)?;
    let client = Client::new(&fleet.url())?;
    let load = Load::start(clients, &[&fleet.url()])?;
    let started = Instant::now();
    let import = block_in_place(|| Import::start(&fleet, &photos))?;
    let (id, faults) = import.run_with_faults(&mut fleet, &client, count as u64).await?;
    let report = photos.folder.path().join("report.ndjson");
    let exit_code = follow(&fleet, &id, &report).await?;
    let took = started.elapsed();
    let uploads = load.stop().await?;

    let task = client.json(&format!("/v1/tasks/{id}")).await?;
    let mut wrong = photos.compare(&report, &task["backfill"]["images"], count)?;
    // The command exits with 1 because some pictures fail.
    if exit_code != Some(1) {
        wrong.push(format!("the command that follows it ended with {exit_code:?}"));
    }
    let audit = fleet.audit().run_within(&uploads.ledger, LIMIT).await?;
    println!(
        "{}",
        json!({
            "deployment": "fleet", "import_of": count, "seconds": took.as_secs_f64().round(),
            "faults": faults, "uploads_accepted": audit.accepted,
            "uploads_and_pictures_lost": audit.lost.len(), "wrong": audit.wrong.len(),
            "stuck": audit.stuck.len(),
            "duplicate_effects": audit.doubled.len(), "left_behind": audit.left.len(),
            "images": task["backfill"]["images"], "wrong_in_the_report": wrong.len(),
        })
    );
    if !wrong.is_empty() || !audit.is_clean() {
        eprintln!("{wrong:#?}\n{audit:#?}");
    }
    Ok(wrong.is_empty() && audit.is_clean())
}

impl Photos {
    /// Writes `count` files to folders of a thousand.
    fn write(count: usize) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("safelight-photos-").tempdir()?;
        let photo = pictures::jpeg(SIZE.0, SIZE.1, 1)?;
        let (mut duplicates, mut invalid) = (0, 0);
        for number in 0..count {
            let path = path(folder.path(), number);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            let bytes = if number % INVALID_EVERY == INVALID_EVERY - 1 {
                invalid += 1;
                [pictures::text(), number.to_string().into_bytes()].concat()
            } else if number % DUPLICATE_EVERY == DUPLICATE_EVERY - 2 {
                duplicates += 1;
                pictures::with_comment(&photo, &(number - 1).to_string())
            } else {
                pictures::with_comment(&photo, &number.to_string())
            };
            fs::write(path, bytes)?;
        }
        Ok(Self { folder, duplicates, invalid })
    }

    fn source(&self) -> PathBuf {
        self.folder.path().join("photos")
    }

    /// Returns all errors in the report and in the counts of the task.
    fn compare(&self, report: &Path, images: &Value, count: usize) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        let mut outcomes: HashMap<String, usize> = HashMap::new();
        let (mut sources, mut imported) = (HashSet::new(), HashSet::new());
        for line in fs::read_to_string(report)?.lines() {
            let line: Value = serde_json::from_str(line)?;
            let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
            if !sources.insert(text("source")) {
                wrong.push(format!("{} has two lines", text("source")));
            }
            if text("outcome") == "succeeded" && !imported.insert(text("id")) {
                wrong.push(format!("image {} has two lines", text("id")));
            }
            *outcomes.entry(format!("{} {}", text("outcome"), text("reason"))).or_default() += 1;
        }
        for number in 0..count {
            let path = path(self.folder.path(), number).to_string_lossy().into_owned();
            if !sources.remove(&path) {
                wrong.push(format!("{path} has no line"));
            }
        }
        wrong.extend(
            sources.into_iter().map(|source| format!("{source} is not one of the pictures")),
        );
        let succeeded = count - self.duplicates - self.invalid;
        let expected = HashMap::from([
            ("succeeded ".to_owned(), succeeded),
            ("skipped duplicate".to_owned(), self.duplicates),
            ("failed not_an_image".to_owned(), self.invalid),
        ]);
        if outcomes != expected {
            wrong.push(format!("{outcomes:?} instead of {expected:?}"));
        }
        let counts = ["total", "succeeded", "skipped", "failed"].map(|name| images[name].as_u64());
        if counts != [count, succeeded, self.duplicates, self.invalid].map(|n| Some(n as u64)) {
            wrong.push(format!("the task has the counts {images}"));
        }
        Ok(wrong)
    }
}

fn path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("photos/{:03}/{number:07}.jpg", number / 1000))
}

/// The running command that imports and follows.
struct Import {
    command: Server,
    id: String,
}

impl Import {
    /// Starts the command, and waits until it prints the id of the backfill.
    fn start(fleet: &FleetUnderTest, photos: &Photos) -> Result<Self> {
        let mut command = fleet.command(&["backfill", "import"]);
        command.arg(photos.source()).args(["--follow", "--url", &fleet.url()]);
        let mut command = Server::spawn(command)?;
        command.wait_for_output("\n", LIMIT)?;
        // The first line ends with a command to follow the backfill, whose last word is the id.
        let output = command.output();
        let id = output.lines().next().and_then(|line| line.split(' ').next_back());
        let id = id.context("an id")?.to_owned();
        Ok(Self { command, id })
    }

    /// Injects one fault after the other while the import of `count` pictures progresses; returns the id of
    /// the backfill and the faults.
    async fn run_with_faults(
        mut self,
        fleet: &mut FleetUnderTest,
        client: &Client,
        count: u64,
    ) -> Result<(String, Vec<&'static str>)> {
        let id = self.id;
        let percent_done = async |part: u64| wait_for_images(client, &id, count * part / 100).await;
        percent_done(10).await?;
        self.command.kill()?;
        percent_done(20).await?;
        block_in_place(|| fleet.kill_node("worker", 0))?;
        percent_done(30).await?;
        block_in_place(|| fleet.kill_node("api", 0))?;
        percent_done(40).await?;
        // Now both workers have died, including the one that led the backfill.
        block_in_place(|| fleet.kill_node("worker", 1))?;
        percent_done(50).await?;
        command(fleet, &["backfill", "pause", &id]).await?;
        ensure_paused(client, &id).await?;
        block_in_place(|| fleet.kill_node("api", 1))?;
        command(fleet, &["backfill", "resume", &id]).await?;
        percent_done(60).await?;
        let faults = vec![
            "command killed",
            "worker killed",
            "api killed",
            "worker killed",
            "paused",
            "api killed",
            "resumed",
        ];
        Ok((id, faults))
    }
}

/// Runs a command that must succeed.
async fn command(fleet: &FleetUnderTest, args: &[&str]) -> Result<()> {
    let mut command = fleet.command(args);
    command.args(["--url", &fleet.url()]);
    spawn_blocking(move || run(command, LIMIT)).await??.success()?;
    Ok(())
}

/// Follows the backfill to its end; returns the exit code of the command.
async fn follow(fleet: &FleetUnderTest, id: &str, report: &Path) -> Result<Option<i32>> {
    let mut command = fleet.command(&["backfill", "follow", id, "--url", &fleet.url()]);
    command.arg("--report").arg(report);
    Ok(spawn_blocking(move || run(command, LIMIT)).await??.code)
}

async fn images(client: &Client, id: &str) -> Result<Value> {
    Ok(client.json(&format!("/v1/tasks/{id}")).await?["backfill"]["images"].take())
}

fn number(images: &Value, name: &str) -> u64 {
    images[name].as_u64().unwrap_or(0)
}

/// Waits until `wanted` pictures have ended.
async fn wait_for_images(client: &Client, id: &str, wanted: u64) -> Result<()> {
    let what = format!("{wanted} pictures have ended");
    eventually_within(LIMIT, &what, async || {
        // The node may just have been killed.
        let Ok(images) = images(client, id).await else { return Ok(false) };
        let done: u64 = ["succeeded", "skipped", "failed"].map(|n| number(&images, n)).iter().sum();
        Ok(done >= wanted)
    })
    .await?;
    eprintln!("backfill: {what}");
    Ok(())
}

/// Waits until work in progress has ended; then fails if the counts change.
async fn ensure_paused(client: &Client, id: &str) -> Result<()> {
    let mut before = Value::Null;
    eventually_within(LIMIT, "a paused backfill has no work in progress", async || {
        before = images(client, id).await?;
        // Files that are not pictures fail without being planned.
        Ok(number(&before, "succeeded") == number(&before, "planned"))
    })
    .await?;
    tokio::time::sleep(PAUSE).await;
    let after = images(client, id).await?;
    ensure!(before == after, "the paused backfill continued: {before}, {after}");
    Ok(())
}
