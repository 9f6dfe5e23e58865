//! Settles: ending attempts, in one script for all that wait, and a statement for each further effect.

use std::collections::HashMap;

use safelight_domain::{ImageId, JobId, Status};
use safelight_store::{Lease, Outcome, Settled, StoreError, ending::Ending};
use serde::Serialize;
use sqlx::{SqliteConnection, types::Json};

use super::{
    effects,
    finish::finish_tasks,
    gather::Call,
    notices::{insert_notices, replace_notices},
};
use crate::convert::micros;

/// One call of [`Jobs::settle`](safelight_store::Jobs::settle).
pub struct Settling {
    pub lease: Lease,
    pub outcome: Outcome,
}

/// The settles of a statement: its first parameter is a JSON array of [`Settlement`]s.
macro_rules! calls {
    () => {
        "with calls as materialized (
             select unhex(value ->> 'job') as job, value ->> 'fence' as fence,
                    value ->> 'status' as status, value ->> 'released' as released,
                    $2 + (value ->> 'delay_us') as due, value ->> 'code' as code,
                    value ->> 'message' as message, value ->> 'note' as note,
                    value ->> 'renders' as renders
             from json_each($1)) "
    };
}

/// Whether the lease of a job is still held.
macro_rules! held {
    () => {
        "jobs.id = calls.job and jobs.fence = calls.fence and jobs.status = 'running'"
    };
}

/// How the job ends.
macro_rules! end {
    () => {
        "case when calls.status = 'queued'
                   and jobs.fence - jobs.released - calls.released >= max_attempts
              then 'failed' else calls.status end"
    };
}

/// Puts jobs that are queued again into the outbox, due when they may run.
const QUEUE_AGAIN: &str = concat!(
    calls!(),
    insert_notices!(),
    "due from (
         select jobs.id, kind, lane, share, jobs.fence, calls.due from calls join jobs on ",
    held!(),
    " where ",
    end!(),
    " = 'queued') where true",
    replace_notices!()
);

/// Ends the attempts whose lease is still held, and returns their jobs and images: in one row, because each row would
/// wake the thread that receives it. One script, as a claim is. The jobs change last, so that all statements find the
/// same ones.
const SETTLE: &str = concat!(
    calls!(),
    "select json_group_array(json_array(hex(jobs.id), hex(image_id)))
     from calls join jobs on ",
    held!(),
    "; ",
    calls!(),
    finish_tasks!(
        concat!(
            "select task_id, sum(status = 'succeeded') as succeeded, sum(status = 'failed') as failed,
                    0 as cancelled, count(*) as changes
             from (select task_id, ",
            end!(),
            " as status from calls join jobs on ",
            held!(),
            ") group by task_id"
        ),
        "$2"
    ),
    "-- Their own renditions are made: they may show those of their blobs.
     ",
    calls!(),
    "update images set fresh = 0
     where fresh and id in (
         select image_id from calls join jobs on ",
    held!(),
    " where calls.status = 'succeeded' and (kind = 'thumbnail' or calls.renders)); ",
    calls!(),
    "update jobs
     set status = ",
    end!(),
    ",   released = jobs.released + calls.released,
         run_at = case calls.status when 'queued' then calls.due else run_at end,
         waiting_since = case calls.status when 'queued' then calls.due else waiting_since end,
         error_code = case when calls.released = 0 or calls.code is not null then calls.code
                           else error_code end,
         error_message = case when calls.released = 0 or calls.code is not null then calls.message
                              else error_message end,
         note = case calls.released when 0 then calls.note else jobs.note end,
         lease_until = null, worker_id = null, updated_at = $2
     from calls where ",
    held!()
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
    renders: bool,
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
            renders: ending.has_renditions(),
        }
    }
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
        let settlements = Json(settlements);
        if endings.iter().any(|(_, ending)| ending.status == Status::Queued) {
            sqlx::query(QUEUE_AGAIN).bind(&settlements).bind(now).execute(&mut *conn).await?;
        }
        let query = sqlx::query_scalar(SETTLE).bind(&settlements).bind(now);
        // Not `fetch_one`: that stops at the first row, and does not run the statements after it.
        let held: Vec<Json<Vec<(JobId, ImageId)>>> = query.fetch_all(&mut *conn).await?;
        let held: HashMap<_, _> = held.into_iter().flat_map(|Json(jobs)| jobs).collect();
        for (lease, ending) in &endings {
            if let Some(image) = held.get(&lease.job) {
                for effect in ending.effects {
                    effects::apply(conn, now, *image, effect).await?;
                }
            }
        }
        let settled = |call: &&Self| {
            let applied = held.contains_key(&call.lease.job);
            if applied { Settled::Applied } else { Settled::Stale }
        };
        Ok(calls.iter().map(settled).collect())
    }
}
