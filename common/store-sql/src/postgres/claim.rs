//! Claims: turning messages into leases.

use safelight_domain::JobId;
use safelight_store::{Claim, StoreError};
use sqlx::{PgConnection, Row, postgres::PgRow};

use super::{
    dialect::{integer, span},
    gather::{Answers, Call, Locked, call_index},
    rows::{self, backfill_joins, blob_joins, claimed_columns, image_columns},
};
use crate::calls::Claiming;

/// Claims jobs: one row for each that was found, more for one that was claimed and whose blob has
/// several renditions.
///
/// The rows of jobs are locked first, those of tasks after them and in one order, as everywhere. A job that
/// is claimed at the same time is seen as that claim leaves it. Rows are looked up by arrays so that no plan
/// reads a whole table, even if the statistics are wrong.
macro_rules! claim_statement {
    ($locked:literal) => {
        concat!(
            "with calls as (
                 select * from unnest($1::uuid[], $2::boolean[], $3::int[], $4::uuid[],
                                      $5::interval[], $6::int[]) with ordinality
                     as a (id, redelivered, generation, worker, lease, understood, call_index)),
             found as (
                 select j.id, a.call_index, a.worker, a.lease,
                        j.status = 'queued' and j.run_at <= now()
                        and j.needs_version > a.understood as newer,
                        j.fence - j.released < j.max_attempts and j.needs_version <= a.understood
                        and (j.status = 'queued' and j.run_at <= now()
                             or j.status = 'running' and (j.lease_until <= now()
                                 or a.redelivered and j.fence = a.generation + 1
                                    and j.worker_id is distinct from a.worker)) as free
                 from jobs j join calls a on a.id = j.id
                 where j.id = any($1) for update of j ",
            $locked,
            "),
             claimed as (
                 update jobs j
                 set status = 'running', fence = fence + 1, lease_until = now() + found.lease,
                     worker_id = found.worker, updated_at = now()
                 from found
                 where j.id = any(array(select id from found where free)) and j.id = found.id
                 returning j.*),
             counted as (select task_id, count(*) as jobs from claimed group by task_id),
             locked as (
                 select id from tasks where id = any(array(select task_id from counted))
                 order by id for no key update),
             task as (
                 update tasks t
                 set status = 'running', version = version + counted.jobs, updated_at = now()
                 from counted
                 where t.id = any(array(select id from locked)) and t.id = counted.task_id)
             select found.call_index, found.free, found.newer,",
            claimed_columns!(),
            image_columns!(),
            "from found
             left join claimed j on j.id = found.id
             left join images i on i.id = j.image_id",
            backfill_joins!(),
            blob_joins!(),
            "order by found.call_index, r.preset, r.fingerprint, r.format"
        )
    };
}

impl Call for Claiming {
    type Answer = Claim;

    const UNKNOWN: Claim = Claim::Nothing;

    fn job(&self) -> JobId {
        self.notice.job
    }

    async fn carry_out(
        conn: &mut PgConnection,
        calls: &[Self],
        locked: Locked,
    ) -> Result<Answers<Claim>, StoreError> {
        let statement = match locked {
            Locked::Skip => claim_statement!("skip locked"),
            Locked::Wait => claim_statement!(""),
        };
        let rows = sqlx::query(statement)
            .bind(calls.iter().map(|call| call.notice.job.0).collect::<Vec<_>>())
            .bind(calls.iter().map(|call| call.redelivered).collect::<Vec<_>>())
            .bind(calls.iter().map(|call| integer(call.notice.generation)).collect::<Vec<_>>())
            .bind(calls.iter().map(|call| call.worker.0).collect::<Vec<_>>())
            .bind(calls.iter().map(|call| span(call.lease)).collect::<Vec<_>>())
            .bind(calls.iter().map(|call| integer(call.understood)).collect::<Vec<_>>())
            .fetch_all(conn)
            .await?;
        let number = |row: &PgRow| row.try_get::<i64, _>("call_index").ok();
        rows.chunk_by(|one, next| number(one) == number(next))
            .map(|rows| Ok((call_index(&rows[0])?, answer(rows))))
            .collect()
    }
}

/// The answer from the rows of one job.
fn answer(rows: &[PgRow]) -> Result<Claim, StoreError> {
    let [first, ..] = rows else { return Ok(Claim::Nothing) };
    if first.try_get("free")? {
        let job = rows::claimed_jobs(rows)?.pop();
        return Ok(job.map_or(Claim::Nothing, |job| Claim::Run(Box::new(job))));
    }
    Ok(if first.try_get("newer")? { Claim::Newer } else { Claim::Nothing })
}
