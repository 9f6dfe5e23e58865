//! Probes and metrics.

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use safelight_domain::Scope;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::registry::{ApiRoutes, RouteAccess};
use crate::{
    http::{
        problem::{Problem, ProblemCode},
        responses::problem_responses,
    },
    readiness::DependencyStates,
    state::ApiState,
};

problem_responses! {
    /// Of the readiness probe.
    ReadyProblems: NotReady;
    /// Of calls that nothing can go wrong with.
    InternalProblems: ;
}

/// The routes for probes and metrics.
pub fn routes() -> ApiRoutes {
    ApiRoutes::new()
        .route(RouteAccess::PUBLIC, routes!(livez))
        .route(RouteAccess::PUBLIC, routes!(readyz))
        .route(RouteAccess::scopes(&[Scope::Metrics]), routes!(metrics))
}

/// Whether a node can serve requests.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Readiness)]
pub struct ReadinessDocument {
    /// `ready`, or `degraded` if a dependency is unavailable that the node can work without for a while. One
    /// is the broker: uploads are still accepted, and their jobs are published when the broker is available
    /// again. On a node that only delivers, the others are the database and the blob store: it serves what it
    /// has cached.
    pub status: ReadinessStatus,
    /// The state of each dependency.
    pub parts: PartsDocument,
}

/// Whether all dependencies of a ready node are available.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReadinessStatus {
    /// It has.
    Ready,
    /// A part is missing that it can do without for a while.
    Degraded,
}

/// The dependencies of a node.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[schema(as = Parts)]
pub struct PartsDocument {
    /// The database.
    pub database: PartState,
    /// The blob store.
    pub blobs: PartState,
    /// The broker; absent if the node does not need it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker: Option<PartState>,
}

/// Whether a dependency answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PartState {
    /// It does.
    Up,
    /// It does not.
    Down,
}

/// Whether the process is alive.
#[utoipa::path(
    get, path = "/livez", tag = "probes",
    responses((status = 200, description = "The process is alive", body = String, content_type = "text/plain"), InternalProblems),
)]
pub async fn livez() -> &'static str {
    "ok\n"
}

/// Whether this node is ready.
#[utoipa::path(
    get, path = "/readyz", tag = "probes",
    responses(
        (status = 200, description = "The node is ready", body = ReadinessDocument),
        ReadyProblems,
    ),
)]
pub async fn readyz(State(state): State<ApiState>) -> Result<Response, Problem> {
    let DependencyStates { database, blobs, broker } = Box::pin(state.readiness.check()).await;
    let parts = PartsDocument {
        database: database.into(),
        blobs: blobs.into(),
        broker: broker.map(Into::into),
    };
    let is_lacking = !database || !blobs;
    // A node that only delivers can continue with its caches; and no other such node would be better off.
    if is_lacking && !state.readiness.only_delivers() {
        return Err(Problem::new(
            ProblemCode::NotReady,
            "A dependency of this node is unavailable.",
        )
        .with("parts", json!(parts)));
    }
    let status = if is_lacking || broker == Some(false) {
        ReadinessStatus::Degraded
    } else {
        ReadinessStatus::Ready
    };
    let no_store = (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(([no_store], Json(ReadinessDocument { status, parts })).into_response())
}

impl From<bool> for PartState {
    fn from(is_up: bool) -> Self {
        if is_up { Self::Up } else { Self::Down }
    }
}

/// Metrics for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "probes",
    responses((status = 200, description = "Prometheus text format", body = String, content_type = "text/plain"), InternalProblems),
)]
pub async fn metrics(State(state): State<ApiState>) -> impl IntoResponse {
    state.gauges.refresh().await;
    #[allow(clippy::cast_precision_loss)] // exact up to 2^53 bytes
    metrics::gauge!("safelight_cache_bytes", "tier" => "memory")
        .set(state.delivery.bytes_in_memory() as f64);
    for (place, free) in state.blobs.free_bytes().await {
        #[allow(clippy::cast_precision_loss)] // exact up to 2^53 bytes
        metrics::gauge!("safelight_free_bytes", "place" => place.as_str()).set(free as f64);
    }
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, text)], (state.render_metrics)())
}
