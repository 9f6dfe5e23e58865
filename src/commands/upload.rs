//! `safelight upload`: upload files and folders to a running server.

use std::{
    fs::File,
    io::{IsTerminal, Read},
    path::{Path, PathBuf},
};

use clap::Args;
use futures::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use safelight_client::Client;
use safelight_domain::{ImageFormat, TaskId};
use serde_json::{Value, json};

use super::server_args::ServerArgs;
use crate::{
    error::CommandError,
    output::{output, status},
};

/// Options of `safelight upload`.
#[derive(Args)]
pub struct UploadArgs {
    /// Files, and folders to search for images
    #[arg(required = true, value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,
    /// Wait until each image is processed, not only accepted
    #[arg(long)]
    wait: bool,
    /// Print one JSON object per file
    #[arg(long)]
    json: bool,
    /// Maximum number of concurrent uploads
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
    #[command(flatten)]
    server: ServerArgs,
}

/// Uploads everything; fails if any file did.
pub async fn run(args: UploadArgs) -> Result<(), CommandError> {
    let client = args.server.client()?;
    let (files, skipped) = find(&args.paths)?;
    let bar = progress_bar(files.len());
    let mut results = stream::iter(&files)
        .map(async |file| (file, upload(&client, file, args.wait).await))
        .buffer_unordered(args.concurrency.into());
    let mut failed = 0;
    while let Some((file, outcome)) = results.next().await {
        failed += usize::from(outcome.error.is_some());
        bar.suspend(|| outcome.print(file, args.json));
        bar.inc(1);
    }
    bar.finish_and_clear();
    if skipped > 0 {
        status!("{skipped} files skipped: no pictures by their first bytes");
    }
    match (failed, files.len()) {
        (0, total) => {
            status!("{total} uploaded");
            Ok(())
        }
        (failed, total) => Err(CommandError::failed(format!("{failed} of {total} files failed"))),
    }
}

/// The result of one file.
#[derive(Default)]
struct Outcome {
    /// The task, if the upload was accepted.
    task: Option<Value>,
    /// Why it failed.
    error: Option<String>,
}

async fn upload(client: &Client, file: &Path, wait: bool) -> Outcome {
    // New for each run: running the command again uploads again.
    let key = TaskId::new().to_string();
    let task = match client.upload_file(file, &key).await {
        Ok(task) => task,
        Err(reason) => return Outcome { task: None, error: Some(reason.to_string()) },
    };
    let Some(id) = task["id"].as_str().filter(|_| wait) else {
        return Outcome { task: Some(task), error: None };
    };
    match client.wait_for_task(id).await {
        Ok(task) => Outcome { error: failure(&task), task: Some(task) },
        Err(reason) => Outcome { task: Some(task), error: Some(reason.to_string()) },
    }
}

/// Why a task that has ended did not succeed, if it did not.
fn failure(task: &Value) -> Option<String> {
    let status = task["status"].as_str().unwrap_or("ended without a status");
    let reason = task["error"]["message"].as_str().unwrap_or("no reason given");
    let id = task["id"].as_str().unwrap_or("-");
    (status != "succeeded").then(|| format!("task {id} {status}: {reason}"))
}

impl Outcome {
    fn print(&self, file: &Path, as_json: bool) {
        let name = file.display();
        let text =
            |key: &str| self.task.as_ref().and_then(|task| task[key].as_str()).unwrap_or("-");
        match &self.error {
            _ if as_json => {
                let Self { task, error } = self;
                output!("{}", json!({ "file": name.to_string(), "task": task, "error": error }));
            }
            None => output!("{} {} {name}", text("status"), text("id")),
            Some(reason) => status!("failed {name}: {reason}"),
        }
    }
}

/// The files named, and the pictures in the folders named, sorted; and how many other files the
/// folders hold.
fn find(paths: &[PathBuf]) -> Result<(Vec<PathBuf>, usize), CommandError> {
    let (mut files, mut skipped) = (Vec::new(), 0);
    for path in paths {
        let meta = std::fs::metadata(path).map_err(|error| {
            CommandError::usage(format!("cannot read {}: {error}", path.display()))
        })?;
        if meta.is_dir() {
            search(path, &mut files, &mut skipped).map_err(|error| {
                CommandError::failed(format!("cannot read {}: {error}", path.display()))
            })?;
        } else {
            files.push(path.clone());
        }
    }
    if files.is_empty() {
        return Err(CommandError::failed("no pictures there"));
    }
    Ok((files, skipped))
}

fn search(folder: &Path, files: &mut Vec<PathBuf>, skipped: &mut usize) -> std::io::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::path);
    for entry in entries {
        let (kind, path) = (entry.file_type()?, entry.path());
        // Links are not followed: they may lead in circles.
        if kind.is_dir() {
            search(&path, files, skipped)?;
        } else if kind.is_file() && is_picture(&path) {
            files.push(path);
        } else {
            *skipped += 1;
        }
    }
    Ok(())
}

fn is_picture(file: &Path) -> bool {
    let mut head = Vec::new();
    let limit = ImageFormat::SNIFF_BYTES as u64;
    File::open(file).and_then(|f| f.take(limit).read_to_end(&mut head)).is_ok()
        && ImageFormat::sniff(&head).is_some()
}

fn progress_bar(files: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len}  {per_sec}  {eta} left");
    ProgressBar::new(files as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
