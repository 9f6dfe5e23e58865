//! What probes and Prometheus ask.

use std::{future::Future, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderValue, header},
    middleware::from_fn,
    response::{IntoResponse, Response},
    routing::get,
};
use safelight_domain::{JobKind, Lane, Status};
use safelight_store::{DynStore, StoreError, WorkerStatus};
use serde::Serialize;
use serde_json::json;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use utoipa::ToSchema;

use crate::{
    ApiOptions,
    openapi::{InternalProblems, ReadyProblems},
    problem::{self, Problem, ProblemCode},
    state::ApiState,
    trouble::Trouble,
    workers::MAX_WORKERS,
};

/// How long a part may take to answer before it counts as absent.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long gauges that are read from the store are good.
const GAUGES_MAX_AGE: Duration = Duration::from_secs(1);

/// Whether this node can do its work.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Readiness)]
pub struct ReadinessDocument {
    /// `ready`, or `degraded` if a part is missing that it can do without for a while: the broker,
    /// since uploads are accepted all the same and their jobs are published when it is back; on a
    /// node that only delivers also the database and the blob store, since it serves what it has
    /// cached.
    pub status: ReadinessStatus,
    /// Each part.
    pub parts: PartsDocument,
}

/// Whether a node that can serve has all its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReadinessStatus {
    /// It has.
    Ready,
    /// A part is missing that it can do without for a while.
    Degraded,
}

/// The parts that a node needs.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[schema(as = Parts)]
pub struct PartsDocument {
    /// The database.
    pub database: PartState,
    /// The blob store.
    pub blobs: PartState,
    /// The broker; left out where it is not needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker: Option<PartState>,
}

/// Whether a part answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PartState {
    /// It does.
    Up,
    /// It does not.
    Down,
}

/// Whether the process lives.
#[utoipa::path(
    get, path = "/livez", tag = "probes",
    responses((status = 200, description = "It does", body = String, content_type = "text/plain"), InternalProblems),
)]
pub async fn livez() -> &'static str {
    "ok\n"
}

/// What a node answers that is still connecting to its parts.
pub fn starting() -> Router {
    let starting = || async { Problem::new(ProblemCode::NotReady, "This node is starting.") };
    Router::new().route("/livez", get(livez)).fallback(starting).layer(from_fn(problem::complete))
}

/// Whether this node can serve.
#[utoipa::path(
    get, path = "/readyz", tag = "probes",
    responses(
        (status = 200, description = "It can", body = ReadinessDocument),
        ReadyProblems,
    ),
)]
pub async fn readyz(State(state): State<ApiState>) -> Result<Response, Problem> {
    static DATABASE: Trouble = Trouble::new("not ready: the database");
    static BLOBS: Trouble = Trouble::new("not ready: the blob store");
    static BROKER: Trouble = Trouble::new("not quite ready: the broker");
    let services = &state.services;
    let only_delivers = state.options() == ApiOptions { uploads: false, delivery: true };
    let (database, blobs, broker) = tokio::join!(
        check(&DATABASE, services.store.ping()),
        check(&BLOBS, services.blobs.check()),
        async {
            if only_delivers { None } else { Some(check(&BROKER, services.queue.check()).await) }
        },
    );
    let parts = PartsDocument { database, blobs, broker };
    let lacks = database == PartState::Down || blobs == PartState::Down;
    // What it has cached a delivery node can go on serving; and all of them lack the same.
    if lacks && !only_delivers {
        return Err(Problem::new(ProblemCode::NotReady, "A part that this node needs is absent.")
            .with("parts", json!(parts)));
    }
    let status = if lacks || broker == Some(PartState::Down) {
        ReadinessStatus::Degraded
    } else {
        ReadinessStatus::Ready
    };
    let no_store = (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(([no_store], Json(ReadinessDocument { status, parts })).into_response())
}

async fn check<E: std::fmt::Display>(
    trouble: &Trouble,
    answer: impl Future<Output = Result<(), E>>,
) -> PartState {
    match timeout(CHECK_TIMEOUT, answer).await {
        Ok(Ok(())) => PartState::Up,
        Ok(Err(error)) => {
            trouble.note(&error);
            PartState::Down
        }
        Err(_) => {
            trouble.note(&"it does not answer");
            PartState::Down
        }
    }
}

/// Figures for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "probes",
    responses((status = 200, description = "Prometheus text format", body = String, content_type = "text/plain"), InternalProblems),
)]
pub async fn metrics(State(state): State<ApiState>) -> impl IntoResponse {
    state.gauges.refresh(&state.services.store).await;
    #[allow(clippy::cast_precision_loss)] // exact up to 2^53 bytes
    metrics::gauge!("safelight_cache_bytes", "tier" => "memory")
        .set(state.delivery.bytes_in_memory() as f64);
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, text)], (state.render_metrics)())
}

/// Gauges that every scrape shows and that the store knows, read once a second at most.
#[derive(Default)]
pub struct Gauges(Mutex<Option<Instant>>);

impl Gauges {
    /// Reads them if they are old. While the store is away they stay as they are.
    async fn refresh(&self, store: &DynStore) {
        let mut read_at = self.0.lock().await;
        if read_at.is_some_and(|at| at.elapsed() < GAUGES_MAX_AGE) {
            return;
        }
        match timeout(CHECK_TIMEOUT, set_gauges(store)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot read gauges"),
            Err(_) => tracing::warn!("the database does not answer for gauges"),
        }
        *read_at = Some(Instant::now());
    }
}

async fn set_gauges(store: &DynStore) -> Result<(), StoreError> {
    let counts = store.job_counts().await?;
    let unpublished = store.count_unpublished().await?;
    let workers = store.list_workers(MAX_WORKERS).await?;
    for status in WorkerStatus::ALL {
        let count = workers.iter().filter(|worker| worker.status() == status).count();
        metrics::gauge!("safelight_workers", "status" => status.as_str())
            .set(u32::try_from(count).unwrap_or(u32::MAX));
    }
    // States without jobs are not in the answer, and must show as zero rather than as they were.
    for (kind, lane) in
        JobKind::ALL.iter().flat_map(|&kind| Lane::ALL.iter().map(move |&lane| (kind, lane)))
    {
        let mut oldest_due = 0.0_f64;
        for status in [Status::Queued, Status::Running, Status::Failed] {
            let found =
                counts.iter().find(|c| c.kind == kind && c.lane == lane && c.status == status);
            #[allow(clippy::cast_precision_loss)] // exact up to 2^53 jobs
            let count = found.map_or(0.0, |found| found.count as f64);
            metrics::gauge!("safelight_jobs", "kind" => kind.as_str(), "lane" => lane.as_str(), "status" => status.as_str())
                .set(count);
            if status == Status::Queued {
                oldest_due = found.map_or(0.0, |found| found.oldest_due_seconds);
            }
        }
        metrics::gauge!("safelight_oldest_due_seconds", "kind" => kind.as_str(), "lane" => lane.as_str())
            .set(oldest_due);
    }
    #[allow(clippy::cast_precision_loss)] // exact up to 2^53 jobs
    metrics::gauge!("safelight_unpublished_jobs").set(unpublished as f64);
    Ok(())
}
