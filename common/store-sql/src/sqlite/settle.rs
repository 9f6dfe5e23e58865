//! Settles: ending attempts, in one script for all that wait, and a statement for each further effect.

use std::collections::HashMap;

use safelight_domain::{ImageId, JobId, Status};
use safelight_store::{Settled, StoreError, ending::Ending};
use sqlx::{SqliteConnection, types::Json};

use super::{
    effects,
    finish::finish_tasks,
    gather::{Call, JobNumbers, alike, calls},
    notices::{insert_notices, replace_notices},
};
use crate::{calls::Settling, convert::micros};

/// Whether the lease of a job is still held.
macro_rules! held {
    () => {
        "jobs.id = calls.job and jobs.fence = calls.fence and jobs.status = 'running'"
    };
}

/// How the job ends.
macro_rules! end {
    () => {
        "case when $3 = 'queued' and jobs.fence - released - $4 >= max_attempts
              then 'failed' else $3 end"
    };
}

/// Puts jobs that are queued again into the outbox, due when they may run.
const QUEUE_AGAIN: &str = concat!(
    calls!("fence"),
    insert_notices!(),
    "$5 from (
         select jobs.id, kind, lane, share, jobs.fence from calls join jobs on ",
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
    calls!("fence"),
    "select json_group_array(json_array(hex(jobs.id), hex(image_id)))
     from calls join jobs on ",
    held!(),
    "; ",
    calls!("fence"),
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
    calls!("fence"),
    "update images set fresh = 0
     where fresh and id in (
         select image_id from calls join jobs on ",
    held!(),
    " where $3 = 'succeeded' and (kind = 'thumbnail' or $9)); ",
    calls!("fence"),
    "update jobs
     set status = ",
    end!(),
    ", released = released + $4,
         run_at = case $3 when 'queued' then $5 else run_at end,
         waiting_since = case $3 when 'queued' then $5 else waiting_since end,
         error_code = case when $4 = 0 or $6 is not null then $6 else error_code end,
         error_message = case when $4 = 0 or $6 is not null then $7 else error_message end,
         note = case $4 when 0 then $8 else note end,
         lease_until = null, worker_id = null, updated_at = $2
     from calls where ",
    held!()
);

/// What the settles of a statement have in common: those of jobs that simply succeeded are alike.
#[derive(PartialEq, Eq, Hash)]
struct Terms {
    status: Status,
    released: u32,
    due: i64,
    code: Option<&'static str>,
    message: Option<String>,
    note: Option<String>,
    renders: bool,
}

impl Terms {
    fn of(ending: &Ending<'_>, now: i64) -> Self {
        Self {
            status: ending.status,
            released: ending.released,
            due: now + micros(ending.delay),
            code: ending.failure.map(|failure| failure.code.as_str()),
            message: ending.failure.map(|failure| failure.message.clone()),
            note: ending.note.map(str::to_owned),
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
        let terms = |call: &Self| (Terms::of(&Ending::of(&call.outcome), now), call.lease.fence);
        let mut held = HashMap::new();
        for (terms, fences) in alike(calls, terms) {
            held.extend(settle(conn, now, terms, fences).await?);
        }
        for Self { lease, outcome } in calls {
            if let Some(image) = held.get(&lease.job) {
                for effect in Ending::of(outcome).effects {
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

/// Settles calls that are alike. Returns the jobs whose lease was still held, and their images.
async fn settle(
    conn: &mut SqliteConnection,
    now: i64,
    terms: Terms,
    fences: JobNumbers,
) -> Result<Vec<(JobId, ImageId)>, StoreError> {
    if terms.status == Status::Queued {
        sqlx::query(QUEUE_AGAIN)
            .bind(&fences)
            .bind(now)
            .bind(terms.status.as_str())
            .bind(terms.released)
            .bind(terms.due)
            .execute(&mut *conn)
            .await?;
    }
    let held: Vec<Json<Vec<(JobId, ImageId)>>> = sqlx::query_scalar(SETTLE)
        .bind(fences)
        .bind(now)
        .bind(terms.status.as_str())
        .bind(terms.released)
        .bind(terms.due)
        .bind(terms.code)
        .bind(terms.message)
        .bind(terms.note)
        .bind(terms.renders)
        // Not `fetch_one`: that stops at the first row, and does not run the statements after it.
        .fetch_all(conn)
        .await?;
    Ok(held.into_iter().flat_map(|Json(jobs)| jobs).collect())
}
