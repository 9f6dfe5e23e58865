//! `safelight upload`: upload files and folders to a running server.

use std::{
    fs::File,
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
};

use clap::Args;
use futures::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use safelight_client::Client;
use safelight_domain::{ImageFormat, TaskId, is_invisible_control};
use safelight_rooted_files::{Kind, RootedFolder};
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
    let client = args.server.client().await?;
    let Found { files, skipped, unreadable } = find(&args.paths)?;
    let (total, mut failed) = (files.len() + unreadable.len(), unreadable.len());
    for (path, error) in unreadable {
        let error = Some(format!("cannot be read: {error}"));
        Outcome { task: None, error }.print(&path, args.json);
    }
    let bar = progress_bar(files.len());
    let mut results = stream::iter(&files)
        .map(async |file| (file, upload(&client, file, args.wait).await))
        .buffer_unordered(args.concurrency.into());
    while let Some((file, outcome)) = results.next().await {
        failed += usize::from(outcome.error.is_some());
        bar.suspend(|| outcome.print(&file.path, args.json));
        bar.inc(1);
    }
    bar.finish_and_clear();
    if skipped > 0 {
        status!("{skipped} files skipped: no pictures by their first bytes");
    }
    if failed > 0 {
        return Err(CommandError::failed(format!("{failed} of {total} failed")));
    }
    status!("{total} uploaded");
    Ok(())
}

/// The result of one file.
#[derive(Default)]
struct Outcome {
    /// The task, if the upload was accepted.
    task: Option<Value>,
    /// Why it failed.
    error: Option<String>,
}

async fn upload(client: &Client, file: &FoundFile, wait: bool) -> Outcome {
    // New for each run: running the command again uploads again.
    let key = TaskId::new().to_string();
    let name = file.path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let open = async || {
        let file = file.clone();
        tokio::task::spawn_blocking(move || file.open()).await.map_err(io::Error::other)?
    };
    let task = match client.upload_file(&name, open, &key).await {
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

/// A path as one line that controls no terminal.
fn printable(path: &Path) -> String {
    let shown = path.display().to_string();
    let escaped = |c: char| {
        if is_invisible_control(c) { c.escape_default().to_string() } else { c.to_string() }
    };
    shown.chars().map(escaped).collect()
}

impl Outcome {
    fn print(&self, file: &Path, as_json: bool) {
        let name = printable(file);
        let text =
            |key: &str| self.task.as_ref().and_then(|task| task[key].as_str()).unwrap_or("-");
        match &self.error {
            _ if as_json => {
                let Self { task, error } = self;
                output!(
                    "{}",
                    json!({ "file": file.display().to_string(), "task": task, "error": error })
                );
            }
            None => output!("{} {} {name}", text("status"), text("id")),
            Some(reason) => status!("failed {name}: {reason}"),
        }
    }
}

/// A file to upload.
#[derive(Debug, Clone)]
struct FoundFile {
    /// As it is shown.
    path: PathBuf,
    /// The folder that was searched, and the path in it; `None` for a file that was named.
    found_in: Option<(RootedFolder, PathBuf)>,
}

impl FoundFile {
    /// Opens it. A file that was found is opened beneath its folder, whose owner may be somebody else: a link that
    /// has replaced it, or a folder on the way, could lead to any file of the user who runs this.
    fn open(&self) -> io::Result<File> {
        let Some((folder, path)) = &self.found_in else { return File::open(&self.path) };
        folder.file(path)?.ok_or_else(|| io::Error::other("it is no plain file any more"))
    }
}

/// What there is to upload.
#[derive(Default)]
struct Found {
    /// The files named, and the pictures in the folders named, in order.
    files: Vec<FoundFile>,
    /// How many other files the folders hold.
    skipped: usize,
    /// The folders and files that cannot be read.
    unreadable: Vec<(PathBuf, io::Error)>,
}

/// Looks at everything that was named.
fn find(paths: &[PathBuf]) -> Result<Found, CommandError> {
    let mut found = Found::default();
    for path in paths {
        let meta = std::fs::metadata(path).map_err(|error| {
            CommandError::usage(format!("cannot read {}: {error}", path.display()))
        })?;
        if !meta.is_dir() && !meta.is_file() {
            // A pipe would be waited for.
            let error = io::Error::other("neither a file nor a folder");
            found.unreadable.push((path.clone(), error));
            continue;
        }
        if meta.is_file() {
            found.files.push(FoundFile { path: path.clone(), found_in: None });
            continue;
        }
        match RootedFolder::open(path) {
            Ok(root) => found.search((&root, path), Path::new("")),
            Err(error) => found.unreadable.push((path.clone(), error)),
        }
    }
    if found.files.is_empty() && found.unreadable.is_empty() {
        return Err(CommandError::failed("no pictures there"));
    }
    Ok(found)
}

impl Found {
    /// Searches a folder of `root`, which was named by its path.
    fn search(&mut self, root: (&RootedFolder, &Path), folder: &Path) {
        let (opened, named) = root;
        let entries = opened.names(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let mut entries = match entries {
            Ok(entries) => entries,
            // The others are uploaded all the same.
            Err(error) => return self.unreadable.push((named.join(folder), error)),
        };
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (name, kind) in entries {
            let path = folder.join(name);
            let file = FoundFile {
                path: named.join(&path),
                found_in: Some((opened.clone(), path.clone())),
            };
            // Links are not followed: they may lead in circles, or to files that are nobody's pictures.
            match kind {
                Kind::Folder => self.search(root, &path),
                Kind::File => match is_picture(&file) {
                    Ok(true) => self.files.push(file),
                    Ok(false) => self.skipped += 1,
                    Err(error) => self.unreadable.push((file.path, error)),
                },
                Kind::Other => self.skipped += 1,
            }
        }
    }
}

fn is_picture(file: &FoundFile) -> io::Result<bool> {
    let mut head = Vec::new();
    let limit = ImageFormat::SNIFF_BYTES as u64;
    file.open()?.take(limit).read_to_end(&mut head)?;
    Ok(ImageFormat::sniff(&head).is_some())
}

fn progress_bar(files: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len}  {per_sec}  {eta} left");
    ProgressBar::new(files as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn printed_names_are_one_line_without_controls() {
        let name = Path::new("a\nqueued b\u{1b}]0;x\u{7}\u{202e}ü.png");
        assert_eq!(printable(name), "a\\nqueued b\\u{1b}]0;x\\u{7}\\u{202e}ü.png");
    }

    #[test]
    fn folder_that_cannot_be_read_is_told_and_hides_no_other() {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("1.png"), b"\x89PNG\r\n\x1a\n and more").expect("file");
        let root = RootedFolder::open(folder.path()).expect("a folder");
        let mut found = Found::default();
        for searched in ["gone", ""] {
            found.search((&root, folder.path()), Path::new(searched));
        }
        let told: Vec<_> = found.unreadable.iter().map(|(path, _)| path.clone()).collect();
        assert_eq!((found.files.len(), told), (1, vec![folder.path().join("gone")]));
    }

    #[test]
    fn link_that_replaced_a_found_file_is_not_uploaded() {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name);
        for name in ["photos/a", "secret"] {
            fs::create_dir_all(path(name)).expect("folder");
        }
        for name in ["photos/a/1.png", "photos/2.png", "photos/3.png", "secret/1.png"] {
            fs::write(path(name), b"\x89PNG\r\n\x1a\n and more").expect("file");
        }
        symlink(path("secret/1.png"), path("photos/link.png")).expect("link");
        let found = find(&[path("photos"), path("photos/link.png")]).expect("found");
        let Found { files, skipped, unreadable } = found;
        assert!(unreadable.is_empty(), "{unreadable:?}");
        let found: Vec<_> = files.iter().map(|file| file.path.clone()).collect();
        let expected = ["photos/2.png", "photos/3.png", "photos/a/1.png", "photos/link.png"];
        assert_eq!((found, skipped), (expected.map(path).to_vec(), 1));

        fs::remove_file(path("photos/2.png")).expect("removed");
        symlink(path("secret/1.png"), path("photos/2.png")).expect("link");
        fs::remove_dir_all(path("photos/a")).expect("removed");
        symlink(path("secret"), path("photos/a")).expect("link");
        let opens: Vec<_> = files.iter().map(|file| file.open().is_ok()).collect();
        assert_eq!(opens, [false, true, false, true], "only a file that was named may be a link");
    }
}
