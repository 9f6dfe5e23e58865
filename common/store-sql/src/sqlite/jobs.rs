//! Running jobs. Claims and settles that wait at the same time are carried out together.

use std::time::Duration;

use async_trait::async_trait;
use safelight_domain::{JobNotice, Lane, WorkerId};
use safelight_store::{
    Claim, ClaimedJob, JobCount, Jobs, Lease, Outcome, Renewed, Settled, StoreError,
};
use sqlx::{Row, SqliteConnection, types::Json};

use super::{counts, dialect::number, lost_leases, store::SqliteStore};
use crate::{
    calls::{Claiming, Settling},
    convert::micros,
};

#[async_trait]
impl Jobs for SqliteStore {
    async fn claim(
        &self,
        notice: &JobNotice,
        redelivered: bool,
        worker: WorkerId,
        lease: Duration,
        understood: u32,
    ) -> Result<Claim, StoreError> {
        let notice = *notice;
        let call = Claiming { notice, redelivered, worker, lease, understood };
        self.gathered(&self.claims, call).await
    }

    async fn renew(&self, leases: &[Lease], lease: Duration) -> Result<Renewed, StoreError> {
        let pair = |lease: &Lease| (lease.job.0.simple().to_string(), lease.fence);
        let list = Json(leases.iter().map(pair).collect::<Vec<_>>());
        self.write(move |conn, now| Box::pin(renew(conn, list, now + micros(lease)))).await
    }

    async fn settle(&self, lease: &Lease, outcome: &Outcome) -> Result<Settled, StoreError> {
        let call = Settling { lease: *lease, outcome: outcome.clone() };
        self.gathered(&self.settles, call).await
    }

    async fn expired_leases(&self, limit: u32) -> Result<Vec<ClaimedJob>, StoreError> {
        lost_leases::expired_leases(self, limit).await
    }

    async fn take_over(&self) -> Result<u64, StoreError> {
        self.transaction(|conn, now| Box::pin(lost_leases::take_over(conn, now))).await
    }

    async fn job_counts(&self) -> Result<Vec<JobCount>, StoreError> {
        counts::job_counts(self).await
    }

    async fn count_queued(&self, lane: Lane, at_most: u64) -> Result<u64, StoreError> {
        counts::count_queued(self, lane, at_most).await
    }
}

async fn renew(
    conn: &mut SqliteConnection,
    leases: Json<Vec<(String, u32)>>,
    until: i64,
) -> Result<Renewed, StoreError> {
    let rows = sqlx::query(
        "update jobs set lease_until = $2
         where status = 'running' and (id, fence) in (
             select unhex(value ->> 0), value ->> 1 from json_each($1))
         returning id, fence",
    )
    .bind(leases)
    .bind(until)
    .fetch_all(conn)
    .await?;
    let held =
        rows.iter().map(|row| Ok(Lease { job: row.try_get("id")?, fence: number(row, "fence")? }));
    Ok(Renewed { held: held.collect::<Result<_, StoreError>>()? })
}
