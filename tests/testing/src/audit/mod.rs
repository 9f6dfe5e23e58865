//! The audit: what clients were promised, against what is there.
//!
//! A [`Ledger`] holds every upload that was answered with 202. [`Audit::run`] waits until all work
//! has ended, then looks past the program, straight into the database, the blobs' folder and the
//! broker, and reports what does not add up.

mod bytes;
mod database;
mod ledger;
mod report;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    time::Duration,
};

use anyhow::Result;

pub use database::Database;
pub use ledger::{Entry, Ledger};
pub use report::Report;

use crate::{rabbitmq::RabbitMq, wait::eventually_within};

/// How long accepted work may take to end, on a busy machine.
pub const SETTLED_LIMIT: Duration = Duration::from_secs(90);

/// Renditions of a picture under the default configuration.
const PRESETS: usize = 3;

/// Where the truth of one deployment lies.
pub struct Audit<'a> {
    /// The database.
    pub database: Database,
    /// The folder under which blobs lie by key.
    pub blobs: PathBuf,
    /// The broker, with the URL of the virtual host; `None` for the in-process queue.
    pub broker: Option<(&'a RabbitMq, &'a str)>,
}

impl Audit<'_> {
    /// Waits until everything has ended, then compares. An error is one of the audit itself; what
    /// it finds is in the report.
    pub async fn run(&self, ledger: &Ledger) -> Result<Report> {
        self.run_within(ledger, SETTLED_LIMIT).await
    }

    /// [`Audit::run`] that waits at most `limit`.
    pub async fn run_within(&self, ledger: &Ledger, limit: Duration) -> Result<Report> {
        let left = self.until_settled(limit).await?;
        let mut report = Report { left, ..Report::default() };
        let entries = ledger.entries();
        self.compare_tasks(&entries, &mut report).await?;
        self.compare_bytes(&mut report).await?;
        Ok(report)
    }

    /// Returns what is still under way when `limit` is over; nothing, if all ended before.
    async fn until_settled(&self, limit: Duration) -> Result<Vec<String>> {
        let mut left = Ok(Vec::new());
        let settled = eventually_within(limit, "all work has ended", async || {
            left = self.in_progress().await;
            Ok(!left.as_ref().is_ok_and(|left| !left.is_empty()))
        });
        // Work that has not ended is no error, but part of the report.
        let _ = settled.await;
        left
    }

    /// Work and bytes that are not final.
    async fn in_progress(&self) -> Result<Vec<String>> {
        let mut left = self.database.under_way().await.unwrap_or_else(|e| vec![e.to_string()]);
        left.extend(bytes::staged(&self.blobs)?.iter().map(|name| format!("staged {name}")));
        left.extend(bytes::trash(&self.blobs)?.iter().map(|name| format!("trash {name}")));
        // Asking the broker takes a second, so last.
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

    async fn compare_tasks(&self, entries: &[Entry], report: &mut Report) -> Result<()> {
        let tasks = self.database.tasks().await?;
        report.accepted = entries.len();
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
                    "task {id} counts {:?} of its jobs, where there are {:?}",
                    task.counted,
                    (jobs.len(), succeeded)
                ));
            }
        }
        for entry in entries {
            match tasks.get(&entry.task) {
                None => report.lost.push(format!("task {} is not there", entry.task)),
                Some(task) if task.is_final() && task.status != "succeeded" => {
                    report.lost.push(format!("task {} ended as {task:?}", entry.task));
                }
                Some(_) => {}
            }
        }
        let promised: HashMap<_, _> =
            entries.iter().map(|entry| (&entry.image, (&entry.sha256, entry.bytes))).collect();
        for image in self.database.images().await? {
            if let Some(&(sha256, bytes)) = promised.get(&image.id)
                && !image.deleted
                && (sha256, bytes) != (&image.sha256, image.bytes)
            {
                report.lost.push(format!("image {} is recorded as other bytes", image.id));
            }
        }
        Ok(())
    }

    /// Exactly one blob for each content, and one file for each rendition, all whole.
    async fn compare_bytes(&self, report: &mut Report) -> Result<()> {
        let stored: HashSet<String> = self
            .database
            .images()
            .await?
            .into_iter()
            .filter(|i| i.stored)
            .map(|i| i.sha256)
            .collect();
        let blobs = bytes::originals(&self.blobs)?;
        for sha256 in &stored {
            match blobs.get(sha256).map(Vec::as_slice) {
                None => report.lost.push(format!("blob {sha256} is not there")),
                Some([content]) if content == sha256 => {}
                Some([_]) => report.lost.push(format!("blob {sha256} holds other bytes")),
                Some(_) => report.doubled.push(format!("blob {sha256} is there twice")),
            }
        }
        report.left.extend(
            blobs.keys().filter(|sha256| !stored.contains(*sha256)).map(|s| format!("blob {s}")),
        );
        self.compare_renditions(&stored, report).await
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
                report.lost.push(format!("blob {sha256} has renditions {made:?} only"));
            } else if rows > PRESETS {
                report.doubled.push(format!("blob {sha256} has {rows} renditions"));
            }
        }
        let mut files = bytes::renditions(&self.blobs)?;
        for rendition in &recorded {
            match files.remove(&(rendition.of.clone(), rendition.stem())) {
                Some(file) if file.sha256 == rendition.sha256 && file.decodes => {}
                Some(_) => report.lost.push(format!("{rendition:?} holds other bytes")),
                None => report.lost.push(format!("{rendition:?} is not there")),
            }
        }
        report.left.extend(files.into_keys().map(|(of, name)| format!("rendition {of}/{name}")));
        Ok(())
    }
}
