//! The outbox. Every process polls it, so each call is one statement, and writes nothing if there is nothing
//! to do.

use std::time::Duration;

use async_trait::async_trait;
use safelight_domain::{JobId, JobKind, JobNotice, Lane};
use safelight_store::{Outbox, OutboxBatch, QueueCapacity, StoreError};
use sqlx::Row;
use uuid::Uuid;

use super::{
    counts,
    dialect::{integer, span},
    notices::{self, insert_notices},
    rows,
    store::PostgresStore,
};
use crate::convert::{duration, readable};

/// The rows taken, oldest first; then one without a job that contains when the next comes due. Rows that are
/// due but locked by others, or beyond the capacity, are not considered there.
///
/// `shares` hops from share to share along the index, so that its cost grows with the shares, not with the
/// rows. Of each share only as many rows are read as its queue has capacity for. The shares take turns: the
/// first row of every share comes before the second of any. If the capacity does not suffice for the first of
/// every share, the order is random; otherwise those with the oldest backlog would always come first.
///
/// Ordered by all columns of the index, and looked up by arrays: the statistics of an outbox that was empty or full
/// a moment ago make the planner scan it completely, a second for 100,000 rows instead of 10 ms.
const TAKE: &str = "
    with recursive queues as (
        select * from unnest($1::text[], $2::text[], $3::bigint[]) as queue (kind, lane, capacity)
        where capacity > 0),
    shares as (
        select kind, lane, capacity,
               (select min(share) from outbox o
                where o.kind = queues.kind and o.lane = queues.lane) as share
        from queues
        union all
        select kind, lane, capacity,
               (select min(share) from outbox o
                where o.kind = s.kind and o.lane = s.lane and o.share > s.share)
        from shares s where share is not null),
    first as (
        select s.kind, s.lane, s.capacity, f.job_id, f.due_at,
               row_number() over (partition by s.kind, s.lane, s.share
                                  order by f.due_at, f.job_id) as turn
        from shares s cross join lateral (
            select job_id, due_at from outbox o
            where o.kind = s.kind and o.lane = s.lane and o.share = s.share and due_at <= now()
            order by kind, lane, share, due_at, job_id limit s.capacity) f),
    ranked as (
        select job_id, capacity,
               row_number() over (partition by kind, lane order by turn, random()) as rank
        from first),
    due as (
        select job_id, due_at from outbox
        where job_id = any(array(select job_id from ranked where rank <= capacity))
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

#[async_trait]
impl Outbox for PostgresStore {
    async fn take_unpublished(
        &self,
        capacity: &QueueCapacity,
        hold: Duration,
    ) -> Result<OutboxBatch, StoreError> {
        let queues = &capacity.0;
        let query = sqlx::query(TAKE)
            .bind(queues.iter().map(|(kind, _, _)| kind.as_str()).collect::<Vec<_>>())
            .bind(queues.iter().map(|(_, lane, _)| lane.as_str()).collect::<Vec<_>>())
            .bind(queues.iter().map(|(_, _, messages)| i64::from(*messages)).collect::<Vec<_>>())
            .bind(span(hold));
        let found = self.fetch_all(query).await?;
        let Some((last, taken)) = found.split_last() else { return Ok(OutboxBatch::default()) };
        let due = readable(taken.iter().map(rows::notice))?;
        let next: Option<Duration> = last.try_get::<Option<i64>, _>("next_in")?.map(duration);
        Ok(OutboxBatch::new(capacity, due, next, hold))
    }

    async fn mark_published(&self, published: &[JobNotice]) -> Result<(), StoreError> {
        let (jobs, generations) = columns(published);
        // The generation protects a row that was added again for a later attempt meanwhile.
        let query = sqlx::query(
            "delete from outbox o using unnest($1::uuid[], $2::int[]) as p (job_id, generation)
             where o.job_id = p.job_id and o.generation = p.generation",
        );
        self.execute(query.bind(jobs).bind(generations)).await.map(drop)
    }

    async fn release_taken(&self, unpublished: &[JobNotice]) -> Result<(), StoreError> {
        let (jobs, generations) = columns(unpublished);
        let query = sqlx::query(
            "update outbox o set due_at = now()
             from unnest($1::uuid[], $2::int[]) as p (job_id, generation)
             where o.job_id = p.job_id and o.generation = p.generation",
        );
        self.execute(query.bind(jobs).bind(generations)).await.map(drop)
    }

    async fn requeue_lost(
        &self,
        kind: JobKind,
        lane: Lane,
        waited: Duration,
        limit: u32,
    ) -> Result<u64, StoreError> {
        let query = sqlx::query(concat!(
            "with lost as (
                 select id from jobs j
                 where status = 'queued' and kind = $1 and lane = $2
                   and waiting_since <= now() - $3 and run_at <= now()
                   and not exists (select from outbox o where o.job_id = j.id)
                 order by waiting_since limit $4 for update skip locked),
             waiting as (
                 update jobs j set waiting_since = now() from lost where j.id = lost.id
                 returning j.id, j.kind, j.lane, j.share, j.fence) ",
            insert_notices!(),
            "now() from waiting on conflict do nothing"
        ));
        let query = query.bind(kind.as_str()).bind(lane.as_str());
        self.execute(query.bind(span(waited)).bind(i64::from(limit))).await
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

fn columns(notices: &[JobNotice]) -> (Vec<Uuid>, Vec<i32>) {
    notices.iter().map(|notice| (notice.job.0, integer(notice.generation))).unzip()
}
