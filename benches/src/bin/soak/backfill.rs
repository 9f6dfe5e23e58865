//! An import of thousands of pictures by a fleet, while uploads go on and everything that takes part in it
//! is killed, paused and resumed; then its report is added up.

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

use crate::{Victim, fleet::Victims};

/// Of how many pictures one is equal to another, and of how many one is no picture.
const EQUAL_OF: usize = 100;
const BROKEN_OF: usize = 500;

/// Width and height of the pictures.
const SIZE: (u32, u32) = (640, 480);

/// How long a step may take: the whole import, on a busy machine.
const LIMIT: Duration = Duration::from_hours(1);

/// How long nothing may move while it is paused.
const PAUSE: Duration = Duration::from_secs(5);

/// The pictures, and what is to come of them.
struct Photos {
    folder: TempDir,
    equal: usize,
    broken: usize,
}

/// Imports `count` pictures under faults; prints what it found, and says whether all adds up.
pub async fn soak(binary: &Path, count: usize, clients: usize) -> Result<bool> {
    let photos = Photos::make(count)?;
    let mut victims = Victims::start(binary)?;
    let client = Client::new(&victims.url())?;
    let load = Load::start(clients, &[&victims.url()])?;
    let begun = Instant::now();
    let import = block_in_place(|| Import::begin(&victims, &photos))?;
    let (id, faults) = import.through_faults(&mut victims, &client, count as u64).await?;
    let report = photos.folder.path().join("report.ndjson");
    let followed = follow(&victims, &id, &report).await?;
    let took = begun.elapsed();
    let uploads = load.stop().await?;

    let task = client.json(&format!("/v1/tasks/{id}")).await?;
    let mut wrong = photos.compare(&report, &task["backfill"]["images"], count)?;
    // Pictures failed, and the command says so.
    if followed != Some(1) {
        wrong.push(format!("following it ended with {followed:?}"));
    }
    let audit = victims.audit().run_within(&uploads.ledger, LIMIT).await?;
    println!(
        "{}",
        json!({
            "deployment": "fleet", "import_of": count, "seconds": took.as_secs_f64().round(),
            "faults": faults, "uploads_accepted": audit.accepted,
            "uploads_and_pictures_lost": audit.lost.len(), "stuck": audit.stuck.len(),
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
    /// `count` files in folders of a thousand.
    fn make(count: usize) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("safelight-photos-").tempdir()?;
        let photo = pictures::jpeg(SIZE.0, SIZE.1, 1)?;
        let (mut equal, mut broken) = (0, 0);
        for number in 0..count {
            let path = path(folder.path(), number);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            let bytes = if number % BROKEN_OF == BROKEN_OF - 1 {
                broken += 1;
                [pictures::text(), number.to_string().into_bytes()].concat()
            } else if number % EQUAL_OF == EQUAL_OF - 2 {
                equal += 1;
                pictures::with_comment(&photo, &(number - 1).to_string())
            } else {
                pictures::with_comment(&photo, &number.to_string())
            };
            fs::write(path, bytes)?;
        }
        Ok(Self { folder, equal, broken })
    }

    fn source(&self) -> PathBuf {
        self.folder.path().join("photos")
    }

    /// What of the report, or of the task's counts, is not as it should be.
    fn compare(&self, report: &Path, images: &Value, count: usize) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        let mut outcomes: HashMap<String, usize> = HashMap::new();
        let (mut sources, mut taken_in) = (HashSet::new(), HashSet::new());
        for line in fs::read_to_string(report)?.lines() {
            let line: Value = serde_json::from_str(line)?;
            let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
            if !sources.insert(text("source")) {
                wrong.push(format!("{} has two lines", text("source")));
            }
            if text("outcome") == "succeeded" && !taken_in.insert(text("id")) {
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
        wrong.extend(sources.into_iter().map(|source| format!("{source} is no picture of ours")));
        let succeeded = count - self.equal - self.broken;
        let expected = HashMap::from([
            ("succeeded ".to_owned(), succeeded),
            ("skipped duplicate".to_owned(), self.equal),
            ("failed not_an_image".to_owned(), self.broken),
        ]);
        if outcomes != expected {
            wrong.push(format!("{outcomes:?} instead of {expected:?}"));
        }
        let counts = ["total", "succeeded", "skipped", "failed"].map(|name| images[name].as_u64());
        if counts != [count, succeeded, self.equal, self.broken].map(|n| Some(n as u64)) {
            wrong.push(format!("the task counts {images}"));
        }
        Ok(wrong)
    }
}

fn path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("photos/{:03}/{number:07}.jpg", number / 1000))
}

/// The command that imports and follows, while it runs.
struct Import {
    command: Server,
    id: String,
}

impl Import {
    /// Returns once the command has said the backfill's id.
    fn begin(victims: &Victims, photos: &Photos) -> Result<Self> {
        let mut command = victims.command(&["backfill", "import"]);
        command.arg(photos.source()).args(["--follow", "--url", &victims.url()]);
        let mut command = Server::spawn(command)?;
        command.wait_for_output("\n", LIMIT)?;
        // Its first line ends in the command that follows it again.
        let said = command.output();
        let id = said.lines().next().and_then(|line| line.split(' ').next_back());
        let id = id.context("an id")?.to_owned();
        Ok(Self { command, id })
    }

    /// One fault after the other as the import of `count` pictures goes on; says the backfill's id and
    /// which faults there were.
    async fn through_faults(
        mut self,
        victims: &mut Victims,
        client: &Client,
        count: u64,
    ) -> Result<(String, Vec<&'static str>)> {
        let id = self.id;
        let walked = async |part: u64| walked(client, &id, count * part / 100).await;
        walked(10).await?;
        self.command.kill()?;
        walked(20).await?;
        block_in_place(|| victims.kill_node("worker", 0))?;
        walked(30).await?;
        block_in_place(|| victims.kill_node("api", 0))?;
        walked(40).await?;
        // Whichever of the two led it: now both have died.
        block_in_place(|| victims.kill_node("worker", 1))?;
        walked(50).await?;
        command(victims, &["backfill", "pause", &id]).await?;
        stands_still(client, &id).await?;
        block_in_place(|| victims.kill_node("api", 1))?;
        command(victims, &["backfill", "resume", &id]).await?;
        walked(60).await?;
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
async fn command(victims: &Victims, args: &[&str]) -> Result<()> {
    let mut command = victims.command(args);
    command.args(["--url", &victims.url()]);
    spawn_blocking(move || run(command, LIMIT)).await??.success()?;
    Ok(())
}

/// Follows the backfill to its end; says the command's exit code.
async fn follow(victims: &Victims, id: &str, report: &Path) -> Result<Option<i32>> {
    let mut command = victims.command(&["backfill", "follow", id, "--url", &victims.url()]);
    command.arg("--report").arg(report);
    Ok(spawn_blocking(move || run(command, LIMIT)).await??.code)
}

async fn images(client: &Client, id: &str) -> Result<Value> {
    Ok(client.json(&format!("/v1/tasks/{id}")).await?["backfill"]["images"].take())
}

fn number(images: &Value, name: &str) -> u64 {
    images[name].as_u64().unwrap_or(0)
}

/// Waits until so many pictures are done with.
async fn walked(client: &Client, id: &str, wanted: u64) -> Result<()> {
    let what = format!("{wanted} pictures are done");
    eventually_within(LIMIT, &what, async || {
        // The node that was asked may just have been killed.
        let Ok(images) = images(client, id).await else { return Ok(false) };
        let done: u64 = ["succeeded", "skipped", "failed"].map(|n| number(&images, n)).iter().sum();
        Ok(done >= wanted)
    })
    .await?;
    eprintln!("backfill: {what}");
    Ok(())
}

/// Waits until what was under way has ended; then nothing may move.
async fn stands_still(client: &Client, id: &str) -> Result<()> {
    let mut before = Value::Null;
    eventually_within(LIMIT, "a paused backfill has no work in progress", async || {
        before = images(client, id).await?;
        // Files that are no pictures failed without ever being planned.
        Ok(number(&before, "succeeded") == number(&before, "planned"))
    })
    .await?;
    tokio::time::sleep(PAUSE).await;
    let after = images(client, id).await?;
    ensure!(before == after, "paused, and it went on: {before}, {after}");
    Ok(())
}
