//! The end of an upload: durable bytes, one transaction, the bell.

use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};
use safelight_blobs::{BlobKey, Content, Intake};
use safelight_domain::{
    ContentHash, Image, ImageId, Job, JobId, JobKind, Lane, Owner, Progress, Status, Task, TaskId,
    TaskKind,
};
use safelight_store::{Accepted, NewUpload};
use safelight_telemetry::traces;
use tracing::{Instrument, Span, field::Empty};

use super::{
    digest,
    form::Form,
    idempotency::{self, HeldKey},
    places::Place,
};
use crate::{
    limits,
    problem::{Problem, ProblemCode},
    state::ApiState,
};

/// An upload whose last byte has arrived.
pub struct Received {
    /// The image that it becomes.
    pub image: ImageId,
    /// Whose it is.
    pub owner: Owner,
    /// Its bytes.
    pub intake: Intake,
    /// What came beside them.
    pub form: Form,
    /// The hash that the bytes must have, if the client said one that is still to be checked.
    pub expected: Option<ContentHash>,
    /// Its idempotency key.
    pub key: Option<HeldKey>,
    /// Its place among the uploads in flight.
    pub place: Place,
}

/// Makes the upload durable and records it. Runs in a task of its own, so that a client which
/// hangs up now cannot cut it in the middle.
pub async fn commit(state: ApiState, received: Received) -> Result<Task, Problem> {
    let Received { image, owner, intake, form, expected, key, place } = received;
    // The request's, if it is traced: its jobs are to be children of that.
    let trace = traces::current();
    let begun = Moment::now();
    let content = intake.end().await?.keep().await?;
    safelight_fail_points::hit("upload.staged").await;
    if let Some(problem) = refusal(&content, expected) {
        discard(&state, image).await;
        return Err(problem);
    }
    let upload =
        NewUpload { trace, ..new_upload(&state, (image, owner), &content, form, key.as_ref()) };
    let (task, bytes) = (upload.task, upload.bytes);
    Span::current().record("safelight.task", tracing::field::display(task));
    let logged = tracing::info_span!("upload", %task, %image);
    let at = record(&state, &upload, begun).instrument(logged.clone()).await?;
    logged.in_scope(|| tracing::debug!(bytes, "accepted"));
    drop(place);
    state.backlog.count(upload.jobs.len());
    if let Some(key) = key {
        key.keep();
    }
    state.services.outbox_signal.notify();
    Ok(receipt(upload, at))
}

/// Records an upload whose bytes are durable. Answers when it was.
async fn record(
    state: &ApiState,
    upload: &NewUpload,
    begun: Moment,
) -> Result<DateTime<Utc>, Problem> {
    still_there(state, upload, begun).await?;
    let span = tracing::info_span!(
        target: traces::TARGET, "accept", safelight.task = %upload.task, "error.type" = Empty,
        otel.status_code = Empty,
    );
    let at = accept(state, upload).instrument(span.clone()).await.inspect_err(|problem| {
        span.record("error.type", problem.code().as_str());
        span.record("otel.status_code", "error");
    })?;
    still_there(state, upload, begun).await?;
    safelight_fail_points::hit("upload.accepted").await;
    Ok(at)
}

/// Why bytes that arrived whole are not kept, if they are not what the client meant to send.
pub fn refusal(content: &Content, expected: Option<ContentHash>) -> Option<Problem> {
    expected
        .is_some_and(|expected| expected != content.sha256)
        .then(|| digest::mismatch(content.sha256))
}

fn new_upload(
    state: &ApiState,
    (image, owner): (ImageId, Owner),
    content: &Content,
    form: Form,
    key: Option<&HeldKey>,
) -> NewUpload {
    let fingerprint = form.fingerprint(content.sha256);
    NewUpload {
        image,
        task: TaskId::new(),
        quota: limits::quota(&state.services.config, &owner),
        owner,
        visibility: form.visibility.unwrap_or(state.services.config.default_visibility),
        lane: Lane::Interactive,
        sha256: content.sha256,
        bytes: content.bytes,
        format: content.format,
        labels: form.labels,
        jobs: [JobKind::Write, JobKind::Thumbnail].map(|kind| (JobId::new(), kind)).to_vec(),
        max_attempts: state.services.config.max_attempts,
        key: key.and_then(HeldKey::ticket).map(|ticket| (ticket.clone(), fingerprint)),
        trace: None,
    }
}

/// Records the upload, or removes its bytes if it certainly is not recorded. Answers when it was.
async fn accept(state: &ApiState, upload: &NewUpload) -> Result<DateTime<Utc>, Problem> {
    let store = &state.services.store;
    let accepted = match store.accept(upload).await {
        // The connection may have been lost after the commit: then this finds the upload recorded.
        Err(error) if error.is_unavailable() => store.accept(upload).await,
        answered => answered,
    };
    match accepted {
        Ok(Accepted::Yes(at)) => Ok(at),
        Ok(Accepted::OverQuota(used)) => {
            discard(state, upload.image).await;
            Err(limits::over_quota(upload.quota, used))
        }
        Ok(Accepted::KeyLost) => {
            discard(state, upload.image).await;
            Err(idempotency::in_flight())
        }
        // The database may still be committing what it was sent. The janitor looks again when that
        // is settled.
        Err(error) if error.is_unavailable() => Err(error.into()),
        Err(error) => {
            discard(state, upload.image).await;
            Err(error.into())
        }
    }
}

/// Fails if the bytes may be old enough for the janitor, and are gone: this process, or its whole
/// machine, was asleep. Looked at again after the recording, since it may have slept in between;
/// the task then fails for want of bytes, but nobody was told that it would not.
async fn still_there(state: &ApiState, upload: &NewUpload, begun: Moment) -> Result<(), Problem> {
    let grace = Duration::from_millis(state.services.config.staged_grace_ms);
    if begun.elapsed() < grace / 2 {
        return Ok(());
    }
    let blobs = &state.services.blobs;
    // The write job may have moved them already.
    if blobs.exists(&BlobKey::Incoming(upload.image)).await?
        || blobs.exists(&BlobKey::Blob(upload.sha256)).await?
    {
        return Ok(());
    }
    Err(Problem::new(
        ProblemCode::BlobsUnavailable,
        "The upload took so long to be recorded that its bytes were given up.",
    ))
}

/// A point in time. The system's clock counts while the machine sleeps, the other one does not jump.
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

/// Removes staged bytes that became nothing; what is left in spite of it, the janitor finds.
async fn discard(state: &ApiState, image: ImageId) {
    if let Err(error) = state.services.blobs.delete(&BlobKey::Incoming(image)).await {
        tracing::warn!(%error, %image, "cannot remove refused bytes");
    }
}

/// The task as it was accepted. Reading it back would cost as much again as recording it, and
/// could fail, though the upload is safe.
fn receipt(upload: NewUpload, at: DateTime<Utc>) -> Task {
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
            visibility: upload.visibility,
            renditions: Vec::new(),
            placeholder: None,
        }),
        backfill: None,
        receipt: None,
    }
}
