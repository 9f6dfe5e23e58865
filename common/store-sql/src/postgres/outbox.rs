//! The outbox: jobs whose notice must still be rung. Polled by every process, so each call is one
//! statement, and writes nothing when there is nothing to do.

use std::time::Duration;

use safelight_domain::JobNotice;
use safelight_domain::{JobId, JobKind, Lane};
use safelight_store::{OutboxBatch, QueueCapacity, StoreError, taken::taken_with};
use sqlx::{PgPool, Row};
use uuid::Uuid;

use super::{interval, rows};
use crate::convert::{duration, from_sql, readable, to_i64};

/// The rows taken, oldest first; then one without a job that tells when the next comes due. Rows
/// that are due and that others have locked, or that found no room, are not counted there.
///
/// `shares` hops from share to share along the index, so that it costs as much as there are shares, not
/// as there are rows. Of each share only as many rows are looked at as its queue has room for; these
/// are taken in turns, the first of every share before the second of any; where there is not room for the
/// first of every share, chance decides, or those with the oldest backlog would always come first.
///
/// Ordered by all columns of the index, and looked up by arrays, because statistics of an outbox that was
/// empty or full a moment ago make the planner scan it whole: a second for 100,000 rows instead of 10 ms.
const TAKE: &str = "
    with recursive room as (
        select * from unnest($1::text[], $2::text[], $3::bigint[]) as room (kind, lane, places)
        where places > 0),
    shares as (
        select kind, lane, places,
               (select min(share) from outbox o
                where o.kind = room.kind and o.lane = room.lane) as share
        from room
        union all
        select kind, lane, places,
               (select min(share) from outbox o
                where o.kind = s.kind and o.lane = s.lane and o.share > s.share)
        from shares s where share is not null),
    first as (
        select s.kind, s.lane, s.places, f.job_id, f.due_at,
               row_number() over (partition by s.kind, s.lane, s.share
                                  order by f.due_at, f.job_id) as turn
        from shares s cross join lateral (
            select job_id, due_at from outbox o
            where o.kind = s.kind and o.lane = s.lane and o.share = s.share and due_at <= now()
            order by kind, lane, share, due_at, job_id limit s.places) f),
    placed as (
        select job_id, places,
               row_number() over (partition by kind, lane order by turn, random()) as place
        from first),
    due as (
        select job_id, due_at from outbox
        where job_id = any(array(select job_id from placed where place <= places))
          and due_at <= now()
        order by job_id for update skip locked),
    taken as (
        update outbox o set due_at = now() + $4 from due
        where o.job_id = any(array(select job_id from due)) and o.job_id = due.job_id
        returning o.job_id, o.kind, o.lane, o.generation, due.due_at)
    select job_id, kind, lane, generation, due_at,
           (select traceparent from jobs where id = job_id) as traceparent,
           null::bigint as next_in
    from taken
    union all
    select null, null, null, null, null, null,
           (extract(epoch from (select min(due_at) from outbox where due_at > now()) - now())
            * 1000000)::bigint
    order by due_at nulls last, job_id";

pub async fn take(
    pool: &PgPool,
    room: &QueueCapacity,
    hold: Duration,
) -> Result<OutboxBatch, StoreError> {
    let found = sqlx::query(TAKE)
        .bind(room.0.iter().map(|(kind, _, _)| kind.as_str()).collect::<Vec<_>>())
        .bind(room.0.iter().map(|(_, lane, _)| lane.as_str()).collect::<Vec<_>>())
        .bind(room.0.iter().map(|(_, _, places)| i64::from(*places)).collect::<Vec<_>>())
        .bind(interval(hold))
        .fetch_all(pool)
        .await?;
    let Some((last, taken)) = found.split_last() else { return Ok(OutboxBatch::default()) };
    let due = readable(taken.iter().map(rows::notice))?;
    let next: Option<Duration> = last.try_get::<Option<i64>, _>("next_in")?.map(duration);
    Ok(taken_with(room, due, next, hold))
}

fn columns(notices: &[JobNotice]) -> (Vec<Uuid>, Vec<i32>) {
    notices.iter().map(|d| (d.job.0, i32::try_from(d.generation).unwrap_or(i32::MAX))).unzip()
}

pub async fn mark_published(pool: &PgPool, published: &[JobNotice]) -> Result<(), StoreError> {
    let (jobs, generations) = columns(published);
    // The generation spares a row that was put there anew for a later attempt meanwhile.
    sqlx::query(
        "delete from outbox o using unnest($1::uuid[], $2::int[]) as p (job_id, generation)
         where o.job_id = p.job_id and o.generation = p.generation",
    )
    .bind(jobs)
    .bind(generations)
    .execute(pool)
    .await?;
    Ok(())
}

pub async fn return_unpublished(
    pool: &PgPool,
    unpublished: &[JobNotice],
) -> Result<(), StoreError> {
    let (jobs, generations) = columns(unpublished);
    sqlx::query(
        "update outbox o set due_at = now()
         from unnest($1::uuid[], $2::int[]) as p (job_id, generation)
         where o.job_id = p.job_id and o.generation = p.generation",
    )
    .bind(jobs)
    .bind(generations)
    .execute(pool)
    .await?;
    Ok(())
}

pub async fn unpublish(
    pool: &PgPool,
    kind: JobKind,
    lane: Lane,
    waited: Duration,
    limit: u32,
) -> Result<u64, StoreError> {
    let put = sqlx::query(
        "with lost as (
             select id from jobs j
             where status = 'queued' and kind = $1 and lane = $2
               and waiting_since <= now() - $3 and run_at <= now()
               and not exists (select from outbox o where o.job_id = j.id)
             order by waiting_since limit $4 for update skip locked),
         waiting as (
             update jobs j set waiting_since = now() from lost where j.id = lost.id
             returning j.id, j.kind, j.lane, j.share, j.fence)
         insert into outbox (job_id, kind, lane, share, generation)
         select id, kind, lane, share, fence from waiting
         on conflict do nothing",
    )
    .bind(kind.as_str())
    .bind(lane.as_str())
    .bind(interval(waited))
    .bind(i64::from(limit))
    .execute(pool)
    .await?;
    Ok(put.rows_affected())
}

pub async fn republish(pool: &PgPool, job: JobId, delay: Duration) -> Result<bool, StoreError> {
    let put = sqlx::query(
        "insert into outbox (job_id, kind, lane, share, generation, due_at)
         select id, kind, lane, share, fence, greatest(run_at, now() + $2) from jobs
         where id = $1 and status = 'queued'
         on conflict do nothing",
    )
    .bind(job)
    .bind(interval(delay))
    .execute(pool)
    .await?;
    Ok(put.rows_affected() == 1)
}

pub async fn count_queued(pool: &PgPool, lane: Lane, at_most: u64) -> Result<u64, StoreError> {
    let count: i64 = sqlx::query_scalar(
        "select count(*) from (
             select from jobs where status = 'queued' and lane = $1 limit $2) as waiting",
    )
    .bind(lane.as_str())
    .bind(to_i64(at_most))
    .fetch_one(pool)
    .await?;
    from_sql(count, "count")
}

pub async fn count_published(pool: &PgPool, kind: JobKind, lane: Lane) -> Result<u64, StoreError> {
    let count: i64 = sqlx::query_scalar(
        "select count(*) from jobs j
         where status = 'queued' and kind = $1 and lane = $2 and run_at <= now()
           and not exists (select from outbox o where o.job_id = j.id)",
    )
    .bind(kind.as_str())
    .bind(lane.as_str())
    .fetch_one(pool)
    .await?;
    from_sql(count, "count")
}

pub async fn count_unpublished(pool: &PgPool) -> Result<u64, StoreError> {
    let count: i64 = sqlx::query_scalar("select count(*) from outbox where due_at <= now()")
        .fetch_one(pool)
        .await?;
    from_sql(count, "count")
}
