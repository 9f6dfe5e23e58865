//! Manual changes of tasks.

use std::time::Duration;

use async_trait::async_trait;
use safelight_domain::{ImageId, TaskId};
use safelight_store::{Control, StoreError};

use super::{
    backfill_state,
    cancel::cancel_jobs,
    dialect::{Conn, Now, any_of, bind_now, ids, lock_rows, now},
    prune,
    requeue::requeue_failed,
    rows::column,
    store::SqlStore,
};

#[async_trait]
impl Control for SqlStore {
    async fn cancel(&self, id: TaskId) -> Result<bool, StoreError> {
        self.transaction(move |conn, now| Box::pin(cancel(conn, now, id))).await
    }

    async fn retry(&self, tasks: &[TaskId]) -> Result<Vec<TaskId>, StoreError> {
        let tasks = tasks.to_vec();
        self.transaction(move |conn, now| Box::pin(async move { retry(conn, now, &tasks).await }))
            .await
    }

    async fn prune_tasks(&self, age: Duration, limit: u32) -> Result<u64, StoreError> {
        prune::prune_tasks(self, age, limit).await
    }
}

async fn cancel(conn: &mut Conn, now: Now, id: TaskId) -> Result<bool, StoreError> {
    if let Some((cancelled, open)) = backfill_state::cancel(conn, now, id).await? {
        cancel_each(conn, now, &open).await?;
        return Ok(cancelled);
    }
    cancel_each(conn, now, &[id]).await
}

/// Cancels tasks, and discards the images of uploads among them. Returns `false` if nothing was open.
async fn cancel_each(conn: &mut Conn, now: Now, tasks: &[TaskId]) -> Result<bool, StoreError> {
    let cancelled = cancel_jobs(conn, now, tasks).await?;
    if cancelled.is_empty() {
        return Ok(false);
    }
    let query = sqlx::query(concat!(
        "update images set discarded_at = ",
        now!("$2"),
        " where id in (select image_id from tasks where kind = 'upload' and id ",
        any_of!("$1"),
        ") and discarded_at is null returning id"
    ));
    let query = query.bind(ids(cancelled.iter().map(|id| id.0)));
    let discarded: Vec<ImageId> = column(&bind_now(query, now).fetch_all(&mut *conn).await?, "id")?;
    if !discarded.is_empty() {
        // From now on no request queues jobs for their renditions. Those of requests that held the image's
        // row before are visible here.
        let query = sqlx::query_scalar(concat!(
            "select id from tasks where image_id ",
            any_of!("$1"),
            " and not id ",
            any_of!("$2")
        ));
        let query =
            query.bind(ids(discarded.iter().map(|id| id.0))).bind(ids(tasks.iter().map(|id| id.0)));
        let others: Vec<TaskId> = query.fetch_all(&mut *conn).await?;
        cancel_jobs(conn, now, &others).await?;
    }
    Ok(true)
}

/// Cancels all open jobs of an image's tasks.
pub async fn cancel_all_of(conn: &mut Conn, now: Now, image: ImageId) -> Result<(), StoreError> {
    let query = sqlx::query_scalar("select id from tasks where image_id = $1");
    let tasks: Vec<TaskId> = query.bind(image).fetch_all(&mut *conn).await?;
    cancel_jobs(conn, now, &tasks).await.map(drop)
}

/// Queues the failed jobs of those of `tasks` that have failed, and starts failed backfills again.
pub async fn retry(conn: &mut Conn, now: Now, tasks: &[TaskId]) -> Result<Vec<TaskId>, StoreError> {
    // A deletion of one of the images waits, and then cancels what is queued here.
    sqlx::query(concat!(
        "select 1 from images where id in (select image_id from tasks where id ",
        any_of!("$1"),
        ") order by id ",
        lock_rows!("for key share")
    ))
    .bind(ids(tasks.iter().map(|id| id.0)))
    .execute(&mut *conn)
    .await?;
    let mut retried = backfill_state::reopen(conn, now, tasks).await?;
    backfill_state::uncount(conn, now, tasks).await?;
    retried.extend(requeue_failed(conn, now, tasks).await?);
    Ok(retried)
}
