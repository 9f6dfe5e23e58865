//! The registered workers.

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use safelight_domain::{Scope, WorkerId};
use safelight_store::{QueueSlots, RegisteredWorker, ServiceRun, WorkerStatus};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::registry::{Access, ApiRoutes};
use crate::{
    fleet::list_workers,
    http::{extract::Params, problem::Problem, responses::ListProblems},
    state::ApiState,
};

/// The route for workers.
pub fn routes() -> ApiRoutes {
    ApiRoutes::new().route(Access::scopes(&[Scope::Admin]), routes!(list))
}

/// All workers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkerList)]
pub struct WorkerListDocument {
    /// The workers, the last heard of first; at most 10,000.
    pub workers: Vec<WorkerDocument>,
}

/// One worker process, as it last described itself.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Worker)]
pub struct WorkerDocument {
    /// Its id, new with every start.
    pub id: WorkerId,
    /// The name of its machine.
    pub host: String,
    /// Its process there.
    pub pid: u32,
    /// Its release.
    pub version: String,
    /// `running`; `draining` while it ends what it has and takes no more; `lost` when three of its
    /// heartbeats are missing.
    #[schema(schema_with = status_schema)]
    pub status: &'static str,
    /// The kinds of jobs that it takes; a newer worker may have others than this node knows.
    pub kinds: Vec<String>,
    /// The lanes that it takes them from.
    pub lanes: Vec<String>,
    /// Thumbnail jobs at once, as configured.
    pub concurrency: u32,
    /// Each kind on each lane that it serves.
    pub slots: Vec<SlotsDocument>,
    /// The background services of its process; empty for a worker of a release that does not report them.
    pub services: Vec<ServiceDocument>,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// When it was last heard of.
    pub last_heartbeat_at: DateTime<Utc>,
}

/// One kind's work on one lane of one worker.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkerSlots)]
pub struct SlotsDocument {
    /// The kind.
    pub kind: String,
    /// The lane.
    pub lane: String,
    /// Attempts at once at most. Lanes of a kind share slots.
    pub slots: u32,
    /// Attempts that run now.
    pub busy: u32,
    /// Jobs that ended here since the worker started, well or not.
    pub ended: u64,
    /// Milliseconds that attempts here took since then, all added up.
    pub run_ms: u64,
}

/// The last run of one background service.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkerService)]
pub struct ServiceDocument {
    /// Its name.
    pub name: String,
    /// When its last run began; `null` before the first.
    pub last_run_at: Option<DateTime<Utc>>,
    /// When its last successful run ended.
    pub last_success_at: Option<DateTime<Utc>>,
    /// Why its last finished run failed; `null` if that succeeded.
    pub last_error: Option<String>,
}

fn status_schema() -> utoipa::openapi::Object {
    utoipa::openapi::ObjectBuilder::new()
        .schema_type(utoipa::openapi::schema::Type::String)
        .enum_values(Some(WorkerStatus::ALL.map(WorkerStatus::as_str)))
        .build()
}

impl From<RegisteredWorker> for WorkerDocument {
    fn from(worker: RegisteredWorker) -> Self {
        let status = worker.status().as_str();
        let RegisteredWorker { beat, started_at, last_heartbeat_at, .. } = worker;
        Self {
            id: beat.id,
            host: beat.host,
            pid: beat.pid,
            version: beat.version,
            status,
            kinds: beat.kinds,
            lanes: beat.lanes,
            concurrency: beat.concurrency,
            slots: beat.slots.into_iter().map(SlotsDocument::from).collect(),
            services: beat.services.into_iter().map(ServiceDocument::from).collect(),
            started_at,
            last_heartbeat_at,
        }
    }
}

impl From<QueueSlots> for SlotsDocument {
    fn from(QueueSlots { kind, lane, slots, busy, ended, run_ms }: QueueSlots) -> Self {
        Self { kind, lane, slots, busy, ended, run_ms }
    }
}

impl From<ServiceRun> for ServiceDocument {
    fn from(ServiceRun { name, last_run_at, last_success_at, last_error }: ServiceRun) -> Self {
        Self { name, last_run_at, last_success_at, last_error }
    }
}

/// The workers of the fleet.
///
/// A worker that ends cleanly is gone from the list at once, one that was killed after ten minutes.
#[utoipa::path(
    get, path = "/v1/workers", operation_id = "list_workers", tag = "fleet",
    responses(
        (status = 200, description = "The workers", body = WorkerListDocument),
        ListProblems,
    ),
)]
pub async fn list(
    State(state): State<ApiState>,
    params: Params,
) -> Result<Json<WorkerListDocument>, Problem> {
    params.finish()?;
    let workers = list_workers(&state.store).await?;
    Ok(Json(WorkerListDocument { workers: workers.into_iter().map(Into::into).collect() }))
}
