//! The queues: how much waits, how fast it comes and goes, when it will be done.

use axum::{Json, extract::State};
use safelight_domain::{JobKind, Lane, Scope};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::registry::{ApiRoutes, RouteAccess};
use crate::{
    fleet::QueueReport,
    http::{extract::Params, problem::Problem, responses::ListProblems},
    state::ApiState,
};

/// The route for queues.
pub fn routes() -> ApiRoutes {
    ApiRoutes::new().route(RouteAccess::scopes(&[Scope::Admin]), routes!(list))
}

/// All queues.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = QueueList)]
pub struct QueueListDocument {
    /// One queue for each kind of job on each lane, including empty ones.
    pub queues: Vec<QueueDocument>,
}

/// The jobs of one kind on one lane.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Queue)]
pub struct QueueDocument {
    /// The kind.
    pub kind: JobKind,
    /// The lane.
    pub lane: Lane,
    /// Queued jobs, due or not.
    pub depth: u64,
    /// Queued jobs that are due; the others wait for their next attempt.
    pub due: u64,
    /// Running jobs.
    pub running: u64,
    /// Jobs that failed permanently and were not retried.
    pub failed: u64,
    /// How long the oldest due job has been due; 0 if none is.
    pub oldest_due_seconds: f64,
    /// Jobs that arrived, per second, over about the last minute; null until this node has measured for long
    /// enough.
    pub rate_in: Option<f64>,
    /// Jobs that ended, per second, over about the last minute; null until this node has measured for long
    /// enough.
    pub rate_out: Option<f64>,
    /// Seconds until the queue is empty at these rates: `depth / (rate_out − rate_in)`; 0 if it is empty;
    /// null if it would never become empty, or if the rates are unknown.
    pub seconds_to_empty: Option<f64>,
}

impl From<QueueReport> for QueueDocument {
    fn from(report: QueueReport) -> Self {
        Self {
            kind: report.queue.kind,
            lane: report.queue.lane,
            depth: report.depth,
            due: report.due,
            running: report.running,
            failed: report.failed,
            oldest_due_seconds: report.oldest_due_seconds,
            rate_in: report.rate_in,
            rate_out: report.rate_out,
            seconds_to_empty: report.seconds_to_empty,
        }
    }
}

/// List the queues with their depth and throughput.
///
/// The node that answers measures the rates. It starts measuring when it starts.
#[utoipa::path(
    get, path = "/v1/queues", operation_id = "list_queues", tag = "fleet",
    responses(
        (status = 200, description = "The queues", body = QueueListDocument),
        ListProblems,
    ),
)]
pub async fn list(
    State(state): State<ApiState>,
    params: Params,
) -> Result<Json<QueueListDocument>, Problem> {
    params.finish()?;
    let queues = state.queues.read().await?;
    Ok(Json(QueueListDocument { queues: queues.into_iter().map(Into::into).collect() }))
}
