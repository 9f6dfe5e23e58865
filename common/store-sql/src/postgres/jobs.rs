//! Running jobs. Claims and settles that are ready at the same time are carried out together.

use std::time::Duration;

use async_trait::async_trait;
use safelight_domain::{JobNotice, Lane, WorkerId};
use safelight_store::{
    Claim, ClaimedJob, JobCount, Jobs, Lease, Outcome, Renewed, Settled, StoreError,
};
use sqlx::Row;
use uuid::Uuid;

use super::{
    counts,
    dialect::{integer, number, span},
    lost_leases,
    store::PostgresStore,
};
use crate::calls::{Claiming, Settling};

#[async_trait]
impl Jobs for PostgresStore {
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
        self.servers.call(self.claims.call(call)).await
    }

    async fn renew(&self, leases: &[Lease], lease: Duration) -> Result<Renewed, StoreError> {
        let (jobs, fences): (Vec<Uuid>, Vec<i32>) =
            leases.iter().map(|lease| (lease.job.0, integer(lease.fence))).unzip();
        let query = sqlx::query(
            "update jobs j set lease_until = now() + $3
             from unnest($1::uuid[], $2::int[]) as l (id, fence)
             where j.id = l.id and j.fence = l.fence and j.status = 'running'
             returning j.id, j.fence",
        );
        let rows = self.fetch_all(query.bind(jobs).bind(fences).bind(span(lease))).await?;
        let held = rows
            .iter()
            .map(|row| Ok(Lease { job: row.try_get("id")?, fence: number(row, "fence")? }));
        Ok(Renewed { held: held.collect::<Result<_, StoreError>>()? })
    }

    async fn settle(&self, lease: &Lease, outcome: &Outcome) -> Result<Settled, StoreError> {
        let call = Settling { lease: *lease, outcome: outcome.clone() };
        self.servers.call(self.settles.call(call)).await
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
