//! The registered workers.

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use safelight_domain::{Scope, WorkerId};
use safelight_store::{QueueSlots, RegisteredWorker, ServiceRun, WorkerStatus};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::registry::{ApiRoutes, RouteAccess};
use crate::{
    fleet::list_workers,
    http::{extract::Params, problem::Problem, responses::ListProblems},
    state::ApiState,
};

/// The route for workers.
pub fn routes() -> ApiRoutes {
    ApiRoutes::new().route(RouteAccess::scopes(&[Scope::Admin]), routes!(list))
}

/// All workers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkerList)]
pub struct WorkerListDocument {
    /// The workers, most recent heartbeat first; at most 10,000.
    pub workers: Vec<WorkerDocument>,
}

/// One worker process, as of its last heartbeat.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Worker)]
pub struct WorkerDocument {
    /// Its id, which is new on every start.
    pub id: WorkerId,
    /// The host name of its machine.
    pub host: String,
    /// Its process id.
    pub pid: u32,
    /// The version of Safelight that it runs.
    pub version: String,
    /// `running`; `draining` while it ends what it has and takes no more; `lost` when three of its
    /// heartbeats are missing.
    #[schema(schema_with = status_schema)]
    pub status: &'static str,
    /// The kinds of jobs that it runs; a newer worker may report kinds that this node does not know.
    pub kinds: Vec<String>,
    /// The lanes that it serves.
    pub lanes: Vec<String>,
    /// The configured number of concurrent thumbnail jobs.
    pub concurrency: u32,
    /// Its work, by kind and lane.
    pub slots: Vec<SlotsDocument>,
    /// The background services of its process; empty for a worker of an older release that does not report
    /// them.
    pub services: Vec<ServiceDocument>,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// When its last heartbeat arrived.
    pub last_heartbeat_at: DateTime<Utc>,
}

/// The work of one kind on one lane of one worker.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkerSlots)]
pub struct SlotsDocument {
    /// The kind.
    pub kind: String,
    /// The lane.
    pub lane: String,
    /// The maximum number of concurrent attempts. The lanes of a kind share these slots.
    pub slots: u32,
    /// Attempts that are running.
    pub busy: u32,
    /// Jobs that ended on this worker since it started, successfully or not.
    pub ended: u64,
    /// The total run time of the attempts on this worker since it started, in milliseconds.
    pub run_ms: u64,
}

/// The last run of one background service.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkerService)]
pub struct ServiceDocument {
    /// Its name.
    pub name: String,
    /// When its last run started; `null` before the first run.
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

/// List the workers of the fleet.
///
/// A worker that shuts down cleanly leaves the list immediately; a worker that was killed leaves it after ten
/// minutes.
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
    let workers = list_workers(&*state.store).await?;
    Ok(Json(WorkerListDocument { workers: workers.into_iter().map(Into::into).collect() }))
}
