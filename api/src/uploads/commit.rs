//! The end of an upload: durable bytes, one transaction, a signal to the outbox relay.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use chrono::{DateTime, Utc};
use safelight_blobs::{BlobKey, Blobs, Content, Ingest};
use safelight_domain::{
    ContentHash, Image, ImageId, Job, JobKind, Labels, Lane, Owner, Progress, Quota, Status, Task,
    TaskId, TaskKind, Visibility,
};
use safelight_queue::OutboxSignal;
use safelight_store::{Accepted, NewUpload, Uploads};
use safelight_telemetry::traces;
use tracing::{Instrument, Span, field::Empty};

use super::idempotency::{self, ReservedKey};
use crate::{
    http::{
        digest,
        problem::{Problem, ProblemCode},
    },
    limits::{Permit, over_quota},
};

/// An upload whose last byte has arrived.
pub struct ReceivedUpload {
    /// The image that it becomes.
    pub image: ImageId,
    /// Its owner.
    pub owner: Owner,
    /// Its bytes.
    pub ingest: Ingest,
    /// The labels that came with them.
    pub labels: Labels,
    /// The hashes that the bytes must have: those of the client that are still to be checked.
    pub expected: Vec<ContentHash>,
    /// Its idempotency key.
    pub key: Option<ReservedKey>,
    /// Its permit among the uploads in flight.
    pub permit: Permit<Owner>,
}

/// Makes uploads durable and records them. Clones share it.
#[derive(Clone)]
pub struct Committer {
    /// Where uploads are recorded.
    pub store: Arc<dyn Uploads>,
    /// Where their bytes are.
    pub blobs: Blobs,
    /// Announces their jobs.
    pub outbox_signal: OutboxSignal,
    /// How old staged bytes must be before the janitor may delete them.
    pub staged_grace: Duration,
    /// Who may read an image if its client does not say.
    pub default_visibility: Visibility,
    /// Attempts of each job.
    pub max_attempts: u32,
}

impl Committer {
    /// Makes the upload durable and records it; `quota` limits what its owner may store. Must run in a
    /// separate task, so that a client that hangs up cannot interrupt it.
    pub async fn commit(&self, received: ReceivedUpload, quota: Quota) -> Result<Task, Problem> {
        let ReceivedUpload { image, owner, ingest, labels, expected, key, permit } = received;
        // The span of the request, if it is traced: the spans of its jobs become its children.
        let trace = traces::current();
        let started = Moment::now();
        let content = ingest.end().await?.keep().await?;
        safelight_fail_points::hit("upload.staged").await;
        if let Some(problem) = rejection(&content, &expected) {
            self.discard(image).await;
            return Err(problem);
        }
        let new = self.new_upload((image, owner, quota), &content, labels, key.as_ref());
        let upload = NewUpload { trace, ..new };
        let (task, bytes) = (upload.task, upload.bytes);
        Span::current().record("safelight.task", tracing::field::display(task));
        let logged = tracing::info_span!("upload", %task, %image);
        let at = self.record(&upload, started).instrument(logged.clone()).await?;
        logged.in_scope(|| tracing::debug!(bytes, "accepted"));
        drop(permit);
        if let Some(key) = key {
            key.keep();
        }
        self.outbox_signal.notify();
        Ok(accepted_task(upload, at))
    }

    /// Records an upload whose bytes are durable. Returns when it was accepted.
    async fn record(&self, upload: &NewUpload, started: Moment) -> Result<DateTime<Utc>, Problem> {
        self.ensure_staged(upload, started).await?;
        let span = tracing::info_span!(
            target: traces::TARGET, "accept", safelight.task = %upload.task, "error.type" = Empty,
            otel.status_code = Empty,
        );
        let at = self.accept(upload).instrument(span.clone()).await.inspect_err(|problem| {
            span.record("error.type", problem.code().as_str());
            span.record("otel.status_code", "error");
        })?;
        self.ensure_staged(upload, started).await?;
        safelight_fail_points::hit("upload.accepted").await;
        Ok(at)
    }

    fn new_upload(
        &self,
        (image, owner, quota): (ImageId, Owner, Quota),
        content: &Content,
        labels: Labels,
        key: Option<&ReservedKey>,
    ) -> NewUpload {
        let fingerprint = labels.fingerprint(content.sha256);
        let visibility = labels.visibility.or(Some(self.default_visibility));
        NewUpload {
            image,
            task: TaskId::new(),
            quota,
            owner,
            lane: Lane::Interactive,
            sha256: content.sha256,
            bytes: content.bytes,
            format: content.format,
            labels: Labels { visibility, ..labels },
            jobs: JobKind::jobs_of_new_image(),
            max_attempts: self.max_attempts,
            key: key.and_then(ReservedKey::ticket).map(|ticket| (ticket.clone(), fingerprint)),
            trace: None,
        }
    }

    /// Records the upload, or removes its bytes if it certainly is not recorded. Returns when it was
    /// accepted.
    async fn accept(&self, upload: &NewUpload) -> Result<DateTime<Utc>, Problem> {
        let accepted = match self.store.accept(upload).await {
            // The connection may have been lost after the commit: then this finds the upload recorded.
            Err(error) if error.is_unavailable() => self.store.accept(upload).await,
            answered => answered,
        };
        match accepted {
            Ok(Accepted::Yes(at)) => Ok(at),
            Ok(Accepted::OverQuota(used)) => {
                self.discard(upload.image).await;
                Err(over_quota(upload.quota, used))
            }
            Ok(Accepted::KeyLost) => {
                self.discard(upload.image).await;
                Err(idempotency::in_flight())
            }
            // The database may still commit the transaction. The janitor checks the bytes again later.
            Err(error) if error.is_unavailable() => Err(error.into()),
            Err(error) => {
                self.discard(upload.image).await;
                Err(error.into())
            }
        }
    }

    /// Fails if the janitor has deleted the bytes, which it may do if this process, or its whole machine, was
    /// suspended. Checked again after recording, since that may have happened in between; the task then fails
    /// because the bytes are missing, but its client was not answered with 202.
    async fn ensure_staged(&self, upload: &NewUpload, started: Moment) -> Result<(), Problem> {
        let grace = self.staged_grace;
        if started.elapsed() < grace / 2 {
            return Ok(());
        }
        if self.blobs.has_upload(upload.image, upload.sha256).await? {
            return Ok(());
        }
        Err(Problem::new(
            ProblemCode::BlobsUnavailable,
            "The upload took too long to be recorded, and its staged bytes were deleted.",
        ))
    }

    /// Removes the staged bytes of a rejected upload. If that fails, the janitor removes them.
    async fn discard(&self, image: ImageId) {
        if let Err(error) = self.blobs.delete(&BlobKey::Incoming(image)).await {
            tracing::warn!(%error, %image, "cannot remove rejected bytes");
        }
    }
}

/// The problem if the complete bytes are not those that the client meant to send.
pub fn rejection(content: &Content, expected: &[ContentHash]) -> Option<Problem> {
    let differs = expected.iter().any(|expected| *expected != content.sha256);
    differs.then(|| digest::mismatch(content.sha256))
}

/// A point in time, by two clocks: the system clock continues while the machine is suspended, and the
/// monotonic clock does not jump.
#[derive(Clone, Copy)]
struct Moment(Instant, SystemTime);

impl Moment {
    fn now() -> Self {
        Self(Instant::now(), SystemTime::now())
    }

    fn elapsed(self) -> Duration {
        self.0.elapsed().max(self.1.elapsed().unwrap_or_default())
    }
}

/// The task as it was accepted. Reading it back would cost as much as recording it, and could fail although
/// the upload is safe.
fn accepted_task(upload: NewUpload, at: DateTime<Utc>) -> Task {
    let jobs: Vec<_> = upload
        .jobs
        .iter()
        .map(|&(id, kind)| Job {
            id,
            kind,
            status: Status::Queued,
            attempt: 0,
            max_attempts: upload.max_attempts,
            retry_at: None,
            error: None,
        })
        .collect();
    Task {
        id: upload.task,
        kind: TaskKind::Upload,
        lane: upload.lane,
        status: Status::Queued,
        owner: upload.owner.clone(),
        version: 1,
        created_at: at,
        updated_at: at,
        finished_at: None,
        progress: Progress {
            total: u32::try_from(jobs.len()).unwrap_or(u32::MAX),
            ..Progress::default()
        },
        jobs,
        image: Some(Image {
            id: upload.image,
            sha256: upload.sha256,
            bytes: upload.bytes,
            format: upload.format,
            facts: None,
            labels: upload.labels,
            created_at: at,
            stored_at: None,
            discarded: false,
            deleted: false,
            owner: upload.owner,
            renditions: Vec::new(),
            placeholder: None,
        }),
        backfill: None,
        receipt: None,
    }
}
