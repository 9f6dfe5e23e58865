//! Settles: ending attempts, in two scripts for all that wait, and one for each further effect.

use std::collections::HashMap;

use safelight_domain::{ImageId, JobId, JobKind, Status, TaskId};
use safelight_store::{Lease, Outcome, Settled, StoreError, ending::Ending};
use serde::Serialize;
use sqlx::{SqliteConnection, sqlite::SqliteRow, types::Json};

use super::{
    dialect::{any_of, ids},
    effects,
    finish::finish_tasks,
    gather::Call,
    notices::{insert_notices, replace_notices},
    rows,
};
use crate::convert::micros;

/// One call of [`Jobs::settle`](safelight_store::Jobs::settle).
pub struct Settling {
    pub lease: Lease,
    pub outcome: Outcome,
}

/// Ends the attempts whose lease is still held. Its parameter is a JSON array of [`Settlement`]s.
const SETTLE: &str = "
    with calls as materialized (
        select unhex(value ->> 'job') as job, value ->> 'fence' as fence,
               value ->> 'status' as status, value ->> 'released' as released,
               $2 + (value ->> 'delay_us') as due, value ->> 'code' as code,
               value ->> 'message' as message, value ->> 'note' as note
        from json_each($1))
    update jobs
    set status = case when calls.status = 'queued'
                           and jobs.fence - jobs.released - calls.released >= max_attempts
                      then 'failed' else calls.status end,
        released = jobs.released + calls.released,
        run_at = case calls.status when 'queued' then calls.due else run_at end,
        waiting_since = case calls.status when 'queued' then calls.due else waiting_since end,
        error_code = case when calls.released = 0 or calls.code is not null then calls.code
                          else error_code end,
        error_message = case when calls.released = 0 or calls.code is not null then calls.message
                             else error_message end,
        note = case calls.released when 0 then calls.note else jobs.note end,
        lease_until = null, worker_id = null, updated_at = $2
    from calls
    where jobs.id = calls.job and jobs.fence = calls.fence and jobs.status = 'running'
    returning id, task_id, image_id, kind, status";

/// Counts ended jobs on their tasks, and lets images show the renditions of their blobs.
const COUNT: &str = concat!(
    finish_tasks!(
        "select unhex(value ->> 0) as task_id, value ->> 1 as succeeded, value ->> 2 as failed,
                0 as cancelled, value ->> 3 as changes
         from json_each($1)",
        "$2"
    ),
    "-- Their own renditions are made: they may show those of their blobs.
     update images set fresh = 0 where fresh and id ",
    any_of!("$3")
);

/// A settle as the statement reads it.
#[derive(Serialize)]
struct Settlement<'a> {
    job: String,
    fence: u32,
    status: &'a str,
    released: u32,
    delay_us: i64,
    code: Option<&'a str>,
    message: Option<&'a str>,
    note: Option<&'a str>,
}

impl<'a> Settlement<'a> {
    fn of(lease: Lease, ending: &Ending<'a>) -> Self {
        Self {
            job: lease.job.0.simple().to_string(),
            fence: lease.fence,
            status: ending.status.as_str(),
            released: ending.released,
            delay_us: micros(ending.delay),
            code: ending.failure.map(|failure| failure.code.as_str()),
            message: ending.failure.map(|failure| failure.message.as_str()),
            note: ending.note,
        }
    }
}

/// A job whose attempt was ended.
struct Ended {
    task: TaskId,
    image: ImageId,
    kind: JobKind,
    status: Status,
}

impl Call for Settling {
    type Answer = Settled;

    fn job(&self) -> JobId {
        self.lease.job
    }

    async fn carry_out(
        conn: &mut SqliteConnection,
        now: i64,
        calls: &[&Self],
    ) -> Result<Vec<Settled>, StoreError> {
        let endings: Vec<_> =
            calls.iter().map(|call| (call.lease, Ending::of(&call.outcome))).collect();
        let settlements: Vec<_> =
            endings.iter().map(|(lease, ending)| Settlement::of(*lease, ending)).collect();
        let query = sqlx::query(SETTLE).bind(Json(settlements)).bind(now);
        let rows = query.fetch_all(&mut *conn).await?;
        let ended = rows.iter().map(ended).collect::<Result<HashMap<_, _>, _>>()?;
        if !ended.is_empty() {
            count(conn, now, &endings, &ended).await?;
        }
        for (lease, ending) in &endings {
            if let Some(job) = ended.get(&lease.job) {
                for effect in ending.effects {
                    effects::apply(conn, now, job.image, effect).await?;
                }
            }
        }
        queue_retries(conn, &ended).await?;
        let settled = |call: &&Self| {
            let applied = ended.contains_key(&call.lease.job);
            if applied { Settled::Applied } else { Settled::Stale }
        };
        Ok(calls.iter().map(settled).collect())
    }
}

fn ended(row: &SqliteRow) -> Result<(JobId, Ended), StoreError> {
    use sqlx::Row;
    let ended = Ended {
        task: row.try_get("task_id")?,
        image: row.try_get("image_id")?,
        kind: rows::name(row, "kind")?,
        status: rows::name(row, "status")?,
    };
    Ok((row.try_get("id")?, ended))
}

async fn count(
    conn: &mut SqliteConnection,
    now: i64,
    endings: &[(Lease, Ending<'_>)],
    ended: &HashMap<JobId, Ended>,
) -> Result<(), StoreError> {
    let mut tasks = HashMap::<TaskId, (u32, u32, u32)>::new();
    let mut rendered = Vec::new();
    for (lease, ending) in endings {
        let Some(job) = ended.get(&lease.job) else { continue };
        let (succeeded, failed, changes) = tasks.entry(job.task).or_default();
        *succeeded += u32::from(job.status == Status::Succeeded);
        *failed += u32::from(job.status == Status::Failed);
        *changes += 1;
        let renders = job.kind == JobKind::Thumbnail || ending.has_renditions();
        if job.status == Status::Succeeded && renders {
            rendered.push(job.image.0);
        }
    }
    let tasks: Vec<_> = tasks
        .iter()
        .map(|(id, (succeeded, failed, changes))| {
            (id.0.simple().to_string(), succeeded, failed, changes)
        })
        .collect();
    let query = sqlx::query(COUNT).bind(Json(tasks)).bind(now).bind(ids(rendered));
    query.execute(conn).await?;
    Ok(())
}

/// Puts jobs that are queued again into the outbox, due when they may run.
async fn queue_retries(
    conn: &mut SqliteConnection,
    ended: &HashMap<JobId, Ended>,
) -> Result<(), StoreError> {
    let queued = ended.iter().filter(|(_, job)| job.status == Status::Queued);
    let queued: Vec<_> = queued.map(|(id, _)| id.0).collect();
    if queued.is_empty() {
        return Ok(());
    }
    let query = sqlx::query(concat!(
        insert_notices!(),
        "run_at from jobs where id ",
        any_of!("$1"),
        replace_notices!()
    ));
    query.bind(ids(queued)).execute(conn).await?;
    Ok(())
}
