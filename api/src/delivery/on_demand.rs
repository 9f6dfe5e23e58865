//! What an image has not (yet): waited for, asked for once, or explained.

use std::{sync::Arc, time::Duration};

use axum::http::HeaderMap;
use safelight_domain::{Failure, ImageId, Job, JobId, JobKind, Lane, Status, Task, TaskId};
use safelight_store::{RenditionRequest, Requested, StoreError};
use safelight_telemetry::traces;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{catalog::Answer, entry::Entry, source::Flights};
use crate::{
    extract::invalid_query,
    images::gone,
    prefer::{PREFER, Wait},
    problem::{Problem, ProblemCode},
    state::ApiState,
};

/// How soon after its end a job that did not make what was asked for is begun again.
const AGAIN_AFTER: Duration = Duration::from_mins(1);

/// Looks for the jobs that make what is absent, collapsed.
pub type Makings = Flights<(ImageId, JobKind), Result<Making, Arc<StoreError>>>;

/// Where the making of something stands.
#[derive(Debug, Clone)]
pub enum Making {
    /// A job of this task will make it.
    Pending { task: TaskId, version: i64 },
    /// It failed for good.
    Failed(Option<Failure>),
    /// It was cancelled.
    Cancelled,
    /// Jobs have run, and it is not there: nobody makes it.
    NotMade,
    /// The image is gone, or never was.
    Gone,
}

/// Holds the request until `id` has what `is_there` looks for, which a job of `kind` makes, for as
/// long as the client or the configuration says; then says why it is absent.
pub async fn wait_for(
    state: &ApiState,
    id: ImageId,
    kind: JobKind,
    wait: Duration,
    draining: &CancellationToken,
    is_there: impl Fn(&Entry) -> bool,
) -> Result<Answer, Problem> {
    let deadline = Instant::now() + wait;
    loop {
        let making = making(state, id, kind).await?;
        // Read after the job was looked at: what it had made by then is seen.
        let answer = state.delivery.catalog.read(id).await?;
        if is_there(answer.image(id)?) {
            return Ok(answer);
        }
        let (task, version) = match making {
            Making::Pending { task, version } => (task, version),
            absent => return Err(absent.problem()),
        };
        let mut watcher = state.watch.watch(task)?;
        tokio::select! {
            () = watcher.changed_from(version) => {}
            () = tokio::time::sleep_until(deadline) => return Err(not_ready()),
            () = draining.cancelled() => return Err(not_ready()),
        }
    }
}

/// How long the request is to be held: `?wait=N`, `Prefer: wait=N`, or as configured.
pub fn patience(
    state: &ApiState,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Duration, Problem> {
    if let Some(text) = asked(query) {
        let wait = Wait::parse(text).map_err(|why| invalid_query("wait", why))?;
        return Ok(wait.duration());
    }
    let preferred = Wait::from_headers(headers)?;
    let configured = Duration::from_millis(state.services.config.delivery_wait_ms);
    Ok(preferred.map_or(configured, Wait::duration))
}

/// Whether the request itself says it, well or not.
pub fn says_how_long(query: Option<&str>, headers: &HeaderMap) -> bool {
    asked(query).is_some() || headers.contains_key(PREFER)
}

/// The parameter's value. Other parameters are for whoever added them: links are often decorated.
fn asked(query: Option<&str>) -> Option<&str> {
    query?.split('&').find_map(|pair| pair.strip_prefix("wait="))
}

/// Where the making stands; what nobody makes is asked for.
async fn making(state: &ApiState, id: ImageId, kind: JobKind) -> Result<Making, Problem> {
    let owned = state.clone();
    let work = || async move { find(&owned, id, kind).await.map_err(Arc::new) };
    let landed = state.delivery.makings.join((id, kind), work).await;
    Ok(landed.value.ok_or_else(|| Problem::internal(&"looking for a job panicked"))??)
}

async fn find(state: &ApiState, id: ImageId, kind: JobKind) -> Result<Making, StoreError> {
    let store = &state.services.store;
    let Some(task) = store.last_task_of_image(id, kind).await? else {
        return if kind == JobKind::Write { Ok(Making::NotMade) } else { request(state, id).await };
    };
    match job(&task, kind).map(|job| job.status) {
        Some(Status::Succeeded | Status::Cancelled) if kind == JobKind::Thumbnail => {
            request(state, id).await
        }
        // A backfill will come to it, but somebody is waiting now.
        Some(Status::Queued | Status::Running)
            if kind == JobKind::Thumbnail && task.lane == Lane::Bulk =>
        {
            request(state, id).await
        }
        _ => Ok(Making::of(&task, kind)),
    }
}

/// Asks for what the image lacks of the presets, once however many ask, and on however many nodes.
async fn request(state: &ApiState, image: ImageId) -> Result<Making, StoreError> {
    let request = RenditionRequest {
        image,
        task: TaskId::new(),
        job: JobId::new(),
        max_attempts: state.services.config.max_attempts,
        again_after: AGAIN_AFTER,
        trace: traces::current(),
    };
    let task = match state.services.store.request_rendition(&request).await? {
        Requested::Queued(task) => {
            tracing::info!(%image, %task, "renditions were asked for that the image lacks");
            state.services.outbox_signal.notify();
            task
        }
        Requested::Pending(task) | Requested::Recent(task) => task,
        Requested::Gone => return Ok(Making::Gone),
    };
    let task = state.services.store.task(task).await?;
    Ok(task.map_or(Making::Gone, |task| Making::of(&task, JobKind::Thumbnail)))
}

fn job(task: &Task, kind: JobKind) -> Option<&Job> {
    task.jobs.iter().find(|job| job.kind == kind)
}

impl Making {
    fn of(task: &Task, kind: JobKind) -> Self {
        let Some(job) = job(task, kind) else { return Self::NotMade };
        match job.status {
            Status::Queued | Status::Running => {
                Self::Pending { task: task.id, version: task.version }
            }
            Status::Failed => Self::Failed(job.error.clone()),
            Status::Cancelled => Self::Cancelled,
            Status::Succeeded => Self::NotMade,
        }
    }

    fn problem(&self) -> Problem {
        match self {
            Self::Pending { .. } => not_ready(),
            Self::Failed(failure) => {
                let code = failure.as_ref().map_or("unknown", |failure| failure.code.as_str());
                let message = failure.as_ref().map_or("no reason was kept", |f| &f.message);
                Problem::new(ProblemCode::ImageFailed, format!("Processing failed: {message}."))
                    .with("reason", code)
            }
            Self::Cancelled => Problem::new(ProblemCode::ImageFailed, "Processing was cancelled.")
                .with("reason", Status::Cancelled.as_str()),
            Self::NotMade => Problem::new(
                ProblemCode::RenditionNotMade,
                "The image was processed, and this was not made of it.",
            )
            .hint("are all workers configured with the same presets as this node?"),
            Self::Gone => gone(false),
        }
    }
}

fn not_ready() -> Problem {
    Problem::new(ProblemCode::ImageNotReady, "The image is still being processed.")
}
