//! Rows of the outbox: the one way to announce jobs.

use std::time::Duration;

use safelight_domain::JobId;
use safelight_store::StoreError;

use super::{
    dialect::{greatest, later, span},
    store::SqlStore,
};

/// Inserts the notices of the next attempts of jobs. What follows is when they are due, and from which jobs.
macro_rules! insert_notices {
    () => {
        "insert into outbox (job_id, kind, lane, share, generation, due_at)
         select id, kind, lane, share, fence, "
    };
}

/// Ends `insert_notices!` for jobs that may still have the notice of an earlier attempt.
macro_rules! replace_notices {
    () => {
        " on conflict (job_id) do update
          set generation = excluded.generation, due_at = excluded.due_at"
    };
}

pub(super) use {insert_notices, replace_notices};

/// See [`Outbox::requeue_one`](safelight_store::Outbox::requeue_one).
pub async fn requeue_one(
    store: &SqlStore,
    job: JobId,
    delay: Duration,
) -> Result<bool, StoreError> {
    let query = sqlx::query(concat!(
        insert_notices!(),
        greatest!(),
        "(run_at, ",
        later!("$2", "$3"),
        ") from jobs
         where id = $1 and status = 'queued'
         on conflict do nothing"
    ));
    Ok(store.execute_now(query.bind(job).bind(span(delay))).await? == 1)
}
