//! `safelight backfill`: start, follow, pause and resume work on many images. The server does the work whether
//! or not this command runs.

mod plan;
mod progress;
mod report;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use safelight_domain::{ImageFormat, TaskId, UnknownName, Visibility};
use serde_json::{Value, json};

use super::server_args::ServerArgs;
use crate::{
    error::CommandError,
    output::{output, status},
};
use report::{Report, ReportArgs};

/// Options of `safelight backfill`.
#[derive(Args)]
pub struct BackfillArgs {
    #[command(subcommand)]
    command: BackfillCommand,
}

#[derive(Subcommand)]
enum BackfillCommand {
    /// Make renditions of stored images, for presets that were added or changed
    Renditions {
        /// Only this preset; may be given several times
        #[arg(long = "preset", value_name = "P")]
        presets: Vec<String>,
        /// Only images without the rendition (the default)
        #[arg(long, conflicts_with = "all")]
        missing: bool,
        /// All images, also those with the rendition
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        images: Images,
        #[command(flatten)]
        begin: Begin,
    },
    /// Import existing images; those that are already stored are skipped
    Import {
        /// A folder, `s3://BUCKET/PREFIX`, or a file with a path or {"path", "title", "tags", "filename"} per
        /// line; as the server sees it
        #[arg(value_name = "DIR|s3://…|LIST.ndjson")]
        source: String,
        /// Who may read the images: public or private [default: as for uploads]
        #[arg(long, value_name = "WHO")]
        visibility: Option<Visibility>,
        /// Also files that are identical to images that failed permanently before
        #[arg(long)]
        retry_failed: bool,
        #[command(flatten)]
        begin: Begin,
    },
    /// Read every blob and rendition, compare it with its hash, repair damaged ones if possible
    Verify {
        #[command(flatten)]
        images: Images,
        #[command(flatten)]
        begin: Begin,
    },
    /// Collect garbage: move stored objects that nothing refers to into the quarantine
    Gc {
        /// Also if the database knows no image, is an older copy, or does not know more than a tenth of the stored
        /// originals
        #[arg(long, conflicts_with = "take_back")]
        force: bool,
        /// Undo collections instead: move back what this collection, or all of them, moved into the quarantine
        #[arg(long, value_name = "TASK", num_args = 0..=1)]
        #[allow(clippy::option_option)] // without, with, and with a value
        take_back: Option<Option<TaskId>>,
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
    /// Pause a backfill: images in progress are finished, no others are started
    Pause {
        /// The backfill's id
        id: TaskId,
        #[command(flatten)]
        output: Output,
    },
    /// Resume a paused backfill
    Resume {
        /// The backfill's id
        id: TaskId,
        #[command(flatten)]
        output: Output,
    },
    /// Print the result of each image so far, one JSON object per line
    Report {
        /// The backfill's id
        id: TaskId,
        #[command(flatten)]
        server: ServerArgs,
    },
}

/// The images that a backfill covers.
#[derive(Args)]
struct Images {
    /// Only images accepted at this time or later: 2026-01-31, 2026-01-31T12:00:00Z or
    /// 2026-01-31T13:00:00+01:00
    #[arg(long, value_name = "TIME", value_parser = time)]
    created_after: Option<DateTime<Utc>>,
    /// Only originals of this format: jpeg, png, gif, webp, tiff, bmp, avif
    #[arg(long, value_parser = format)]
    format: Option<ImageFormat>,
    /// Also images that failed permanently before
    #[arg(long)]
    retry_failed: bool,
}

/// How a backfill is done, and whether this command follows it.
#[derive(Args)]
struct Begin {
    /// Only count what would be done, and estimate how long it would take
    #[arg(long)]
    dry_run: bool,
    /// Maximum number of images per second, such as 20/s
    #[arg(long, value_name = "N/s", value_parser = rate)]
    rate: Option<f64>,
    /// Maximum number of images in progress
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// Follow it until it has ended; Ctrl-C ends this command, not the backfill
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    report: ReportArgs,
    #[command(flatten)]
    output: Output,
}

/// How to print the backfill, and which server has it.
#[derive(Args)]
struct Output {
    /// Print the task as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
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

/// A format by its name. File name extensions are likely mistakes.
fn format(name: &str) -> Result<ImageFormat, String> {
    name.parse().map_err(|error: UnknownName| match name.to_ascii_lowercase().as_str() {
        "jpg" | "jpe" | "jfif" => format!("{error}; did you mean `jpeg`?"),
        "tif" => format!("{error}; did you mean `tiff`?"),
        _ => error.to_string(),
    })
}

/// Runs the subcommand.
pub async fn run(args: BackfillArgs) -> Result<(), CommandError> {
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
            follow(&id.to_string(), report.open().await?, &output, false).await
        }
        BackfillCommand::Gc { force, take_back, begin } => {
            let mut what = json!({ "kind": "gc" });
            if force {
                what["force"] = json!(true);
            }
            if let Some(run) = take_back {
                what["take_back"] = run.map_or(json!(true), |run| json!(run));
            }
            start(what, begin).await
        }
        BackfillCommand::Pause { id, output } => {
            print(&output.server.client().await?.pause_backfill(id).await?, output.json);
            Ok(())
        }
        BackfillCommand::Resume { id, output } => {
            print(&output.server.client().await?.resume_backfill(id).await?, output.json);
            Ok(())
        }
        BackfillCommand::Report { id, server } => {
            let client = server.client().await?;
            let mut stdout = tokio::io::stdout();
            Ok(client.backfill_report(id, &mut stdout).await?)
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

/// A path that does not depend on the folder of this process, which the server does not share.
fn absolute(source: &str) -> Result<String, CommandError> {
    if source.starts_with("s3://") {
        return Ok(source.to_owned());
    }
    let path = std::path::absolute(source).map_err(CommandError::usage)?;
    match path.into_os_string().into_string() {
        Ok(path) => Ok(path),
        Err(_) => {
            Err(CommandError::usage("the path is no UTF-8, and cannot be sent to the server"))
        }
    }
}

async fn start(mut what: Value, begin: Begin) -> Result<(), CommandError> {
    // A dry run of `gc` has a report: it lists the objects.
    if begin.dry_run && begin.report.file.is_some() && what["kind"] != "gc" {
        return Err(CommandError::usage("a dry run has no report: it only counts")
            .hint("leave out --report, or --dry-run"));
    }
    let client = begin.output.server.client().await?;
    // A file that cannot be written is an error before the work starts.
    let report = begin.report.open().await?;
    // Chosen here, so that a repetition after a lost answer starts no second backfill.
    what["id"] = json!(TaskId::new());
    what["dry_run"] = json!(begin.dry_run);
    what["rate"] = json!(begin.rate);
    what["concurrency"] = json!(begin.concurrency);
    let task = match client.start_backfill(&what).await {
        Ok(task) => task,
        Err(error) => {
            if let Some(report) = report {
                report.discard().await;
            }
            return Err(error.into());
        }
    };
    let id = task["id"].as_str().unwrap_or_default().to_owned();
    if !begin.follow && !begin.dry_run && report.is_none() {
        print(&task, begin.output.json);
        status!("the server continues by itself; to watch: safelight backfill follow {id}");
        return Ok(());
    }
    if !begin.dry_run {
        // Now rather than at the end: this command may be killed, and the backfill continues.
        status!("backfill {id} has started; to follow it again: safelight backfill follow {id}");
    }
    follow(&id, report, &begin.output, begin.dry_run).await
}

/// Follows a backfill to its end and prints its result.
async fn follow(
    id: &str,
    report: Option<Report>,
    output: &Output,
    dry_run: bool,
) -> Result<(), CommandError> {
    let client = output.server.client().await?;
    let task = progress::watch(&client, id).await?;
    if let Some(report) = report {
        report.write(&client, id).await?;
    }
    print(&task, output.json);
    if dry_run && !output.json {
        plan::print(&task, &client.workers().await?);
    }
    match task["status"].as_str() {
        Some("succeeded") => Ok(()),
        Some("cancelled") => Err(CommandError::failed("the backfill was cancelled")),
        _ => {
            let message = task["error"]["message"].as_str().unwrap_or("the backfill failed");
            Err(match message.split_once("; hint: ") {
                Some((message, hint)) => CommandError::failed(message).hint(hint),
                None if retryable_images(&task["backfill"]) > 0 => CommandError::failed(message)
                    .hint(format!("safelight tasks retry {id} tries the failed images again")),
                None => CommandError::failed(message),
            })
        }
    }
}

/// Images of a backfill that has ended whose job failed and can be retried. Files that could not be imported at
/// all never had a job.
fn retryable_images(backfill: &Value) -> u64 {
    let count = |name: &str| backfill["images"][name].as_u64().unwrap_or(0);
    if backfill["dry_run"] == true {
        return 0;
    }
    count("planned").saturating_sub(count("succeeded") + count("cancelled"))
}

/// Prints a backfill in one line: id, status, kind, counts.
fn print(task: &Value, as_json: bool) {
    if as_json {
        output!("{task}");
        return;
    }
    let backfill = &task["backfill"];
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let images = &backfill["images"];
    output!(
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
    fn rates_times_and_formats_are_parsed() {
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
    fn only_failed_jobs_can_be_retried() {
        let backfill = |planned: u32, succeeded: u32, failed: u32, dry_run: bool| {
            let images = json!({ "planned": planned, "succeeded": succeeded, "failed": failed });
            json!({ "dry_run": dry_run, "images": images })
        };
        assert_eq!(retryable_images(&backfill(3, 2, 1, false)), 1);
        assert_eq!(retryable_images(&backfill(3, 3, 4, false)), 0, "four could not be imported");
        assert_eq!(retryable_images(&backfill(3, 0, 1, true)), 0);
    }
}
