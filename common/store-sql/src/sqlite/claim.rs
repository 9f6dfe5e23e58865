//! Claims: turning messages into leases, in one script for all that wait.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use safelight_domain::{JobId, JobNotice, WorkerId};
use safelight_store::{Claim, StoreError};
use sqlx::{SqliteConnection, types::Json};

use super::{
    gather::Call,
    rows::{self, backfill_joins, blob_joins, claimed_columns, column, image_columns},
};
use crate::convert::micros;

/// One call of [`Jobs::claim`](safelight_store::Jobs::claim).
pub struct Claiming {
    pub notice: JobNotice,
    pub redelivered: bool,
    pub worker: WorkerId,
    pub lease: Duration,
    pub understood: u32,
}

/// A claim as the statements read it: see `calls!`.
type Columns = (String, bool, u32, String, i64, u32);

/// The claims of a statement: its first parameter is a JSON array of [`Columns`].
macro_rules! calls {
    () => {
        "with calls as materialized (
             select unhex(value ->> 0) as job, value ->> 1 as redelivered,
                    value ->> 2 as generation, unhex(value ->> 3) as worker, value ->> 4 as lease,
                    value ->> 5 as understood
             from json_each($1)) "
    };
}

/// Whether a job may run.
macro_rules! may_run {
    () => {
        "jobs.id = calls.job and fence - released < max_attempts
         and needs_version <= calls.understood
         and (status = 'queued' and run_at <= $2
              or status = 'running' and (lease_until <= $2
                  or calls.redelivered and fence = calls.generation + 1
                     and worker_id is not calls.worker))"
    };
}

/// Claims the jobs that may run. One script: each statement alone would cross to the connection's thread and back. The
/// jobs change last, so that all three statements find the same ones.
const CLAIM: &str = concat!(
    calls!(),
    "update tasks
     set status = 'running', version = version + claimed.jobs, updated_at = $2
     from (select task_id, count(*) as jobs from calls join jobs on ",
    may_run!(),
    " group by task_id) claimed
     where tasks.id = claimed.task_id; ",
    calls!(),
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
    calls!(),
    "update jobs
     set status = 'running', fence = fence + 1, lease_until = $2 + calls.lease,
         worker_id = calls.worker, updated_at = $2
     from calls where ",
    may_run!()
);

/// Of claims without a job, those that need a newer worker.
const NEWER: &str = concat!(
    calls!(),
    "select id from calls join jobs on jobs.id = calls.job
     where status = 'queued' and run_at <= $2 and needs_version > calls.understood"
);

impl Claiming {
    fn columns(&self) -> Columns {
        let (job, worker) = (self.notice.job.0.simple(), self.worker.0.simple());
        (
            job.to_string(),
            self.redelivered,
            self.notice.generation,
            worker.to_string(),
            micros(self.lease),
            self.understood,
        )
    }
}

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
        let columns = Json(calls.iter().map(|call| call.columns()).collect::<Vec<_>>());
        let rows = sqlx::query(CLAIM).bind(&columns).bind(now).fetch_all(&mut *conn).await?;
        let claimed = rows::claimed_jobs(&rows)?.into_iter().map(|job| (job.lease.job, job));
        let mut claimed: HashMap<_, _> = claimed.collect();
        let newer = if claimed.len() < calls.len() {
            let newer = sqlx::query(NEWER).bind(&columns).bind(now).fetch_all(conn).await?;
            column::<JobId>(&newer, "id")?.into_iter().collect()
        } else {
            HashSet::new()
        };
        let answer = |call: &&Self| match claimed.remove(&call.job()) {
            Some(job) => Claim::Run(Box::new(job)),
            None if newer.contains(&call.job()) => Claim::Newer,
            None => Claim::Nothing,
        };
        Ok(calls.iter().map(answer).collect())
    }
}
