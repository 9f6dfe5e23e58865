//! Renditions and originals that do not exist (yet): waits for them, requests them once, or explains why they
//! are missing.

use std::{sync::Arc, time::Duration};

use axum::http::HeaderMap;
use safelight_domain::{Failure, ImageId, Job, JobId, JobKind, Lane, Status, Task, TaskId};
use safelight_queue::OutboxSignal;
use safelight_store::{DamagedRendition, Reads, RenditionRequest, Requested, StoreError, Uploads};
use safelight_telemetry::traces;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    image_view::ImageView,
    metadata_cache::{Lookup, MetadataCache},
    source::SingleFlight,
};
use crate::{
    http::{
        extract::invalid_query,
        prefer::{PREFER, Wait},
        problem::{Problem, ProblemCode},
    },
    watch::WatchHub,
};

/// When a job that did not make the requested rendition is started again, after its end.
const AGAIN_AFTER: Duration = Duration::from_mins(1);

/// Waits for the jobs that make what an image does not have, and requests them. Clones share it.
#[derive(Clone)]
pub struct OnDemand {
    reads: Arc<dyn Reads>,
    uploads: Arc<dyn Uploads>,
    watch: WatchHub,
    outbox_signal: OutboxSignal,
    /// Attempts of a job that is requested.
    max_attempts: u32,
    /// Look-ups under way.
    lookups: SingleFlight<(ImageId, JobKind), Result<Pending, Arc<StoreError>>>,
}

/// What is known of something that an image does not have.
#[derive(Debug, Clone)]
enum Pending {
    /// A job of this task will make it.
    Queued {
        /// The task.
        task: TaskId,
        /// Its version.
        version: i64,
        /// Why its last attempt failed, if one did.
        error: Option<Failure>,
    },
    /// It failed for good.
    Failed(Option<Failure>),
    /// It was cancelled.
    Cancelled,
    /// Jobs have run without making it, and no job will.
    NotMade,
    /// The image is gone, or never existed.
    Gone,
}

impl OnDemand {
    /// Jobs that are requested through `uploads` have `max_attempts`, and are announced by `outbox_signal`.
    pub fn new(
        reads: Arc<dyn Reads>,
        uploads: Arc<dyn Uploads>,
        watch: WatchHub,
        outbox_signal: OutboxSignal,
        max_attempts: u32,
    ) -> Self {
        let lookups = SingleFlight::default();
        Self { reads, uploads, watch, outbox_signal, max_attempts, lookups }
    }

    /// Waits until image `id` has what `is_there` looks for, which a job of `kind` makes, for `wait` at most;
    /// then explains why it is absent.
    pub async fn wait_for(
        &self,
        metadata: &MetadataCache,
        (id, kind): (ImageId, JobKind),
        wait: Duration,
        draining: &CancellationToken,
        is_there: impl Fn(&ImageView) -> bool,
    ) -> Result<Lookup, Problem> {
        let deadline = Instant::now() + wait;
        loop {
            let pending = self.pending(id, kind).await?;
            // Read after the job was looked at, so that everything it had made by then is seen.
            let lookup = metadata.read(id).await?;
            if is_there(lookup.image(id)?) {
                return Ok(lookup);
            }
            let Pending::Queued { task, version, .. } = pending else {
                return Err(pending.problem());
            };
            let mut watcher = self.watch.watch_image(task, id, &lookup.image(id)?.owner)?;
            tokio::select! {
                () = watcher.changed_from(version) => {}
                () = tokio::time::sleep_until(deadline) => return Err(pending.problem()),
                () = draining.cancelled() => return Err(pending.problem()),
            }
        }
    }

    /// The state of the missing object; requests a job if none would make it.
    async fn pending(&self, id: ImageId, kind: JobKind) -> Result<Pending, Problem> {
        let owned = self.clone();
        let work = || async move { owned.find(id, kind).await.map_err(Arc::new) };
        let result = self.lookups.join((id, kind), work).await;
        Ok(result.value.ok_or_else(|| Problem::internal(&"looking for a job panicked"))??)
    }

    async fn find(&self, id: ImageId, kind: JobKind) -> Result<Pending, StoreError> {
        let Some(task) = self.reads.last_task_of_image(id, kind).await? else {
            return if kind == JobKind::Write {
                Ok(Pending::NotMade)
            } else {
                self.request(id).await
            };
        };
        let Some(job) = job(&task, kind).filter(|_| kind == JobKind::Thumbnail) else {
            return Ok(Pending::of(&task, kind));
        };
        let is_helpful = match job.status {
            Status::Succeeded | Status::Cancelled => true,
            // A backfill will make it later, but a client is waiting now.
            Status::Queued | Status::Running => task.lane == Lane::Bulk,
            // The original may have been restored meanwhile.
            Status::Failed => job.error.as_ref().is_some_and(|e| e.code.is_about_the_original()),
        };
        if is_helpful { self.request(id).await } else { Ok(Pending::of(&task, kind)) }
    }

    /// Requests the renditions that the image lacks, once for all requests on all nodes.
    async fn request(&self, image: ImageId) -> Result<Pending, StoreError> {
        let task = match self.send_request(image, None).await? {
            Requested::Queued(task) | Requested::Pending(task) | Requested::Recent(task) => task,
            Requested::Gone => return Ok(Pending::Gone),
        };
        let task = self.reads.task(task).await?;
        Ok(task.map_or(Pending::Gone, |task| Pending::of(&task, JobKind::Thumbnail)))
    }

    /// Requests a rendition again, whose bytes are missing or damaged.
    pub async fn request_again(
        &self,
        image: ImageId,
        damaged: DamagedRendition,
    ) -> Result<(), StoreError> {
        self.send_request(image, Some(damaged)).await.map(drop)
    }

    async fn send_request(
        &self,
        image: ImageId,
        damaged: Option<DamagedRendition>,
    ) -> Result<Requested, StoreError> {
        let request = RenditionRequest {
            image,
            task: TaskId::new(),
            job: JobId::new(),
            max_attempts: self.max_attempts,
            again_after: AGAIN_AFTER,
            damaged,
            trace: traces::current(),
        };
        let requested = self.uploads.request_rendition(&request).await?;
        if let Requested::Queued(task) = requested {
            tracing::info!(%image, %task, "requested renditions that the image lacks");
            self.outbox_signal.notify();
        }
        Ok(requested)
    }
}

/// How long the request waits at most: `?wait=N`, `Prefer: wait=N`, or as configured.
pub fn wait_limit(
    configured: Duration,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Duration, Problem> {
    if let Some(text) = wait_parameter(query) {
        let wait = Wait::parse(text).map_err(|why| invalid_query("wait", why))?;
        return Ok(wait.duration());
    }
    Ok(Wait::from_headers(headers).map_or(configured, Wait::duration))
}

/// Whether the request names a wait, valid or not.
pub fn names_wait(query: Option<&str>, headers: &HeaderMap) -> bool {
    wait_parameter(query).is_some() || headers.contains_key(PREFER)
}

/// The parameter's value. Links are often decorated: other parameters are ignored.
fn wait_parameter(query: Option<&str>) -> Option<&str> {
    query?.split('&').find_map(|pair| pair.strip_prefix("wait="))
}

fn job(task: &Task, kind: JobKind) -> Option<&Job> {
    task.jobs.iter().find(|job| job.kind == kind)
}

impl Pending {
    fn of(task: &Task, kind: JobKind) -> Self {
        let Some(job) = job(task, kind) else { return Self::NotMade };
        match job.status {
            Status::Queued | Status::Running => {
                Self::Queued { task: task.id, version: task.version, error: job.error.clone() }
            }
            Status::Failed => Self::Failed(job.error.clone()),
            Status::Cancelled => Self::Cancelled,
            Status::Succeeded => Self::NotMade,
        }
    }

    fn problem(&self) -> Problem {
        match self {
            Self::Queued { error: None, .. } => not_ready(),
            // It will be tried again, which may take long.
            Self::Queued { error: Some(failure), .. } => {
                not_ready().with("reason", failure.code.as_str())
            }
            Self::Failed(failure) => {
                let code = failure.as_ref().map_or("unknown", |failure| failure.code.as_str());
                let message = failure.as_ref().map_or("no reason was kept", |f| &f.message);
                let detail = format!("Processing failed: {message}.");
                let problem = Problem::new(ProblemCode::ImageFailed, detail).with("reason", code);
                if failure.as_ref().is_some_and(|failure| failure.code.is_about_the_original()) {
                    return problem.hint("uploading the same picture again repairs it");
                }
                problem
            }
            Self::Cancelled => Problem::new(ProblemCode::ImageFailed, "Processing was cancelled.")
                .with("reason", Status::Cancelled.as_str()),
            Self::NotMade => Problem::new(
                ProblemCode::RenditionNotMade,
                "The image was processed without making this rendition.",
            )
            .hint("are all workers configured with the same presets as this node?"),
            Self::Gone => Problem::image_gone(false),
        }
    }
}

fn not_ready() -> Problem {
    Problem::new(ProblemCode::ImageNotReady, "The image is still being processed.")
}
