//! Backfills. A transaction that changes one locks its row first, and the rows of its children's jobs and
//! tasks only after it.

use std::time::Duration;

use async_trait::async_trait;
use safelight_domain::{Backfill, ContentHash, Image, ImageId, Owner, TaskId, WorkerId};
use safelight_store::{
    BackfillStep, Backfills, BlockingJob, ImageFilter, NewBackfill, ReportLine, StoreError,
};
use uuid::Uuid;

use super::{
    backfill_rows::report_line,
    backfill_state::{create, pause},
    backfill_step::advance,
    control::retry,
    lead, results,
    rows::column,
    store::SqlStore,
    walk,
};

#[async_trait]
impl Backfills for SqlStore {
    async fn create_backfill(&self, new: &NewBackfill) -> Result<bool, StoreError> {
        let new = new.clone();
        self.transaction(move |conn, now| Box::pin(async move { create(conn, now, &new).await }))
            .await
    }

    async fn lead_backfills(
        &self,
        coordinator: WorkerId,
        hold: Duration,
        limit: u32,
    ) -> Result<Vec<Backfill>, StoreError> {
        lead::lead_backfills(self, coordinator, hold, limit).await
    }

    async fn count_images(&self, filter: &ImageFilter) -> Result<u64, StoreError> {
        walk::count_images(self, filter).await
    }

    async fn walk_images(
        &self,
        filter: &ImageFilter,
        after: Option<ImageId>,
        limit: u32,
    ) -> Result<Vec<Image>, StoreError> {
        walk::walk_images(self, filter, after, limit).await
    }

    async fn images_with_blobs(
        &self,
        owner: &Owner,
        sought: &[ContentHash],
    ) -> Result<Vec<(ContentHash, ImageId)>, StoreError> {
        walk::images_with_blobs(self, owner, sought).await
    }

    async fn blocking_jobs(&self, images: &[ImageId]) -> Result<Vec<BlockingJob>, StoreError> {
        walk::blocking_jobs(self, images).await
    }

    async fn advance_backfill(&self, step: &BackfillStep) -> Result<bool, StoreError> {
        let step = step.clone();
        self.transaction(move |conn, now| Box::pin(advance(conn, now, step))).await
    }

    async fn collect_results(&self, id: TaskId, limit: u32) -> Result<u64, StoreError> {
        results::collect_results(self, id, limit).await
    }

    async fn retry_backfill(&self, id: TaskId, limit: u32) -> Result<u64, StoreError> {
        let query = sqlx::query(
            "select t.id from tasks t join images i on i.id = t.image_id
                    join backfills b on b.task_id = t.backfill_id
             where t.backfill_id = $1 and t.tallied and t.status = 'failed'
               and t.finished_at <= b.retrying_since and i.discarded_at is null
             order by t.id limit $2",
        );
        let query = query.bind(id).bind(i64::from(limit));
        let failed: Vec<TaskId> = column(&self.fetch_all(query).await?, "id")?;
        if failed.is_empty() {
            let query =
                sqlx::query("update backfills set retrying_since = null where task_id = $1");
            self.execute(query.bind(id)).await?;
            return Ok(0);
        }
        self.transaction(move |conn, now| {
            Box::pin(async move { Ok(retry(conn, now, &failed).await?.len() as u64) })
        })
        .await
    }

    async fn pause_backfill(&self, id: TaskId, paused: bool) -> Result<bool, StoreError> {
        self.transaction(move |conn, now| Box::pin(pause(conn, now, id, paused))).await
    }

    async fn backfill_report(
        &self,
        id: TaskId,
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<ReportLine>, StoreError> {
        let query = sqlx::query(
            "select item, outcome, reason, detail, source from backfill_items
             where task_id = $1 and item > $2 order by item limit $3",
        );
        let query = query.bind(id).bind(after.unwrap_or(Uuid::nil())).bind(i64::from(limit));
        let rows = self.fetch_all(query).await?;
        rows.iter().map(|row| report_line(row, "item", "outcome")).collect()
    }
}
