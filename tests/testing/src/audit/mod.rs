//! The audit: compares the accepted uploads with what is stored.
//!
//! A [`Ledger`] records every upload whose response was 202. [`Audit::run`] waits until all work has ended,
//! reads the database, the folder of the blobs and the broker directly, and reports every difference.

mod bytes;
mod database;
mod ledger;
mod look;
mod report;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};

pub use database::Database;
pub use ledger::{AcceptedUpload, Ledger};
pub use report::Report;

use crate::{rabbitmq::RabbitMq, wait::eventually_within};

/// How long accepted work may take on a busy machine.
pub const SETTLED_LIMIT: Duration = Duration::from_secs(90);

/// How long nodes may take to remove bytes that they could not record, at the grace times of the tests.
const REMOVED_LIMIT: Duration = Duration::from_secs(20);

/// The number of presets in the default configuration.
const PRESETS: usize = 3;

/// Where a deployment stores its state.
pub struct Audit<'a> {
    /// The database.
    pub database: Database,
    /// The folder that contains the objects by key.
    pub blobs: PathBuf,
    /// The broker, with the URL of the virtual host; `None` for the in-process queue.
    pub broker: Option<(&'a RabbitMq, &'a str)>,
}

impl Audit<'_> {
    /// Waits until all work has ended, then compares. Differences are in the report; an error means that the
    /// audit itself failed.
    pub async fn run(&self, ledger: &Ledger) -> Result<Report> {
        self.run_within(ledger, SETTLED_LIMIT).await
    }

    /// Like [`Audit::run`], but waits for at most `limit`.
    pub async fn run_within(&self, ledger: &Ledger, limit: Duration) -> Result<Report> {
        let left = self.wait_until_ended(limit).await?;
        let mut report = Report { left, ..Report::default() };
        let uploads = ledger.uploads();
        self.compare_tasks(&uploads, &mut report).await?;
        self.compare_bytes(&mut report).await?;
        Ok(report)
    }

    /// Waits for at most `limit` until all work has ended; returns the unfinished work.
    async fn wait_until_ended(&self, limit: Duration) -> Result<Vec<String>> {
        let mut left = Ok(Vec::new());
        let ended = eventually_within(limit, "all work has ended", async || {
            left = self.unfinished().await;
            Ok(!left.as_ref().is_ok_and(|left| !left.is_empty()))
        });
        // Unfinished work is no error, but part of the report.
        let _ = ended.await;
        left
    }

    /// Work that has not ended, and bytes that are not in their final place.
    async fn unfinished(&self) -> Result<Vec<String>> {
        let mut left = self.database.unfinished().await.unwrap_or_else(|e| vec![e.to_string()]);
        left.extend(bytes::staged(&self.blobs)?.iter().map(|name| format!("staged {name}")));
        left.extend(bytes::trash(&self.blobs)?.iter().map(|name| format!("trash {name}")));
        // The broker comes last, because asking it takes a second.
        if left.is_empty() {
            left.extend(self.held_messages()?);
        }
        Ok(left)
    }

    fn held_messages(&self) -> Result<Option<String>> {
        let Some((node, url)) = self.broker else { return Ok(None) };
        let held = tokio::task::block_in_place(|| node.held(url))?;
        Ok((held > 0).then(|| format!("{held} messages")))
    }

    async fn compare_tasks(&self, uploads: &[AcceptedUpload], report: &mut Report) -> Result<()> {
        let tasks = self.database.tasks().await?;
        report.accepted = uploads.len();
        report.tasks = tasks.len();
        for (id, task) in &tasks {
            let jobs = &task.jobs;
            report.jobs += jobs.len();
            report.attempts += jobs.iter().map(|job| job.attempts).sum::<u64>();
            if !task.is_final() {
                report.stuck.push(format!("task {id} is {}", task.status));
            }
            let succeeded = jobs.iter().filter(|job| job.status == "succeeded").count();
            if task.counted != (jobs.len(), succeeded) {
                report.doubled.push(format!(
                    "task {id} counts {:?} jobs (total, succeeded) instead of {:?}",
                    task.counted,
                    (jobs.len(), succeeded)
                ));
            }
        }
        for upload in uploads {
            match tasks.get(&upload.task) {
                None => report.lost.push(format!("task {} is missing", upload.task)),
                Some(task) if task.is_final() && task.status != "succeeded" => {
                    report.lost.push(format!("task {} ended as {task:?}", upload.task));
                }
                Some(_) => {}
            }
        }
        let sent: HashMap<_, _> =
            uploads.iter().map(|upload| (&upload.image, (&upload.sha256, upload.bytes))).collect();
        for image in self.database.images().await? {
            if let Some(&(sha256, bytes)) = sent.get(&image.id)
                && !image.deleted
                && (sha256, bytes) != (&image.sha256, image.bytes)
            {
                report.lost.push(format!("image {} is recorded with other bytes", image.id));
            }
        }
        Ok(())
    }

    /// Checks that there is exactly one intact blob for each content, and one intact file for each rendition.
    async fn compare_bytes(&self, report: &mut Report) -> Result<()> {
        let images = self.database.images().await?;
        let known: HashSet<_> = images.iter().map(|image| image.sha256.clone()).collect();
        let stored: HashSet<String> =
            images.into_iter().filter(|image| image.stored).map(|image| image.sha256).collect();
        let blobs = bytes::originals(&self.blobs)?;
        for sha256 in &stored {
            match blobs.get(sha256).map(Vec::as_slice) {
                None => report.lost.push(format!("blob {sha256} is missing")),
                Some([content]) if content == sha256 => {}
                Some([_]) => report.lost.push(format!("blob {sha256} contains other bytes")),
                Some(_) => report.doubled.push(format!("blob {sha256} exists twice")),
            }
        }
        let left =
            blobs.keys().filter(|sha256| known.contains(*sha256) && !stored.contains(*sha256));
        report.left.extend(left.map(|sha256| format!("blob {sha256}")));
        self.compare_renditions(&stored, report).await
    }

    /// Waits until every blob is that of an image. A node removes the bytes of uploads that it could not record; those
    /// of nodes that died are left to a collection of garbage.
    pub async fn eventually_all_referenced(&self) -> Result<()> {
        let mut found = Vec::new();
        let removed =
            eventually_within(REMOVED_LIMIT, "all blobs are those of images", async || {
                let known: HashSet<_> =
                    self.database.images().await?.into_iter().map(|image| image.sha256).collect();
                found = bytes::originals(&self.blobs)?.into_keys().collect();
                found.retain(|sha256| !known.contains(sha256));
                Ok(found.is_empty())
            });
        removed.await.with_context(|| format!("without an image: {found:?}"))
    }

    async fn compare_renditions(
        &self,
        stored: &HashSet<String>,
        report: &mut Report,
    ) -> Result<()> {
        let recorded = self.database.renditions().await?;
        let mut presets: HashMap<&str, Vec<&str>> = HashMap::new();
        for rendition in &recorded {
            presets.entry(&rendition.of).or_default().push(&rendition.preset);
        }
        for sha256 in stored {
            let mut made = presets.get(sha256.as_str()).cloned().unwrap_or_default();
            let rows = made.len();
            made.sort_unstable();
            made.dedup();
            if made.len() < PRESETS {
                report.lost.push(format!("blob {sha256} has only the renditions {made:?}"));
            } else if rows > PRESETS {
                report.doubled.push(format!("blob {sha256} has {rows} renditions"));
            }
        }
        let looks = bytes::looks(&self.blobs)?;
        let mut files = bytes::renditions(&self.blobs)?;
        for rendition in &recorded {
            let Some(file) = files.remove(&(rendition.of.clone(), rendition.stem())) else {
                report.lost.push(format!("{rendition:?} is missing"));
                continue;
            };
            match (file.look, looks.get(&rendition.of)) {
                _ if file.sha256 != rendition.sha256 => {
                    report.lost.push(format!("{rendition:?} contains other bytes"));
                }
                (None, _) => report.lost.push(format!("{rendition:?} cannot be decoded")),
                (Some(look), Some(original)) if !look.is_of(original) => {
                    report.wrong.push(format!("{rendition:?} does not show its original"));
                }
                // An original that is missing or damaged is reported as lost.
                _ => {}
            }
        }
        report.left.extend(files.into_keys().map(|(of, name)| format!("rendition {of}/{name}")));
        Ok(())
    }
}
