//! The audit: what the database holds, read independently of everything under test after each call, and
//! what must be true of it.

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
    now: Snapshot,
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
    /// Its row in the outbox: generation and due time.
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

type Verified = Result<(), String>;

impl Audit {
    pub async fn open(path: &Path) -> Self {
        let options = SqliteConnectOptions::new().filename(path).read_only(true);
        Self { conn: options.connect().await.expect("open the database"), now: Snapshot::default() }
    }

    /// Reads the database again after a call, and compares it with before.
    pub async fn look(
        &mut self,
        method: &str,
        label: &str,
        confirmed: impl Fn(JobId, u32) -> bool,
    ) -> Verified {
        if READS.contains(&method) {
            return Ok(());
        }
        let snapshot = self.read().await;
        let old = std::mem::replace(&mut self.now, snapshot);
        for (id, job) in &old.jobs {
            let new = self.now.jobs.get(id).ok_or_else(|| format!("job {} is gone", name(id)))?;
            if job != new {
                change(method, label, id, job, new)?;
                if let (Some((generation, _)), None, "queued") =
                    (job.outbox, new.outbox, new.status.as_str())
                {
                    must(confirmed(JobId(*id), generation), || {
                        format!("the outbox row of {} is gone, unconfirmed", name(id))
                    })?;
                }
            }
            state(id, new)?;
        }
        for (id, job) in self.now.jobs.iter().filter(|(id, _)| !old.jobs.contains_key(*id)) {
            must(job.status == "queued" && job.fence == 0, || format!("new, but {job:?}"))?;
            must(job.outbox == Some((0, job.run_at)), || {
                format!("{} has no outbox row", name(id))
            })?;
        }
        for (id, task) in &self.now.tasks {
            let jobs = self.now.jobs.values().filter(|job| job.task == *id);
            counted(id, task, &jobs.collect::<Vec<_>>())?;
            if let Some(old) = old.tasks.get(id) {
                must(task.version >= old.version, || format!("task {}: version", name(id)))?;
                must(task == old || task.version > old.version, || {
                    format!("task {} changed within its version", name(id))
                })?;
            }
        }
        Ok(())
    }

    /// Whether a worker may acknowledge a message of `job` that is its last one of it.
    pub fn acknowledged(&self, job: JobId, worker: WorkerId) -> Verified {
        let row = self.now.jobs.get(&job.0).ok_or("acknowledged an unknown job")?;
        must(row.status != "running" || row.worker != Some(worker.0), || {
            format!("{} is acknowledged before its attempt is settled", name(&job.0))
        })
    }

    /// How many jobs and tasks are still to end, and rows in the outbox.
    pub fn unfinished(&self) -> usize {
        let jobs =
            self.now.jobs.values().filter(|job| !is_final(&job.status) || job.outbox.is_some());
        jobs.count() + self.now.tasks.values().filter(|task| !is_final(&task.status)).count()
    }

    /// What is unfinished, in words.
    pub fn story(&self) -> Vec<String> {
        let open = |status: &str| !is_final(status);
        let jobs =
            self.now.jobs.iter().filter(|(_, job)| open(&job.status) || job.outbox.is_some());
        jobs.map(|(id, job)| format!("left: job {} {job:?}", name(id))).collect()
    }

    pub fn ended(&self) -> (usize, usize) {
        let failed = self.now.tasks.values().filter(|task| task.status == "failed").count();
        (self.now.tasks.len(), failed)
    }

    /// The last check, when all is quiet.
    pub async fn finish(&mut self, promises: &Promises, messages: usize) -> Verified {
        for task in &promises.accepted {
            let found = self.now.tasks.get(&task.0);
            let found = found.ok_or_else(|| format!("accepted task {} is lost", name(&task.0)))?;
            must(is_final(&found.status), || format!("task {} is stuck", name(&task.0)))?;
        }
        for (key, _) in &promises.tried {
            let made = promises
                .tried
                .iter()
                .filter(|(other, task)| other == key && self.now.tasks.contains_key(&task.0));
            must(made.count() <= 1, || format!("key {key} made two tasks"))?;
        }
        must(self.unfinished() == 0, || format!("not finished: {:?}", self.story()))?;
        must(messages == 0, || format!("{messages} messages are left"))?;
        self.effects().await
    }

    /// Each success left the effect of its own attempt, and nothing else left any.
    async fn effects(&mut self) -> Verified {
        let images = sqlx::query("select id, width, sha256 = zeroblob(32) from images");
        let images = images.fetch_all(&mut self.conn).await.expect("images");
        let widths: BTreeMap<Uuid, Option<u32>> =
            images.iter().map(|row| (row.get(0), row.get(1))).collect();
        let forgotten: BTreeMap<Uuid, bool> =
            images.iter().map(|row| (row.get(0), row.get(2))).collect();
        let mut made: Vec<String> = sqlx::query_scalar("select fingerprint from renditions")
            .fetch_all(&mut self.conn)
            .await
            .expect("renditions");
        made.sort_unstable();
        let mut wanted = Vec::new();
        for (id, job) in &self.now.jobs {
            let fence = (job.status == "succeeded").then_some(job.fence);
            if job.kind == "write" {
                must(widths.get(&job.image) == Some(&fence), || {
                    format!("{} left {:?}, not {fence:?}", name(id), widths.get(&job.image))
                })?;
            } else if job.kind == "delete" {
                must(forgotten.get(&job.image) == Some(&fence.is_some()), || {
                    format!("{} left its image as {:?}", name(id), forgotten.get(&job.image))
                })?;
            } else if let Some(fence) = fence {
                wanted.push(fingerprint(JobId(*id), fence));
            }
        }
        wanted.sort_unstable();
        must(made == wanted, || format!("renditions {made:?}, not {wanted:?}"))
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

/// The mark that a thumbnail attempt leaves.
pub(super) fn fingerprint(job: JobId, fence: u32) -> String {
    format!("{}/{fence}", name(&job.0))
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

/// Which changes of a job a call may make.
fn change(method: &str, label: &str, id: &Uuid, old: &Job, new: &Job) -> Verified {
    let wrong = |what: &str| format!("{} {what} in {method}:\n  {old:?}\n  {new:?}", name(id));
    let as_before = Job { outbox: new.outbox, ..old.clone() };
    if method == "retry" && old.status == "failed" {
        let requeued =
            new.status == "queued" && (new.fence, new.released) == (old.fence, old.fence);
        return must(requeued && new.outbox == Some((new.fence, new.run_at)), || {
            wrong("is not queued again")
        });
    }
    let cancels = method == "cancel" || method == "delete_image" && old.kind != "delete";
    if cancels && !is_final(&old.status) {
        must(old.kind != "delete", || wrong("is a deletion, and was cancelled"))?;
        let ended = Job { status: "cancelled".to_owned(), outbox: None, ..old.clone() };
        return must(*new == ended, || wrong("is not just cancelled"));
    }
    must(!is_final(&old.status) || *new == as_before, || wrong("changed after its end"))?;
    if new.fence == old.fence {
        must(old.status == "running" || new.status == old.status, || wrong("ran unclaimed"))?;
    } else {
        must(new.fence == old.fence + 1 && new.status == "running", || wrong("lost its fence"))?;
        must(method == "claim", || wrong("got a fence"))?;
    }
    if method == "claim" && new.status == "running" {
        must(new.fence == old.fence + 1, || wrong("ran uncounted"))?;
    }
    if old.status == "running" && new.status != "running" {
        let lease = format!("job({}), fence: {} }}", name(id), old.fence);
        must(method == "settle" && label.contains(&lease), || wrong("ended for another"))?;
        let outboxed = new.outbox == Some((new.fence, new.run_at));
        must(new.status != "queued" || outboxed, || wrong("waits without an outbox row"))?;
    }
    Ok(())
}

/// What must be true of a job at any time.
fn state(id: &Uuid, job: &Job) -> Verified {
    let wrong = |what: &str| format!("{} {what}: {job:?}", name(id));
    let attempts = job.fence - job.released;
    must(attempts <= job.max_attempts, || wrong("had too many attempts"))?;
    // A cancelled job keeps its lease: until then its worker may still be writing.
    let may_have_lease = ["running", "cancelled"].contains(&job.status.as_str());
    must(job.status != "running" || job.lease_until.is_some(), || wrong("runs without a lease"))?;
    must(may_have_lease || job.lease_until.is_none(), || wrong("has a lease"))?;
    must(job.status != "queued" || attempts < job.max_attempts, || wrong("waits for ever"))?;
    let Some(code) = &job.error else { return Ok(()) };
    let code: ErrorCode = code.parse().map_err(|error| format!("{error}"))?;
    if job.status == "failed" {
        let used_up = attempts == job.max_attempts;
        must(used_up || !code.is_retryable(), || wrong("had attempts left"))
    } else {
        must(code.is_retryable(), || wrong("is tried again for a permanent failure"))
    }
}

/// What must be true of a task and its jobs.
fn counted(id: &Uuid, task: &Task, jobs: &[&Job]) -> Verified {
    let count = |status| u32::try_from(jobs.iter().filter(|job| job.status == status).count());
    let wrong = || format!("task {} and its jobs disagree: {task:?} {jobs:?}", name(id));
    for (counted, status) in
        [(task.succeeded, "succeeded"), (task.failed, "failed"), (task.cancelled, "cancelled")]
    {
        must(count(status) == Ok(counted), wrong)?;
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
        // Also once it was queued again by hand.
        "queued"
    } else {
        "running"
    };
    must(task.status == status && task.finished == is_final(status), wrong)
}

fn is_final(status: &str) -> bool {
    ["succeeded", "failed", "cancelled"].contains(&status)
}

fn must(holds: bool, otherwise: impl FnOnce() -> String) -> Verified {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// As the trace names it.
fn name(id: &Uuid) -> String {
    format!("#{}", id.as_u128())
}
