//! The end of an upload: durable bytes, one transaction, a look whether the bytes are still there, a signal to the
//! outbox relay.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use safelight_blobs::{BlobError, Blobs, Content, Ingest, StoredBytes};
use safelight_domain::{
    ContentHash, Image, ImageId, Job, JobKind, Labels, Lane, Owner, Progress, Quota, Status, Task,
    TaskId, TaskKind, Visibility,
};
use safelight_queue::OutboxSignal;
use safelight_store::{Accepted, NewUpload, Uploads};
use safelight_telemetry::traces;
use tracing::{Instrument, Span, field::Empty};

use super::{
    idempotency::{self, ReservedKey},
    rejected_bytes::RejectedBytes,
};
use crate::{
    http::{digest, problem::Problem},
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
    /// Removes the bytes of uploads that are not recorded.
    pub rejected_bytes: RejectedBytes,
    /// Where their bytes are.
    pub blobs: Blobs,
    /// Announces their jobs.
    pub outbox_signal: OutboxSignal,
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
        let whole = ingest.end().await?;
        let content = whole.content;
        if let Some(problem) = rejection(&content, &expected) {
            return Err(problem);
        }
        safelight_fail_points::hit("upload.checked").await;
        let stored = whole.store().await.inspect_err(|_| {
            // They may have been named all the same.
            self.rejected_bytes.remove_later(content.sha256);
        })?;
        safelight_fail_points::hit("upload.stored").await;
        let new = self.new_upload((image, owner, quota), &content, labels, key.as_ref());
        let upload = NewUpload { trace, ..new };
        let (task, bytes) = (upload.task, upload.bytes);
        Span::current().record("safelight.task", tracing::field::display(task));
        let logged = tracing::info_span!("upload", %task, %image);
        let recorded = self.record(&upload, stored).instrument(logged.clone()).await;
        // What follows a rejection holds up no other upload.
        drop(permit);
        let at = match recorded {
            Ok(at) => at,
            Err(Unaccepted { problem, bytes }) => {
                match bytes {
                    Bytes::Recorded => {}
                    Bytes::Rejected => self.rejected_bytes.remove(upload.sha256).await,
                    Bytes::InDoubt => self.rejected_bytes.remove_later(upload.sha256),
                }
                return Err(problem);
            }
        };
        logged.in_scope(|| tracing::debug!(bytes, "accepted"));
        if let Some(key) = key {
            key.keep();
        }
        self.outbox_signal.notify();
        Ok(accepted_task(upload, at))
    }

    /// Records an upload whose bytes are durable. Returns when it was accepted.
    async fn record(
        &self,
        upload: &NewUpload,
        stored: Option<StoredBytes>,
    ) -> Result<DateTime<Utc>, Unaccepted> {
        let span = tracing::info_span!(
            target: traces::TARGET, "accept", safelight.task = %upload.task, "error.type" = Empty,
            otel.status_code = Empty,
        );
        let at = self.accept(upload).instrument(span.clone()).await.inspect_err(|unaccepted| {
            span.record("error.type", unaccepted.problem.code().as_str());
            span.record("otel.status_code", "error");
        })?;
        safelight_fail_points::hit("upload.recorded").await;
        // A removal that found no image of these bytes before the commit may have deleted them since.
        if let Some(stored) = stored {
            let lost =
                |error: BlobError| Unaccepted { problem: error.into(), bytes: Bytes::Recorded };
            stored.ensure_stored().await.map_err(lost)?;
        }
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

    /// Records the upload. Returns when it was accepted.
    async fn accept(&self, upload: &NewUpload) -> Result<DateTime<Utc>, Unaccepted> {
        let accepted = match self.store.accept(upload).await {
            // The connection may have been lost after the commit: then this finds the upload recorded.
            Err(error) if error.is_unavailable() => self.store.accept(upload).await,
            answered => answered,
        };
        let (bytes, problem) = match accepted {
            Ok(Accepted::Yes(at)) => return Ok(at),
            Ok(Accepted::OverQuota(used)) => (Bytes::Rejected, over_quota(upload.quota, used)),
            Ok(Accepted::KeyLost) => (Bytes::Rejected, idempotency::in_flight()),
            // The database may still commit the transaction.
            Err(error) if error.is_unavailable() => (Bytes::InDoubt, error.into()),
            Err(error) => (Bytes::Rejected, error.into()),
        };
        Err(Unaccepted { problem, bytes })
    }
}

/// An upload that gets no 202.
struct Unaccepted {
    problem: Problem,
    bytes: Bytes,
}

/// What the stored bytes of an upload that gets no 202 are.
enum Bytes {
    /// The upload is recorded all the same.
    Recorded,
    /// The upload certainly is not recorded.
    Rejected,
    /// The upload may be recorded at any moment.
    InDoubt,
}

/// The problem if the complete bytes are not those that the client meant to send.
pub fn rejection(content: &Content, expected: &[ContentHash]) -> Option<Problem> {
    let differs = expected.iter().any(|expected| *expected != content.sha256);
    differs.then(|| digest::mismatch(content.sha256))
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
