//! The outbox: jobs whose notice must still be rung. Polled, so nothing is written when there is
//! nothing to do.

use std::{collections::BTreeMap, time::Duration};

use safelight_domain::JobNotice;
use safelight_domain::{JobId, JobKind, Lane};
use safelight_store::{OutboxBatch, QueueCapacity, StoreError, taken::taken_with};
use sqlx::{Row, SqliteConnection, SqlitePool, sqlite::SqliteRow};

use super::{rows, writer::Writer};
use crate::convert::{duration, from_sql, micros, readable, to_i64};

pub async fn take(
    reads: &SqlitePool,
    writer: &Writer,
    now: i64,
    room: &QueueCapacity,
    hold: Duration,
) -> Result<OutboxBatch, StoreError> {
    let first: Option<i64> =
        sqlx::query_scalar("select min(due_at) from outbox").fetch_one(reads).await?;
    match first {
        None => Ok(OutboxBatch::default()),
        Some(first) if first > now => {
            Ok(OutboxBatch { due: Vec::new(), next_in: Some(duration(first - now)) })
        }
        Some(_) => {
            let room = room.clone();
            writer.run(move |conn, now| Box::pin(take_due(conn, now, room, hold))).await
        }
    }
}

/// Who has rows in the outbox, by queue: hops along the index, so that it costs as much as there are
/// shares, not as there are rows.
const SHARES: &str = "
    with recursive shares (kind, lane, share) as (
        select * from (select kind, lane, share from outbox order by kind, lane, share limit 1)
        union all
        select next.kind, next.lane, next.share
        from shares s join outbox next on next.job_id = (
            select job_id from outbox o
            where (o.kind, o.lane, o.share) > (s.kind, s.lane, s.share)
            order by o.kind, o.lane, o.share limit 1))
    select kind, lane, share from shares";

async fn take_due(
    conn: &mut SqliteConnection,
    now: i64,
    room: QueueCapacity,
    hold: Duration,
) -> Result<OutboxBatch, StoreError> {
    let mut shares: BTreeMap<(JobKind, Lane), Vec<Vec<Found>>> = BTreeMap::new();
    let rows = sqlx::query(SHARES).fetch_all(&mut *conn).await?;
    for (queue, share) in readable(rows.iter().map(share))? {
        let found = first_of(conn, now, queue, share, room.of(queue.0, queue.1)).await?;
        shares.entry(queue).or_default().push(found);
    }
    let mut due: Vec<Found> = Vec::new();
    for ((kind, lane), shares) in shares {
        due.extend(in_turn(shares).into_iter().take(room.of(kind, lane) as usize));
    }
    due.sort_unstable_by_key(|found| (found.due_at, found.bell.job));
    let due: Vec<JobNotice> = due.into_iter().map(|found| found.bell).collect();
    sqlx::query(
        "update outbox set due_at = $1
         where job_id in (select unhex(value) from json_each($2))",
    )
    .bind(now + micros(hold))
    .bind(rows::id_list(due.iter().map(|notice| notice.job.0)))
    .execute(&mut *conn)
    .await?;
    let next: Option<i64> = sqlx::query_scalar("select min(due_at) from outbox where due_at > $1")
        .bind(now)
        .fetch_one(conn)
        .await?;
    Ok(taken_with(&room, due, next.map(|next| duration(next - now)), hold))
}

/// A share of a queue.
fn share(row: &SqliteRow) -> Result<((JobKind, Lane), String), StoreError> {
    Ok(((rows::name(row, "kind")?, rows::name(row, "lane")?), row.try_get("share")?))
}

struct Found {
    due_at: i64,
    bell: JobNotice,
}

/// The oldest due rows of one share, at most `places`.
async fn first_of(
    conn: &mut SqliteConnection,
    now: i64,
    (kind, lane): (JobKind, Lane),
    share: String,
    places: u32,
) -> Result<Vec<Found>, StoreError> {
    if places == 0 {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "select job_id, kind, lane, generation, due_at,
                (select traceparent from jobs where id = job_id) as traceparent
         from outbox
         where kind = $1 and lane = $2 and share = $3 and due_at <= $4
         order by due_at, job_id limit $5",
    )
    .bind(kind.as_str())
    .bind(lane.as_str())
    .bind(share)
    .bind(now)
    .bind(places)
    .fetch_all(conn)
    .await?;
    let found = |row| Ok(Found { due_at: row_due(row)?, bell: rows::notice(row)? });
    rows.iter().map(found).collect()
}

fn row_due(row: &SqliteRow) -> Result<i64, StoreError> {
    Ok(row.try_get("due_at")?)
}

/// The first of every share before the second of any, and chance between the shares: or those with the
/// oldest backlog would always come first.
fn in_turn(mut shares: Vec<Vec<Found>>) -> Vec<Found> {
    if shares.len() > 1 {
        fastrand::shuffle(&mut shares);
    }
    let mut turns: Vec<(usize, Found)> =
        shares.into_iter().flat_map(|share| share.into_iter().enumerate()).collect();
    turns.sort_by_key(|(turn, _)| *turn);
    turns.into_iter().map(|(_, found)| found).collect()
}

/// The notices as the one parameter that [`EACH_DOORBELL`] takes apart.
fn notices(notices: &[JobNotice]) -> sqlx::types::Json<Vec<(String, u32)>> {
    sqlx::types::Json(
        notices.iter().map(|d| (d.job.0.simple().to_string(), d.generation)).collect(),
    )
}

pub async fn mark_published(
    conn: &mut SqliteConnection,
    published: Vec<JobNotice>,
) -> Result<(), StoreError> {
    // The generation spares a row that was put there anew for a later attempt meanwhile.
    sqlx::query(
        "delete from outbox where (job_id, generation) in (
             select unhex(value ->> 0), value ->> 1 from json_each($1))",
    )
    .bind(notices(&published))
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn return_unpublished(
    conn: &mut SqliteConnection,
    now: i64,
    unpublished: Vec<JobNotice>,
) -> Result<(), StoreError> {
    sqlx::query(
        "update outbox set due_at = $2 where (job_id, generation) in (
             select unhex(value ->> 0), value ->> 1 from json_each($1))",
    )
    .bind(notices(&unpublished))
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Queued and due jobs of one queue that are not in the outbox, by how long their message has been
/// away.
const AWAY: &str = "
    select id from jobs j
    where status = 'queued' and kind = $1 and lane = $2 and waiting_since <= $3 and run_at <= $4
      and not exists (select 1 from outbox o where o.job_id = j.id)
    order by waiting_since limit $5";

pub async fn unpublish(
    reads: &SqlitePool,
    writer: &Writer,
    now: i64,
    (kind, lane): (JobKind, Lane),
    waited: Duration,
    limit: u32,
) -> Result<u64, StoreError> {
    let lost: Vec<JobId> = sqlx::query_scalar(AWAY)
        .bind(kind.as_str())
        .bind(lane.as_str())
        .bind(now.saturating_sub(micros(waited)))
        .bind(now)
        .bind(limit)
        .fetch_all(reads)
        .await?;
    if lost.is_empty() {
        return Ok(0);
    }
    writer.run(move |conn, now| Box::pin(put_back(conn, now, lost))).await
}

/// Puts those of `lost` into the outbox that still belong there.
async fn put_back(
    conn: &mut SqliteConnection,
    now: i64,
    lost: Vec<JobId>,
) -> Result<u64, StoreError> {
    let ids = rows::id_list(lost.iter().map(|id| id.0));
    let put = sqlx::query(
        "insert into outbox (job_id, kind, lane, share, generation, due_at)
         select id, kind, lane, share, fence, $2 from jobs
         where id in (select unhex(value) from json_each($1)) and status = 'queued'
         on conflict do nothing
         returning job_id",
    )
    .bind(ids)
    .bind(now)
    .fetch_all(&mut *conn)
    .await?;
    let put =
        put.iter().map(|row| row.try_get::<JobId, _>("job_id")).collect::<Result<Vec<_>, _>>()?;
    sqlx::query(
        "update jobs set waiting_since = $2
         where id in (select unhex(value) from json_each($1))",
    )
    .bind(rows::id_list(put.iter().map(|id| id.0)))
    .bind(now)
    .execute(conn)
    .await?;
    Ok(put.len() as u64)
}

pub async fn republish(
    conn: &mut SqliteConnection,
    now: i64,
    job: JobId,
    delay: Duration,
) -> Result<bool, StoreError> {
    let put = sqlx::query(
        "insert into outbox (job_id, kind, lane, share, generation, due_at)
         select id, kind, lane, share, fence, max(run_at, $2) from jobs
         where id = $1 and status = 'queued'
         on conflict do nothing",
    )
    .bind(job)
    .bind(now + micros(delay))
    .execute(conn)
    .await?;
    Ok(put.rows_affected() == 1)
}

pub async fn count_queued(reads: &SqlitePool, lane: Lane, at_most: u64) -> Result<u64, StoreError> {
    let count: i64 = sqlx::query_scalar(
        "select count(*) from (
             select 1 from jobs where status = 'queued' and lane = $1 limit $2)",
    )
    .bind(lane.as_str())
    .bind(to_i64(at_most))
    .fetch_one(reads)
    .await?;
    from_sql(count, "count")
}

pub async fn count_published(
    reads: &SqlitePool,
    now: i64,
    kind: JobKind,
    lane: Lane,
) -> Result<u64, StoreError> {
    let count: i64 = sqlx::query_scalar(
        "select count(*) from jobs j
         where status = 'queued' and kind = $1 and lane = $2 and run_at <= $3
           and not exists (select 1 from outbox o where o.job_id = j.id)",
    )
    .bind(kind.as_str())
    .bind(lane.as_str())
    .bind(now)
    .fetch_one(reads)
    .await?;
    from_sql(count, "count")
}

pub async fn count_unpublished(reads: &SqlitePool, now: i64) -> Result<u64, StoreError> {
    let count: i64 = sqlx::query_scalar("select count(*) from outbox where due_at <= $1")
        .bind(now)
        .fetch_one(reads)
        .await?;
    from_sql(count, "count")
}
