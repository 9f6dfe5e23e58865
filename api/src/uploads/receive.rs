//! An upload from its request to its task.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::Request,
    http::{Extensions, HeaderMap, header},
};
use safelight_blobs::{Blobs, Ingest, IngestLimits, Whole};
use safelight_config::Config;
use safelight_domain::{ContentHash, Image, ImageId, Labels, Owner, Task, TaskId};
use safelight_queue::OutboxSignal;
use safelight_removal::{InstallationGuard, Remover};
use safelight_store::{Control, DynStore, Reads};
use tracing::Instrument;

use super::{
    backlog::Backlog,
    commit::{self, Committer, ReceivedUpload},
    idempotency::{self, Reservation, ReservedKey},
    multipart,
    params::{self, UploadParams},
    rejected_bytes::RejectedBytes,
};
use crate::{
    auth::Caller,
    http::{
        body::{BodyPolicy, BodyReader},
        digest,
        draining::Draining,
        extract::{Params, PathId},
        prefer::Wait,
        problem::{Problem, ProblemCode},
    },
    limits::{Limits, NoPermit, Permit, Refused, Shares},
};

/// Receives uploads.
pub struct Uploads {
    committer: Committer,
    permits: Shares<Owner>,
    backlog: Arc<Backlog>,
    reads: Arc<dyn Reads>,
    control: Arc<dyn Control>,
    limits: Limits,
    body_policy: BodyPolicy,
    ingest: IngestLimits,
    /// How long an idempotency key stays reserved unless its process extends it.
    idempotency_hold: Duration,
}

/// What uploads use of other parts.
pub struct UploadsParts {
    /// Where uploads are recorded.
    pub store: DynStore,
    /// Where their bytes go.
    pub blobs: Blobs,
    /// Announces their jobs.
    pub outbox_signal: OutboxSignal,
    /// What each owner may store and send.
    pub limits: Limits,
    /// How slowly a client may send.
    pub body_policy: BodyPolicy,
}

/// An upload that was accepted, now or before.
pub struct AcceptedUpload {
    /// Its task.
    pub task: Task,
    /// How long the client wants to wait for the end of the task.
    pub wait: Option<Wait>,
    /// Whether it was accepted before, under the same idempotency key.
    pub replayed: bool,
}

impl Uploads {
    /// None in flight.
    pub fn new(config: &Config, parts: UploadsParts) -> Self {
        let UploadsParts { store, blobs, outbox_signal, limits, body_policy } = parts;
        let recovery_grace = Duration::from_millis(config.recovery_grace_ms);
        let guard = InstallationGuard::new(store.clone(), blobs.clone(), recovery_grace);
        Self {
            permits: Shares::new(config.max_uploads_in_flight),
            backlog: Arc::new(Backlog::new(store.clone(), config.max_queued_jobs)),
            reads: store.clone(),
            control: store.clone(),
            committer: Committer {
                rejected_bytes: RejectedBytes::new(
                    Remover::new(store.clone(), blobs.clone(), guard),
                    Duration::from_millis(config.staged_grace_ms),
                ),
                store,
                blobs,
                outbox_signal,
                default_visibility: config.default_visibility,
                max_attempts: config.max_attempts,
            },
            limits,
            body_policy,
            ingest: IngestLimits { max_bytes: config.max_upload_bytes, heic: config.heic },
            idempotency_hold: Duration::from_millis(config.idempotency_hold_ms),
        }
    }

    /// Receives an upload.
    pub async fn accept(
        &self,
        caller: &Caller,
        params: Params,
        request: Request,
    ) -> Result<AcceptedUpload, Problem> {
        let (parts, body) = request.into_parts();
        let headers = &parts.headers;
        let limit = self.ingest.max_bytes.saturating_add(params::overhead_bytes(headers));
        let is_multipart = params::is_multipart(headers);
        let hash_whole = is_multipart && digest::is_announced(headers);
        let body = BodyReader::new(body, self.body_policy.limits(limit), hash_whole);
        let params = UploadParams::read(caller.owner.clone(), headers, params)?;
        let declared = params::declared_bytes(headers);
        if declared.is_some_and(|declared| declared > limit) {
            return Err(Problem::upload_too_large(self.ingest.max_bytes));
        }
        let permit = self.permit(caller, &parts.extensions).await?;
        self.backlog.admit().await?;
        let key = match self.reserve(&params).await? {
            Some(Reservation::Replay { task, fingerprint }) => {
                let task = self.replay(headers, &body, &params, (task, fingerprint)).await?;
                return Ok(AcceptedUpload { task, wait: params.wait, replayed: true });
            }
            Some(Reservation::Reserved(key)) => Some(key),
            None => None,
        };
        // Of a multipart body the image is only a part.
        let image_bytes = declared.filter(|_| !is_multipart);
        self.limits.admit(&params.owner, image_bytes).await?;
        // The body was not read yet.
        self.committer.blobs.check_space(declared.unwrap_or(0)).await?;
        let task = self.receive_new(headers, &body, &params, key, permit).await?;
        Ok(AcceptedUpload { task, wait: params.wait, replayed: false })
    }

    async fn reserve(&self, params: &UploadParams) -> Result<Option<Reservation>, Problem> {
        let Some(key) = &params.key else { return Ok(None) };
        let reserved = idempotency::reserve(&self.committer.store, key, self.idempotency_hold);
        reserved.await.map(Some)
    }

    /// Receives an upload under a key that was used: it must be equal to the one that was accepted. If the bytes of
    /// that one are gone, these take their place.
    async fn replay(
        &self,
        headers: &HeaderMap,
        body: &BodyReader,
        params: &UploadParams,
        (task, fingerprint): (TaskId, ContentHash),
    ) -> Result<Task, Problem> {
        let lost = self.without_bytes(task).await?;
        let ingest = if lost {
            Ingest::staging(self.committer.blobs.clone(), self.ingest)
        } else {
            Ingest::hashing(self.ingest)
        };
        let (ingest, labels, expected) = receive(headers, body, ingest, params).await?;
        let whole = ingest.end().await?;
        if let Some(problem) = commit::rejection(&whole.content, &expected) {
            return Err(problem);
        }
        if labels.fingerprint(whole.content.sha256) != fingerprint {
            return Err(idempotency::reused());
        }
        if lost {
            // In a separate task, so that a client that hangs up now cannot interrupt it.
            let replaced = replace_bytes(whole, task, self.control.clone()).in_current_span();
            tokio::spawn(replaced).await.map_err(|error| Problem::internal(&error))??;
            self.committer.outbox_signal.notify();
        }
        let known = self.reads.task(task).await?;
        known.ok_or_else(|| TaskId::not_found(task))
    }

    /// Whether the bytes of an upload that was recorded are gone. The database may take longer for a commit than
    /// garbage is kept, for example while a synchronous standby is away; then a collection takes them for those of an
    /// upload that was never accepted. Its client had no answer yet.
    async fn without_bytes(&self, task: TaskId) -> Result<bool, Problem> {
        let image = self.reads.task(task).await?.and_then(|task| task.image);
        let waiting =
            |image: &Image| image.stored_at.is_none() && !image.discarded && !image.deleted;
        let Some(image) = image.filter(waiting) else { return Ok(false) };
        Ok(!self.committer.blobs.has_upload(image.id, image.sha256).await?)
    }

    /// Receives an upload that was not accepted before.
    async fn receive_new(
        &self,
        headers: &HeaderMap,
        body: &BodyReader,
        params: &UploadParams,
        key: Option<ReservedKey>,
        permit: Permit<Owner>,
    ) -> Result<Task, Problem> {
        let image = ImageId::new();
        let blobs = self.committer.blobs.clone();
        let ingest = Ingest::staging(blobs, self.ingest);
        let (ingest, labels, expected) = receive(headers, body, ingest, params).await?;
        safelight_fail_points::hit("upload.received").await;
        let owner = params.owner.clone();
        let quota = self.limits.quota(&owner);
        let received = ReceivedUpload { image, owner, ingest, labels, expected, key, permit };
        let (committer, backlog) = (self.committer.clone(), self.backlog.clone());
        // In a separate task, so that a client that hangs up now cannot interrupt it.
        let commit = async move {
            let task = committer.commit(received, quota).await?;
            backlog.count(task.jobs.len());
            Ok(task)
        };
        tokio::spawn(commit.in_current_span()).await.map_err(|error| Problem::internal(&error))?
    }

    /// A permit among the uploads in flight. A client that was refused often waits for one.
    async fn permit(
        &self,
        caller: &Caller,
        request: &Extensions,
    ) -> Result<Permit<Owner>, Problem> {
        let (owner, share) = (&caller.owner, self.limits.max_concurrent_uploads(caller));
        let mut permit = self.permits.acquire(owner, 1, share);
        if let (Err(none), Some(client)) = (&permit, request.get::<Refused>().cloned()) {
            let draining = request.get::<Draining>().cloned().unwrap_or_default();
            let refusals = self.limits.refusals();
            match none {
                NoPermit::All => {
                    let later = self.permits.acquire_later(owner, 1, share);
                    let waited = refusals.wait_for(later, client, &draining).await;
                    permit = waited.unwrap_or(permit);
                }
                NoPermit::OwnShare => refusals.delay(client, &draining).await,
            }
        }
        permit.map_err(|none| match none {
            NoPermit::All => Problem::new(
                ProblemCode::TooManyUploads,
                "This node is receiving as many uploads as it can; the body was not read.",
            ),
            NoPermit::OwnShare => Problem::new(
                ProblemCode::TooManyOwnUploads,
                format!(
                    "This node is receiving {share} uploads of this owner; the body was not read."
                ),
            )
            .hint("send fewer concurrently; `GET /v1/limits` says how many"),
        })
    }
}

/// Makes the bytes of an upload durable again, and repeats its jobs if they have failed without them.
async fn replace_bytes(
    bytes: Whole,
    task: TaskId,
    control: Arc<dyn Control>,
) -> Result<(), Problem> {
    if let Some(stored) = bytes.store().await? {
        stored.ensure_stored().await?;
    }
    tracing::warn!(%task, "the bytes of an upload were gone: those of its repetition take their place");
    control.retry(&[task]).await?;
    Ok(())
}

/// Reads the body to its end. The caller must compare the returned hashes with the file's.
async fn receive(
    headers: &HeaderMap,
    body: &BodyReader,
    mut ingest: Ingest,
    params: &UploadParams,
) -> Result<(Ingest, Labels, Vec<ContentHash>), Problem> {
    let labels = match (&params.labels, headers.get(header::CONTENT_TYPE)) {
        (None, Some(content_type)) => multipart::receive(body, content_type, &mut ingest).await?,
        (labels, _) => {
            while let Some(chunk) = body.chunk().await? {
                ingest.write(&chunk).await?;
            }
            labels.clone().unwrap_or_default()
        }
    };
    // The bytes after the last boundary belong to the content too.
    let whole = body.finish().await?;
    let of_file = params.digests.iter().filter(|digest| whole != Some(**digest));
    Ok((ingest, labels, of_file.copied().collect()))
}
