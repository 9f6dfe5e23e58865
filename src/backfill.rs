//! `safelight backfill`: begin, follow, pause and resume work on many images. A thin client: the server
//! goes on whether or not this runs.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use safelight_domain::{ImageFormat, TaskId, UnknownName, Visibility};
use serde_json::{Value, json};

use crate::{
    client::{SafelightClient, Server},
    exit::Exit,
    say::{say, tell},
};

/// How often a backfill that is followed is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How often that is told where there is no terminal to draw on.
const TELL: Duration = Duration::from_secs(10);

/// Options of `safelight backfill`.
#[derive(Args)]
pub struct BackfillArgs {
    #[command(subcommand)]
    command: BackfillCommand,
}

#[derive(Subcommand)]
enum BackfillCommand {
    /// Make renditions of stored images: of presets that were added or changed
    Renditions {
        /// Only this preset; may be given several times
        #[arg(long = "preset", value_name = "P")]
        presets: Vec<String>,
        /// Only images that lack one (the default)
        #[arg(long, conflicts_with = "all")]
        missing: bool,
        /// All images, also those that have them
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        images: Images,
        #[command(flatten)]
        begin: Begin,
    },
    /// Take in existing pictures; those that are stored already are skipped
    Import {
        /// A folder, `s3://BUCKET/PREFIX`, or a file with a path or {"path", "title", "tags", "filename"} per
        /// line; as the server sees it
        #[arg(value_name = "DIR|s3://…|LIST.ndjson")]
        source: String,
        /// Who may read the pictures: public or private; as of an upload unless said
        #[arg(long, value_name = "WHO")]
        visibility: Option<Visibility>,
        /// Also pictures that are equal to images that failed for good before
        #[arg(long)]
        retry_failed: bool,
        #[command(flatten)]
        begin: Begin,
    },
    /// Read every blob and rendition back, compare it with its hash, repair what can be repaired
    Verify {
        #[command(flatten)]
        images: Images,
        #[command(flatten)]
        begin: Begin,
    },
    /// Collect garbage: remove stored blobs and renditions that nobody refers to
    Gc {
        #[command(flatten)]
        begin: Begin,
    },
    /// Follow a backfill until it has ended
    Follow {
        /// The backfill's id
        id: TaskId,
        #[command(flatten)]
        report: ReportArgs,
        #[command(flatten)]
        output: Output,
    },
    /// Hand out no more images until it is resumed
    Pause {
        /// The backfill's id
        id: TaskId,
        #[command(flatten)]
        output: Output,
    },
    /// Go on with a paused backfill
    Resume {
        /// The backfill's id
        id: TaskId,
        #[command(flatten)]
        output: Output,
    },
    /// Print what became of each image so far, one JSON object per line
    Report {
        /// The backfill's id
        id: TaskId,
        #[command(flatten)]
        server: Server,
    },
}

/// Which images a backfill looks at.
#[derive(Args)]
struct Images {
    /// Only images accepted at this time or later: 2026-01-31, 2026-01-31T12:00:00Z or
    /// 2026-01-31T13:00:00+01:00
    #[arg(long, value_name = "TIME", value_parser = time)]
    created_after: Option<DateTime<Utc>>,
    /// Only originals of this format: jpeg, png, gif, webp, tiff, bmp, avif
    #[arg(long, value_parser = format)]
    format: Option<ImageFormat>,
    /// Also images that failed for good before
    #[arg(long)]
    retry_failed: bool,
}

/// How a backfill is to be done.
#[derive(Args)]
struct Begin {
    /// Only count: what would be done, and about how long it would take
    #[arg(long)]
    dry_run: bool,
    /// Images per second at most, such as 20/s
    #[arg(long, value_name = "N/s", value_parser = rate)]
    rate: Option<f64>,
    /// Images under way at once at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// Follow it until it has ended; Ctrl-C ends the following, not the backfill
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    report: ReportArgs,
    #[command(flatten)]
    output: Output,
}

/// Where the report goes.
#[derive(Args)]
struct ReportArgs {
    /// At the end, write what became of each image into this file, one JSON object per line
    #[arg(long = "report", value_name = "FILE.ndjson")]
    file: Option<PathBuf>,
}

/// A report that will be written. Under another name until it is whole.
struct Report {
    file: PathBuf,
    partial: PathBuf,
    target: tokio::fs::File,
}

/// What to say, and where the server is.
#[derive(Args)]
struct Output {
    /// Print the task as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

/// A rate, per second.
fn rate(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text).parse::<f64>();
    match number {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("expected images per second, such as 20/s or 0.5/s".to_owned()),
    }
}

/// A day or a time; without an offset in UTC.
fn time(text: &str) -> Result<DateTime<Utc>, String> {
    let text = text.trim();
    let full = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let read = |text: &str| DateTime::parse_from_rfc3339(text);
    let time = read(&full).or_else(|_| read(&format!("{full}Z")));
    time.map(|time| time.to_utc()).map_err(|_| {
        "expected 2026-01-31, 2026-01-31T12:00:00Z or 2026-01-31T13:00:00+01:00".to_owned()
    })
}

/// A format by its name; what files are called instead is a likely mistake.
fn format(name: &str) -> Result<ImageFormat, String> {
    name.parse().map_err(|error: UnknownName| match name.to_ascii_lowercase().as_str() {
        "jpg" | "jpe" | "jfif" => format!("{error}; did you mean `jpeg`?"),
        "tif" => format!("{error}; did you mean `tiff`?"),
        _ => error.to_string(),
    })
}

/// Runs the subcommand.
pub async fn run(args: BackfillArgs) -> Result<(), Exit> {
    match args.command {
        BackfillCommand::Renditions { presets, missing: _, all, images, begin } => {
            let scope = if all { "all" } else { "missing" };
            let what = json!({ "kind": "renditions", "presets": presets, "scope": scope });
            start(images.add_to(what), begin).await
        }
        BackfillCommand::Verify { images, begin } => {
            start(images.add_to(json!({ "kind": "verify" })), begin).await
        }
        BackfillCommand::Import { source, visibility, retry_failed, begin } => {
            let what = json!({
                "kind": "import", "source": absolute(&source)?, "visibility": visibility,
                "retry_failed": retry_failed,
            });
            start(what, begin).await
        }
        BackfillCommand::Follow { id, report, output } => {
            follow(&id.to_string(), report.opened().await?, &output, false).await
        }
        BackfillCommand::Gc { begin } => start(json!({ "kind": "gc" }), begin).await,
        BackfillCommand::Pause { id, output } => switch(id, "pause", &output).await,
        BackfillCommand::Resume { id, output } => switch(id, "resume", &output).await,
        BackfillCommand::Report { id, server } => {
            let client = SafelightClient::new(server)?;
            let mut stdout = tokio::io::stdout();
            Ok(client.download(&report_path(&id.to_string()), &mut stdout).await?)
        }
    }
}

impl Images {
    fn add_to(self, mut what: Value) -> Value {
        if let Some(time) = self.created_after {
            what["created_after"] = json!(time);
        }
        what["format"] = json!(self.format);
        what["retry_failed"] = json!(self.retry_failed);
        what
    }
}

/// The server knows nothing of this process's folder.
fn absolute(source: &str) -> Result<String, Exit> {
    if source.starts_with("s3://") {
        return Ok(source.to_owned());
    }
    let path = std::path::absolute(source).map_err(Exit::usage)?;
    match path.into_os_string().into_string() {
        Ok(path) => Ok(path),
        Err(_) => Err(Exit::usage("the path is no UTF-8, and cannot be sent to the server")),
    }
}

async fn start(mut what: Value, begin: Begin) -> Result<(), Exit> {
    // That of `gc` says which objects they are.
    if begin.dry_run && begin.report.file.is_some() && what["kind"] != "gc" {
        return Err(Exit::usage("a dry run has no report: it only counts")
            .hint("leave out --report, or --dry-run"));
    }
    let client = SafelightClient::new(begin.output.server.clone())?;
    // What cannot be written is known before the work begins.
    let report = begin.report.opened().await?;
    // Chosen here, so that asking again after an answer that was lost begins no second one.
    what["id"] = json!(TaskId::new());
    what["dry_run"] = json!(begin.dry_run);
    what["rate"] = json!(begin.rate);
    what["concurrency"] = json!(begin.concurrency);
    let task = match client.post_json("/v1/backfills", &what).await {
        Ok(task) => task,
        Err(error) => {
            if let Some(report) = report {
                report.give_up().await;
            }
            return Err(error.into());
        }
    };
    let id = task["id"].as_str().unwrap_or_default().to_owned();
    if !begin.follow && !begin.dry_run && report.is_none() {
        print(&task, begin.output.json);
        tell!("the server goes on by itself; to watch: safelight backfill follow {id}");
        return Ok(());
    }
    if !begin.dry_run {
        // Now, and not at the end: this command may be killed, and the backfill goes on.
        tell!("backfill {id} has begun; to follow it again: safelight backfill follow {id}");
    }
    follow(&id, report, &begin.output, begin.dry_run).await
}

async fn switch(id: TaskId, what: &str, output: &Output) -> Result<(), Exit> {
    let client = SafelightClient::new(output.server.clone())?;
    let task = client.post(&format!("/v1/tasks/{id}/{what}"), &[]).await?;
    print(&task, output.json);
    Ok(())
}

/// Follows a backfill to its end, and tells how it went.
async fn follow(
    id: &str,
    report: Option<Report>,
    output: &Output,
    dry_run: bool,
) -> Result<(), Exit> {
    let client = SafelightClient::new(output.server.clone())?;
    let task = watch(&client, id).await?;
    if let Some(report) = report {
        report.write(&client, id).await?;
    }
    print(&task, output.json);
    if dry_run && !output.json {
        print_plan(&task, &client.get("/v1/workers", &[]).await?);
    }
    match task["status"].as_str() {
        Some("succeeded") => Ok(()),
        Some("cancelled") => Err(Exit::failed("the backfill was cancelled")),
        _ => {
            let message = task["error"]["message"].as_str().unwrap_or("the backfill failed");
            let exit = Exit::failed(message);
            Err(if failed_again(&task["backfill"]) > 0 {
                exit.hint(format!("safelight tasks retry {id} tries the failed images again"))
            } else {
                exit
            })
        }
    }
}

/// Images of a backfill that has ended whose work failed, and can be tried again. What could not be taken in
/// at all never was work.
fn failed_again(backfill: &Value) -> u64 {
    let count = |name: &str| backfill["images"][name].as_u64().unwrap_or(0);
    if backfill["dry_run"] == true {
        return 0;
    }
    count("planned").saturating_sub(count("succeeded") + count("cancelled"))
}

/// Looks at a backfill until it has ended, whatever becomes of the server meanwhile.
async fn watch(client: &SafelightClient, id: &str) -> Result<Value, Exit> {
    let bar = progress_bar();
    let begun = Instant::now();
    let (mut told, mut first, mut away) = (Instant::now(), None, false);
    loop {
        let task = match client.get(&format!("/v1/tasks/{id}"), &[]).await {
            Ok(task) => task,
            Err(error) if error.can_help() => {
                if !away {
                    bar.suspend(|| tell!("{error}; asking again until the server is back"));
                }
                away = true;
                tokio::time::sleep(LOOK).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        away = false;
        if task["backfill"].is_null() {
            return Err(Exit::usage(format!("{id} is no backfill")));
        }
        let done = Done::of(&task);
        let since = *first.get_or_insert(done.all());
        let text = done.text(&task, since, begun.elapsed());
        bar.set_length(done.total.unwrap_or(done.all()));
        bar.set_position(done.all());
        bar.set_message(text.clone());
        if bar.is_hidden() && told.elapsed() >= TELL {
            match done.total {
                Some(total) => tell!("{} of {total}, {text}", done.all()),
                None => tell!("counting what there is to look at"),
            }
            told = Instant::now();
        }
        if !task["finished_at"].is_null() {
            bar.finish_and_clear();
            return Ok(task);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Images that nothing more is to be done about.
struct Done {
    total: Option<u64>,
    succeeded: u64,
    failed: u64,
    skipped: u64,
    cancelled: u64,
}

impl Done {
    fn of(task: &Value) -> Self {
        let images = &task["backfill"]["images"];
        let count = |name: &str| images[name].as_u64().unwrap_or(0);
        // Of a dry run, those that would be done are all there is to see.
        let planned = if task["backfill"]["dry_run"] == true { count("planned") } else { 0 };
        Self {
            total: images["total"].as_u64(),
            succeeded: count("succeeded") + planned,
            failed: count("failed"),
            skipped: count("skipped"),
            cancelled: count("cancelled"),
        }
    }

    fn all(&self) -> u64 {
        self.succeeded + self.failed + self.skipped + self.cancelled
    }

    /// Counts, rate and time left, in a line.
    fn text(&self, task: &Value, since: u64, elapsed: Duration) -> String {
        let text =
            format!("{} done, {} failed, {} skipped", self.succeeded, self.failed, self.skipped);
        if task["backfill"]["paused"] == true {
            return text + ", paused";
        }
        #[allow(clippy::cast_precision_loss)] // for people
        let rate = (self.all() - since.min(self.all())) as f64 / elapsed.as_secs_f64().max(0.001);
        let left = self.total.map(|total| total.saturating_sub(self.all()));
        match left {
            Some(left) if rate >= 0.01 => {
                #[allow(clippy::cast_precision_loss)]
                let seconds = (left as f64 / rate).min(1e9);
                let time = humantime::format_duration(Duration::from_secs_f64(seconds.round()));
                text + &format!(", {rate:.1}/s, {time} left")
            }
            _ => text,
        }
    }
}

/// What a dry run has found, and about how long the work would take.
fn print_plan(task: &Value, workers: &Value) {
    let backfill = &task["backfill"];
    let images = &backfill["images"];
    say!("  to look at  {}", images["walked"]);
    say!("  to work on  {}", images["planned"]);
    for (reason, count) in backfill["skipped"].as_object().into_iter().flatten() {
        say!("  {reason:<10}  {count}");
    }
    if backfill["kind"] == "gc" {
        say!("  which they are: safelight backfill report {}", task["id"].as_str().unwrap_or("ID"));
        return;
    }
    if images["failed"] != 0 {
        say!("  would fail  {}", images["failed"]);
    }
    match estimate(backfill, workers) {
        Some(time) => say!("  would take  about {}", humantime::format_duration(time)),
        None => say!("  would take  unknown: the workers have not done such jobs yet"),
    }
}

/// How long the work would take on the workers there are, by what such jobs have taken so far, and by the
/// rate that was asked for. `None` if no worker has done any.
fn estimate(backfill: &Value, workers: &Value) -> Option<Duration> {
    let kind = if backfill["kind"] == "verify" { "verify" } else { "thumbnail" };
    let running = workers["workers"].as_array()?.iter().filter(|w| w["status"] == "running");
    let (mut places, mut ended, mut run_ms) = (0, 0, 0);
    for slots in running.flat_map(|worker| worker["slots"].as_array().into_iter().flatten()) {
        let number = |name: &str| slots[name].as_u64().unwrap_or(0);
        if slots["kind"] == kind {
            ended += number("ended");
            run_ms += number("run_ms");
            places += if slots["lane"] == "bulk" { number("slots") } else { 0 };
        }
    }
    let places = backfill["request"]["concurrency"].as_u64().map_or(places, |n| n.min(places));
    let planned = backfill["images"]["planned"].as_u64()?;
    if planned > 0 && (ended == 0 || places == 0) {
        return None;
    }
    #[allow(clippy::cast_precision_loss)] // for people
    let (planned, each) = (planned as f64, run_ms as f64 / 1e3 / ended.max(1) as f64);
    #[allow(clippy::cast_precision_loss)]
    let by_slots = planned * each / places.max(1) as f64;
    let by_rate = backfill["request"]["rate"].as_f64().map_or(0.0, |rate| planned / rate);
    Duration::try_from_secs_f64(by_slots.max(by_rate).round()).ok()
}

fn report_path(id: &str) -> String {
    format!("/v1/tasks/{id}/report")
}

impl ReportArgs {
    /// The report's file, if there is to be one, opened.
    async fn opened(&self) -> Result<Option<Report>, Exit> {
        let Some(file) = self.file.clone() else { return Ok(None) };
        if file.is_dir() {
            return Err(cannot_write(&file, &std::io::ErrorKind::IsADirectory.into()));
        }
        let mut partial = file.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let target = tokio::fs::File::create(&partial).await;
        let target = target.map_err(|error| cannot_write(&partial, &error))?;
        Ok(Some(Report { file, partial, target }))
    }
}

impl Report {
    async fn write(mut self, client: &SafelightClient, id: &str) -> Result<(), Exit> {
        let wrong = |error| cannot_write(&self.file, &error);
        client.download(&report_path(id), &mut self.target).await?;
        self.target.sync_all().await.map_err(wrong)?;
        tokio::fs::rename(&self.partial, &self.file).await.map_err(wrong)?;
        tell!("report: {}", self.file.display());
        Ok(())
    }

    /// There is nothing to report.
    async fn give_up(self) {
        // An empty file that stays does no harm.
        let _ = tokio::fs::remove_file(&self.partial).await;
    }
}

fn cannot_write(file: &Path, error: &std::io::Error) -> Exit {
    Exit::failed(format!("cannot write {}: {error}", file.display()))
}

/// A backfill in one line: id, state, kind, counts.
fn print(task: &Value, as_json: bool) {
    if as_json {
        say!("{task}");
        return;
    }
    let backfill = &task["backfill"];
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let images = &backfill["images"];
    say!(
        "{}  {:<9}  {:<10}  {} done, {} failed, {} skipped of {}{}",
        text(&task["id"]),
        if backfill["paused"] == true { "paused".to_owned() } else { text(&task["status"]) },
        text(&backfill["kind"]),
        images["succeeded"],
        images["failed"],
        images["skipped"],
        images["total"].as_u64().map_or("?".to_owned(), |total| total.to_string()),
        if backfill["dry_run"] == true { " (dry run)" } else { "" },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_estimated_by_what_such_jobs_took() {
        let slots = |lane: &str, slots: u32, ended: u32, run_ms: u32| json!({ "kind": "thumbnail", "lane": lane, "slots": slots, "ended": ended, "run_ms": run_ms });
        let workers = |ended| {
            let slots = [slots("interactive", 4, ended, 50 * ended), slots("bulk", 3, 0, 0)];
            json!({ "workers": [{ "status": "running", "slots": slots }, { "status": "lost" }] })
        };
        let plan = |planned: u32, rate: Value| {
            let request = json!({ "rate": rate, "concurrency": null });
            json!({ "kind": "renditions", "images": { "planned": planned }, "request": request })
        };
        let seconds = Duration::from_secs;
        assert_eq!(estimate(&plan(6000, json!(null)), &workers(10)), Some(seconds(100)));
        assert_eq!(estimate(&plan(6000, json!(20.0)), &workers(10)), Some(seconds(300)));
        assert_eq!(estimate(&plan(6000, json!(null)), &workers(0)), None);
        assert_eq!(estimate(&plan(0, json!(null)), &workers(0)), Some(seconds(0)));
    }

    #[test]
    fn rates_and_times_are_read_as_people_write_them() {
        assert_eq!(rate("20/s"), Ok(20.0));
        assert_eq!(rate("0.5"), Ok(0.5));
        for wrong in ["", "0", "-1/s", "fast", "inf"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
        assert_eq!(time("2026-01-31"), time("2026-01-31T00:00:00Z"));
        assert_eq!(time("2026-01-31T13:00:00+01:00"), time("2026-01-31T12:00:00Z"));
        assert_eq!(time("2026-01-31T12:00:00"), time("2026-01-31T12:00:00Z"));
        assert!(time("yesterday").is_err());
        assert!(time("2026-02-31").is_err());
        assert_eq!(format("webp"), Ok(ImageFormat::Webp));
        assert!(format("jpg").is_err_and(|why| why.contains("did you mean `jpeg`?")));
    }

    #[test]
    fn only_work_that_failed_can_be_tried_again() {
        let backfill = |planned: u32, succeeded: u32, failed: u32, dry_run: bool| {
            let images = json!({ "planned": planned, "succeeded": succeeded, "failed": failed });
            json!({ "dry_run": dry_run, "images": images })
        };
        assert_eq!(failed_again(&backfill(3, 2, 1, false)), 1);
        assert_eq!(failed_again(&backfill(3, 3, 4, false)), 0, "four could not be taken in");
        assert_eq!(failed_again(&backfill(3, 0, 1, true)), 0);
    }
}
