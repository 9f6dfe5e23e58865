//! Claims: turning messages into leases, in one script for all that wait.

use std::{collections::HashMap, time::Duration};

use safelight_domain::{JobId, WorkerId};
use safelight_store::{Claim, StoreError};
use sqlx::SqliteConnection;

use super::{
    gather::{Call, JobNumbers, alike, calls},
    rows::{self, backfill_joins, blob_joins, claimed_columns, column, image_columns},
};
use crate::{calls::Claiming, convert::micros};

/// Whether a job may run.
macro_rules! may_run {
    () => {
        "jobs.id = calls.job and fence - released < max_attempts and needs_version <= $6
         and (status = 'queued' and run_at <= $2
              or status = 'running' and (lease_until <= $2
                  or $5 and fence = calls.generation + 1 and worker_id is not $4))"
    };
}

/// Claims the jobs that may run. One script: each statement alone would cross to the connection's thread and back. The
/// jobs change last, so that all three statements find the same ones.
const CLAIM: &str = concat!(
    calls!("generation"),
    "update tasks
     set status = 'running', version = version + claimed.jobs, updated_at = $2
     from (select task_id, count(*) as jobs from calls join jobs on ",
    may_run!(),
    " group by task_id) claimed
     where tasks.id = claimed.task_id; ",
    calls!("generation"),
    "select",
    claimed_columns!(),
    image_columns!(),
    "from (select jobs.id, fence + 1 as fence, released, task_id, image_id, kind, lane, max_attempts
           from calls join jobs on ",
    may_run!(),
    ") j join images i on i.id = j.image_id",
    backfill_joins!(),
    blob_joins!(),
    "order by j.id, r.preset, r.fingerprint, r.format; ",
    calls!("generation"),
    "update jobs
     set status = 'running', fence = fence + 1, lease_until = $3, worker_id = $4, updated_at = $2
     from calls where ",
    may_run!()
);

/// Of claims without a job, those that need a newer worker.
const NEWER: &str = concat!(
    calls!("generation"),
    "select id from calls join jobs on jobs.id = calls.job
     where status = 'queued' and run_at <= $2 and needs_version > $3"
);

/// What the claims of a statement have in common: nearly always all that wait.
type Terms = (WorkerId, Duration, bool, u32);

impl Call for Claiming {
    type Answer = Claim;

    fn job(&self) -> JobId {
        self.notice.job
    }

    async fn carry_out(
        conn: &mut SqliteConnection,
        now: i64,
        calls: &[&Self],
    ) -> Result<Vec<Claim>, StoreError> {
        let terms = |call: &Self| {
            let terms = (call.worker, call.lease, call.redelivered, call.understood);
            (terms, call.notice.generation)
        };
        let mut claims = HashMap::new();
        for (terms, generations) in alike(calls, terms) {
            claims.extend(claim(conn, now, terms, generations).await?);
        }
        let claim = |call: &&Self| claims.remove(&call.job()).unwrap_or(Claim::Nothing);
        Ok(calls.iter().map(claim).collect())
    }
}

/// The jobs that were claimed, or that need a newer worker.
async fn claim(
    conn: &mut SqliteConnection,
    now: i64,
    (worker, lease, redelivered, understood): Terms,
    generations: JobNumbers,
) -> Result<HashMap<JobId, Claim>, StoreError> {
    let rows = sqlx::query(CLAIM)
        .bind(&generations)
        .bind(now)
        .bind(now + micros(lease))
        .bind(worker)
        .bind(redelivered)
        .bind(understood)
        .fetch_all(&mut *conn)
        .await?;
    let claimed = rows::claimed_jobs(&rows)?.into_iter();
    let mut claims: HashMap<_, _> =
        claimed.map(|job| (job.lease.job, Claim::Run(Box::new(job)))).collect();
    if claims.len() < generations.len() {
        let query = sqlx::query(NEWER).bind(&generations).bind(now).bind(understood);
        for job in column(&query.fetch_all(conn).await?, "id")? {
            claims.entry(job).or_insert(Claim::Newer);
        }
    }
    Ok(claims)
}
