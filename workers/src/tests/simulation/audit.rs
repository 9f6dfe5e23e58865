//! The audit: reads the database after each store call, independently of the code under test, and checks
//! that every promise holds.

use std::{collections::BTreeMap, path::Path};

use safelight_domain::{ErrorCode, JobId, WorkerId};
use sqlx::{
    ConnectOptions, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteRow},
};
use uuid::Uuid;

use super::shared::Promises;

/// Calls that change nothing.
const READS: [&str; 15] = [
    "ping",
    "task",
    "task_versions",
    "list_tasks",
    "image",
    "list_images",
    "last_task_of_image",
    "existing_images",
    "count_published",
    "expired_leases",
    "job_counts",
    "count_unpublished",
    "discarded",
    "is_blob_wanted",
    "count_queued",
];

pub(super) struct Audit {
    conn: SqliteConnection,
    current: Snapshot,
}

#[derive(Default, Clone)]
struct Snapshot {
    jobs: BTreeMap<Uuid, Job>,
    tasks: BTreeMap<Uuid, Task>,
}

#[derive(Debug, Clone, PartialEq)]
struct Job {
    task: Uuid,
    image: Uuid,
    kind: String,
    status: String,
    fence: u32,
    released: u32,
    max_attempts: u32,
    run_at: i64,
    lease_until: Option<i64>,
    worker: Option<Uuid>,
    error: Option<String>,
    /// Generation and due time of its outbox row.
    outbox: Option<(u32, i64)>,
}

#[derive(Debug, Clone, PartialEq)]
struct Task {
    status: String,
    total: u32,
    succeeded: u32,
    failed: u32,
    cancelled: u32,
    version: i64,
    finished: bool,
}

type CheckResult = Result<(), String>;

impl Audit {
    pub async fn open(path: &Path) -> Self {
        let options = SqliteConnectOptions::new().filename(path).read_only(true);
        Self {
            conn: options.connect().await.expect("open the database"),
            current: Snapshot::default(),
        }
    }

    /// Reads the database after a call, and checks all changes since the last call.
    pub async fn check_call(
        &mut self,
        method: &str,
        label: &str,
        confirmed: impl Fn(JobId, u32) -> bool,
    ) -> CheckResult {
        if READS.contains(&method) {
            return Ok(());
        }
        let snapshot = self.read().await;
        let old = std::mem::replace(&mut self.current, snapshot);
        for (id, job) in &old.jobs {
            let new =
                self.current.jobs.get(id).ok_or_else(|| format!("job {} is lost", short_id(id)))?;
            if job != new {
                check_change(method, label, id, job, new)?;
                if let (Some((generation, _)), None, "queued") =
                    (job.outbox, new.outbox, new.status.as_str())
                {
                    must(confirmed(JobId(*id), generation), || {
                        format!("the outbox row of {} was removed without a confirm", short_id(id))
                    })?;
                }
            }
            check_job(id, new)?;
        }
        for (id, job) in self.current.jobs.iter().filter(|(id, _)| !old.jobs.contains_key(*id)) {
            must(job.status == "queued" && job.fence == 0, || {
                format!("unexpected new job: {job:?}")
            })?;
            must(job.outbox == Some((0, job.run_at)), || {
                format!("{} has no outbox row", short_id(id))
            })?;
        }
        for (id, task) in &self.current.tasks {
            let jobs = self.current.jobs.values().filter(|job| job.task == *id);
            check_task(id, task, &jobs.collect::<Vec<_>>())?;
            if let Some(old) = old.tasks.get(id) {
                must(task.version >= old.version, || {
                    format!("task {} has an older version", short_id(id))
                })?;
                must(task == old || task.version > old.version, || {
                    format!("task {} changed without a new version", short_id(id))
                })?;
            }
        }
        Ok(())
    }

    /// Checks that the worker may acknowledge its last message of `job`.
    pub fn check_acknowledgement(&self, job: JobId, worker: WorkerId) -> CheckResult {
        let row = self.current.jobs.get(&job.0).ok_or("an unknown job was acknowledged")?;
        must(row.status != "running" || row.worker != Some(worker.0), || {
            format!("{} was acknowledged before its attempt was settled", short_id(&job.0))
        })
    }

    /// The number of jobs and tasks that have not ended or have an outbox row.
    pub fn unfinished(&self) -> usize {
        let jobs =
            self.current.jobs.values().filter(|job| !is_final(&job.status) || job.outbox.is_some());
        jobs.count() + self.current.tasks.values().filter(|task| !is_final(&task.status)).count()
    }

    /// Describes the unfinished jobs.
    pub fn describe_unfinished(&self) -> Vec<String> {
        let jobs = self
            .current
            .jobs
            .iter()
            .filter(|(_, job)| !is_final(&job.status) || job.outbox.is_some());
        jobs.map(|(id, job)| format!("job {} {job:?}", short_id(id))).collect()
    }

    /// The number of tasks, and of failed tasks.
    pub fn task_counts(&self) -> (usize, usize) {
        let failed = self.current.tasks.values().filter(|task| task.status == "failed").count();
        (self.current.tasks.len(), failed)
    }

    /// Checks the final state, after all work has ended.
    pub async fn check_final_state(&mut self, promises: &Promises, messages: usize) -> CheckResult {
        for task in &promises.accepted {
            let found = self.current.tasks.get(&task.0);
            let found =
                found.ok_or_else(|| format!("accepted task {} is lost", short_id(&task.0)))?;
            must(is_final(&found.status), || format!("task {} is stuck", short_id(&task.0)))?;
        }
        for (key, _) in &promises.attempted {
            let created = promises
                .attempted
                .iter()
                .filter(|(other, task)| other == key && self.current.tasks.contains_key(&task.0));
            must(created.count() <= 1, || format!("key {key} created two tasks"))?;
        }
        must(self.unfinished() == 0, || format!("unfinished: {:?}", self.describe_unfinished()))?;
        must(messages == 0, || format!("{messages} messages are left"))?;
        self.check_effects().await
    }

    /// Checks that each successful job has exactly one effect, that of its last attempt, and that no other
    /// job has any.
    async fn check_effects(&mut self) -> CheckResult {
        let images = sqlx::query("select id, width, sha256 = zeroblob(32) from images");
        let images = images.fetch_all(&mut self.conn).await.expect("images");
        let widths: BTreeMap<Uuid, Option<u32>> =
            images.iter().map(|row| (row.get(0), row.get(1))).collect();
        let forgotten: BTreeMap<Uuid, bool> =
            images.iter().map(|row| (row.get(0), row.get(2))).collect();
        let mut found: Vec<String> = sqlx::query_scalar("select fingerprint from renditions")
            .fetch_all(&mut self.conn)
            .await
            .expect("renditions");
        found.sort_unstable();
        let mut expected = Vec::new();
        for (id, job) in &self.current.jobs {
            let fence = (job.status == "succeeded").then_some(job.fence);
            if job.kind == "write" {
                must(widths.get(&job.image) == Some(&fence), || {
                    format!("{} left {:?}, not {fence:?}", short_id(id), widths.get(&job.image))
                })?;
            } else if job.kind == "delete" {
                must(forgotten.get(&job.image) == Some(&fence.is_some()), || {
                    format!("{} left its image as {:?}", short_id(id), forgotten.get(&job.image))
                })?;
            } else if let Some(fence) = fence {
                expected.push(fingerprint(JobId(*id), fence));
            }
        }
        expected.sort_unstable();
        must(found == expected, || format!("renditions {found:?}, not {expected:?}"))
    }

    async fn read(&mut self) -> Snapshot {
        let jobs = sqlx::query(
            "select j.id, task_id, image_id, j.kind, status, fence, released, max_attempts, run_at,
                    lease_until, worker_id, error_code, generation, due_at
             from jobs j left join outbox o on o.job_id = j.id",
        );
        let jobs = jobs.fetch_all(&mut self.conn).await.expect("jobs");
        let tasks = sqlx::query(
            "select id, status, jobs_total, jobs_succeeded, jobs_failed, jobs_cancelled, version,
                    finished_at is not null
             from tasks",
        );
        let tasks = tasks.fetch_all(&mut self.conn).await.expect("tasks");
        Snapshot {
            jobs: jobs.iter().map(|row| (row.get(0), job(row))).collect(),
            tasks: tasks.iter().map(|row| (row.get(0), task(row))).collect(),
        }
    }
}

/// The fingerprint of the rendition that an attempt makes.
pub(super) fn fingerprint(job: JobId, fence: u32) -> String {
    format!("{}/{fence}", short_id(&job.0))
}

fn job(row: &SqliteRow) -> Job {
    let generation: Option<u32> = row.get(12);
    Job {
        task: row.get(1),
        image: row.get(2),
        kind: row.get(3),
        status: row.get(4),
        fence: row.get(5),
        released: row.get(6),
        max_attempts: row.get(7),
        run_at: row.get(8),
        lease_until: row.get(9),
        worker: row.get(10),
        error: row.get(11),
        outbox: generation.zip(row.get(13)),
    }
}

fn task(row: &SqliteRow) -> Task {
    Task {
        status: row.get(1),
        total: row.get(2),
        succeeded: row.get(3),
        failed: row.get(4),
        cancelled: row.get(5),
        version: row.get(6),
        finished: row.get(7),
    }
}

/// Checks that the call may change the job like this.
fn check_change(method: &str, label: &str, id: &Uuid, old: &Job, new: &Job) -> CheckResult {
    let wrong = |what: &str| format!("{} {what} in {method}:\n  {old:?}\n  {new:?}", short_id(id));
    let unchanged = Job { outbox: new.outbox, ..old.clone() };
    if method == "retry" && old.status == "failed" {
        let requeued =
            new.status == "queued" && (new.fence, new.released) == (old.fence, old.fence);
        return must(requeued && new.outbox == Some((new.fence, new.run_at)), || {
            wrong("was not queued again")
        });
    }
    if ["observe_clock", "bring_times_back"].contains(&method) {
        return must(only_times_came_back(old, new), || wrong("changed more than times"));
    }
    let cancels = method == "cancel" || method == "delete_image" && old.kind != "delete";
    if cancels && !is_final(&old.status) {
        must(old.kind != "delete", || wrong("is a deletion and was cancelled"))?;
        let ended = Job { status: "cancelled".to_owned(), outbox: None, ..old.clone() };
        return must(*new == ended, || wrong("changed more than its status when cancelled"));
    }
    must(!is_final(&old.status) || *new == unchanged, || wrong("changed after its end"))?;
    if new.fence == old.fence {
        must(old.status == "running" || new.status == old.status, || {
            wrong("runs without a claim")
        })?;
    } else {
        must(new.fence == old.fence + 1 && new.status == "running", || {
            wrong("has a wrong fencing token")
        })?;
        must(method == "claim", || wrong("got a fencing token"))?;
    }
    if method == "claim" && new.status == "running" {
        must(new.fence == old.fence + 1, || wrong("runs without a counted attempt"))?;
    }
    if old.status == "running" && new.status != "running" {
        let lease = format!("job({}), fence: {} }}", short_id(id), old.fence);
        must(method == "settle" && label.contains(&lease), || {
            wrong("was ended by another attempt")
        })?;
        let has_outbox_row = new.outbox == Some((new.fence, new.run_at));
        must(new.status != "queued" || has_outbox_row, || wrong("waits without an outbox row"))?;
    }
    Ok(())
}

/// Whether the clock's watch changed nothing but times, none of them to a later one. A queued job may get a new message.
fn only_times_came_back(old: &Job, new: &Job) -> bool {
    let Job { run_at, lease_until, outbox, .. } = *new;
    let outbox_came_back = match (old.outbox, outbox) {
        (None, None) => true,
        (None, Some(added)) => new.status == "queued" && added == (new.fence, run_at),
        (Some(before), Some(after)) => before.0 == after.0 && after.1 <= before.1,
        (Some(_), None) => false,
    };
    let came_back = run_at <= old.run_at && lease_until <= old.lease_until && outbox_came_back;
    came_back && *new == Job { run_at, lease_until, outbox, ..old.clone() }
}

/// Checks what must always be true of a job.
fn check_job(id: &Uuid, job: &Job) -> CheckResult {
    let wrong = |what: &str| format!("{} {what}: {job:?}", short_id(id));
    let attempts = job.fence - job.released;
    must(attempts <= job.max_attempts, || wrong("had too many attempts"))?;
    // A cancelled job keeps its lease: until then its worker may still be writing.
    let may_have_lease = ["running", "cancelled"].contains(&job.status.as_str());
    must(job.status != "running" || job.lease_until.is_some(), || wrong("runs without a lease"))?;
    must(may_have_lease || job.lease_until.is_none(), || wrong("has a lease"))?;
    must(job.status != "queued" || attempts < job.max_attempts, || {
        wrong("waits without an attempt left")
    })?;
    let Some(code) = &job.error else { return Ok(()) };
    let code: ErrorCode = code.parse().map_err(|error| format!("{error}"))?;
    if job.status == "failed" {
        let used_up = attempts == job.max_attempts;
        must(used_up || !code.is_retryable(), || wrong("had attempts left"))
    } else {
        must(code.is_retryable(), || wrong("is retried after a permanent failure"))
    }
}

/// Checks that a task agrees with its jobs.
fn check_task(id: &Uuid, task: &Task, jobs: &[&Job]) -> CheckResult {
    let count = |status| u32::try_from(jobs.iter().filter(|job| job.status == status).count());
    let wrong = || format!("task {} and its jobs disagree: {task:?} {jobs:?}", short_id(id));
    for (stored, status) in
        [(task.succeeded, "succeeded"), (task.failed, "failed"), (task.cancelled, "cancelled")]
    {
        must(count(status) == Ok(stored), wrong)?;
    }
    must(task.total as usize == jobs.len(), wrong)?;
    let status = if jobs.iter().all(|job| is_final(&job.status)) {
        match (task.failed, task.cancelled) {
            (0, 0) => "succeeded",
            (_, 0) => "failed",
            _ => "cancelled",
        }
    } else if task.status == "queued"
        && jobs.iter().all(|job| job.fence == job.released || is_final(&job.status))
    {
        // Also after a retry by hand.
        "queued"
    } else {
        "running"
    };
    must(task.status == status && task.finished == is_final(status), wrong)
}

fn is_final(status: &str) -> bool {
    ["succeeded", "failed", "cancelled"].contains(&status)
}

fn must(holds: bool, otherwise: impl FnOnce() -> String) -> CheckResult {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// The id as it appears in the trace.
fn short_id(id: &Uuid) -> String {
    format!("#{}", id.as_u128())
}
