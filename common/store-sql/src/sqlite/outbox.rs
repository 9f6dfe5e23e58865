//! The outbox. Because it is polled, a call writes nothing if there is nothing to do.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use safelight_domain::{JobId, JobKind, JobNotice, Lane};
use safelight_store::{Outbox, OutboxBatch, QueueCapacity, StoreError};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow, types::Json};

use super::{
    counts,
    dialect::{any_of, ids},
    notices::{self, insert_notices},
    rows::{self, column},
    store::SqliteStore,
};
use crate::convert::{duration, micros, readable};

#[async_trait]
impl Outbox for SqliteStore {
    async fn take_unpublished(
        &self,
        capacity: &QueueCapacity,
        hold: Duration,
    ) -> Result<OutboxBatch, StoreError> {
        let now = self.clock.now();
        let first: Option<i64> =
            sqlx::query_scalar("select min(due_at) from outbox").fetch_one(&self.reads).await?;
        match first {
            None => Ok(OutboxBatch::default()),
            Some(first) if first > now => {
                Ok(OutboxBatch { due: Vec::new(), next_in: Some(duration(first - now)) })
            }
            Some(_) => {
                let capacity = capacity.clone();
                self.write(move |conn, now| Box::pin(take_due(conn, now, capacity, hold))).await
            }
        }
    }

    async fn mark_published(&self, published: &[JobNotice]) -> Result<(), StoreError> {
        // The generation protects a row that was added again for a later attempt meanwhile.
        let query = sqlx::query(
            "delete from outbox where (job_id, generation) in (
                 select unhex(value ->> 0), value ->> 1 from json_each($1))",
        );
        self.execute(query.bind(pairs(published))).await.map(drop)
    }

    async fn release_taken(&self, unpublished: &[JobNotice]) -> Result<(), StoreError> {
        let query = sqlx::query(
            "update outbox set due_at = $2 where (job_id, generation) in (
                 select unhex(value ->> 0), value ->> 1 from json_each($1))",
        );
        self.execute_now(query.bind(pairs(unpublished))).await.map(drop)
    }

    async fn requeue_lost(
        &self,
        kind: JobKind,
        lane: Lane,
        waited: Duration,
        limit: u32,
    ) -> Result<u64, StoreError> {
        let query = sqlx::query(WAITING)
            .bind(kind.as_str())
            .bind(lane.as_str())
            .bind(micros(waited))
            .bind(limit);
        let lost: Vec<JobId> = column(&self.fetch_all(self.at_now(query)).await?, "id")?;
        if lost.is_empty() {
            return Ok(0);
        }
        self.write(move |conn, now| Box::pin(requeue(conn, now, lost))).await
    }

    async fn requeue_one(&self, job: JobId, delay: Duration) -> Result<bool, StoreError> {
        notices::requeue_one(self, job, delay).await
    }

    async fn count_published(&self, kind: JobKind, lane: Lane) -> Result<u64, StoreError> {
        counts::count_published(self, kind, lane).await
    }

    async fn count_unpublished(&self) -> Result<u64, StoreError> {
        counts::count_unpublished(self).await
    }
}

/// Notices as one parameter: pairs of job and generation.
fn pairs(notices: &[JobNotice]) -> Json<Vec<(String, u32)>> {
    let pair = |notice: &JobNotice| (notice.job.0.simple().to_string(), notice.generation);
    Json(notices.iter().map(pair).collect())
}

/// The shares that have rows in the outbox, by queue: hops along the index, so that its cost grows with the shares,
/// not with the rows.
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
    capacity: QueueCapacity,
    hold: Duration,
) -> Result<OutboxBatch, StoreError> {
    let mut shares: BTreeMap<(JobKind, Lane), Vec<Vec<Found>>> = BTreeMap::new();
    let rows = sqlx::query(SHARES).fetch_all(&mut *conn).await?;
    for (queue, share) in readable(rows.iter().map(share))? {
        let found = first_of(conn, now, queue, share, capacity.of(queue.0, queue.1)).await?;
        shares.entry(queue).or_default().push(found);
    }
    let mut due: Vec<Found> = Vec::new();
    for ((kind, lane), shares) in shares {
        due.extend(in_turn(shares).into_iter().take(capacity.of(kind, lane) as usize));
    }
    due.sort_unstable_by_key(|found| (found.due_at, found.notice.job));
    let due: Vec<JobNotice> = due.into_iter().map(|found| found.notice).collect();
    sqlx::query(concat!("update outbox set due_at = $1 where job_id ", any_of!("$2")))
        .bind(now + micros(hold))
        .bind(ids(due.iter().map(|notice| notice.job.0)))
        .execute(&mut *conn)
        .await?;
    let next: Option<i64> = sqlx::query_scalar("select min(due_at) from outbox where due_at > $1")
        .bind(now)
        .fetch_one(conn)
        .await?;
    let next = next.map(|next| duration(next - now));
    Ok(OutboxBatch::new(&capacity, due, next, hold))
}

/// A share of a queue.
fn share(row: &SqliteRow) -> Result<((JobKind, Lane), String), StoreError> {
    Ok(((rows::name(row, "kind")?, rows::name(row, "lane")?), row.try_get("share")?))
}

struct Found {
    due_at: i64,
    notice: JobNotice,
}

/// The oldest due rows of one share, at most `capacity`.
async fn first_of(
    conn: &mut SqliteConnection,
    now: i64,
    (kind, lane): (JobKind, Lane),
    share: String,
    capacity: u32,
) -> Result<Vec<Found>, StoreError> {
    if capacity == 0 {
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
    .bind(capacity)
    .fetch_all(conn)
    .await?;
    let found = |row| Ok(Found { due_at: row_due(row)?, notice: rows::notice(row)? });
    rows.iter().map(found).collect()
}

fn row_due(row: &SqliteRow) -> Result<i64, StoreError> {
    Ok(row.try_get("due_at")?)
}

/// The first row of every share before the second of any, and a random order between the shares: otherwise
/// those with the oldest backlog would always come first.
fn in_turn(mut shares: Vec<Vec<Found>>) -> Vec<Found> {
    if shares.len() > 1 {
        fastrand::shuffle(&mut shares);
    }
    let mut turns: Vec<(usize, Found)> =
        shares.into_iter().flat_map(|share| share.into_iter().enumerate()).collect();
    turns.sort_by_key(|(turn, _)| *turn);
    turns.into_iter().map(|(_, found)| found).collect()
}

/// Queued and due jobs of one queue that are not in the outbox, longest waiting first.
const WAITING: &str = "
    select id from jobs j
    where status = 'queued' and kind = $1 and lane = $2 and waiting_since <= $5 - $3
      and run_at <= $5
      and not exists (select 1 from outbox o where o.job_id = j.id)
    order by waiting_since limit $4";

/// Puts those of `lost` into the outbox that still belong there.
async fn requeue(
    conn: &mut SqliteConnection,
    now: i64,
    lost: Vec<JobId>,
) -> Result<u64, StoreError> {
    let inserted = sqlx::query(concat!(
        insert_notices!(),
        "$2 from jobs
         where status = 'queued' and id ",
        any_of!("$1"),
        " on conflict do nothing returning job_id"
    ));
    let inserted =
        inserted.bind(ids(lost.iter().map(|id| id.0))).bind(now).fetch_all(&mut *conn).await?;
    let inserted: Vec<JobId> = column(&inserted, "job_id")?;
    sqlx::query(concat!("update jobs set waiting_since = $2 where id ", any_of!("$1")))
        .bind(ids(inserted.iter().map(|id| id.0)))
        .bind(now)
        .execute(conn)
        .await?;
    Ok(inserted.len() as u64)
}
