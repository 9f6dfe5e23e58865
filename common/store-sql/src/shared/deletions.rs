//! Deleting images, and removing the bytes of discarded ones.

use std::time::Duration;

use async_trait::async_trait;
use safelight_domain::{ContentHash, Image, ImageId, JobKind, Receipt, Removal, TaskId};
use safelight_store::{Deletion, DeletionRequest, Deletions, Reference, StoreError, plan_removal};
use sqlx::{Row, types::Json};

use super::{
    control::cancel_all_of,
    create::create_tasks,
    dialect::{
        Conn, DbRow, Now, ago, any_of, bind_now, forget_blob, hashes, ids, lock_rows, now, number,
        span,
    },
    rows::{self, blob_joins, clear_labels, image_columns, rendition},
    store::SqlStore,
};
use crate::new_task::NewTask;

#[async_trait]
impl Deletions for SqlStore {
    async fn delete_image(&self, request: &DeletionRequest) -> Result<Deletion, StoreError> {
        let request = request.clone();
        self.transaction(move |conn, now| {
            Box::pin(async move { delete_image(conn, now, &request).await })
        })
        .await
    }

    async fn removal(&self, task: TaskId) -> Result<Option<Removal>, StoreError> {
        let query =
            sqlx::query("select removal from deletions where task_id = $1 and removal is not null");
        let row = self.fetch_optional(query.bind(task)).await?;
        Ok(row.map(|row| row.try_get::<Json<_>, _>("removal")).transpose()?.map(|Json(it)| it))
    }

    async fn references(&self, sought: &[ContentHash]) -> Result<Vec<Reference>, StoreError> {
        let query = sqlx::query(concat!(
            "select b.sha256, b.is_busy, r.preset, r.fingerprint, r.format as r_format,
                    r.width as r_width, r.height as r_height, r.bytes as r_bytes,
                    r.rendition_sha256, r.created_at as made_at
             from (select i.sha256, max(case when exists (
                              select 1 from tasks t join jobs j on j.task_id = t.id
                              where t.image_id = i.id and j.status in ('queued', 'running'))
                              then 1 else 0 end) as is_busy
                   from images i where i.sha256 ",
            any_of!("$1"),
            " and i.removed_at is null group by i.sha256) b
             left join renditions r on r.sha256 = b.sha256
             order by b.sha256"
        ));
        let rows = self.fetch_all(query.bind(hashes(sought))).await?;
        let mut references: Vec<Reference> = Vec::new();
        for row in &rows {
            let sha256 = rows::hash(row, "sha256")?;
            if references.last().is_none_or(|last| last.sha256 != sha256) {
                let is_busy = number::<u32>(row, "is_busy")? > 0;
                references.push(Reference { sha256, renditions: Vec::new(), is_busy });
            }
            if let (Some(last), Some(made)) = (references.last_mut(), rendition(row)?) {
                last.renditions.push(made);
            }
        }
        Ok(references)
    }

    async fn discarded(&self, limit: u32, age: Duration) -> Result<Vec<Image>, StoreError> {
        let query = sqlx::query(concat!(
            "with page as (
                 select * from images i
                 where discarded_at <= ",
            ago!("$2", "$3"),
            " and removed_at is null and deleted_at is null
                   and not exists (select 1 from jobs j join tasks t on t.id = j.task_id
                                   where t.image_id = i.id and j.lease_until > ",
            now!("$3"),
            ") order by discarded_at limit $1)
             select",
            image_columns!(),
            "from page i",
            blob_joins!(),
            "order by i.discarded_at, i.id, r.preset, r.fingerprint, r.format"
        ));
        let query = query.bind(i64::from(limit)).bind(span(age));
        rows::images(&self.fetch_all(self.at_now(query)).await?)
    }

    async fn is_blob_wanted(&self, sha256: &ContentHash) -> Result<bool, StoreError> {
        let query = sqlx::query(
            "select exists (select 1 from images
                            where sha256 = $1 and discarded_at is null) as wanted",
        );
        Ok(self.fetch_one(query.bind(sha256.as_bytes())).await?.try_get("wanted")?)
    }

    async fn forget_blob(&self, sha256: &ContentHash) -> Result<bool, StoreError> {
        let sha256 = *sha256;
        self.write(move |conn, _| Box::pin(forget_blob(conn, sha256))).await
    }

    async fn mark_removed(&self, id: ImageId) -> Result<(), StoreError> {
        let query = sqlx::query(concat!(
            "update images set removed_at = ",
            now!("$2"),
            " where id = $1 and discarded_at is not null"
        ));
        self.execute_now(query.bind(id)).await.map(drop)
    }
}

async fn delete_image(
    conn: &mut Conn,
    now: Now,
    request: &DeletionRequest,
) -> Result<Deletion, StoreError> {
    // Jobs and tasks before the image's row: a settle locks them in this order.
    cancel_all_of(conn, now, request.image).await?;
    match lock_image(conn, request.image).await? {
        None => return Ok(Deletion::Unknown),
        Some(true) => return deleted_before(conn, request.image).await,
        Some(false) => {}
    }
    // Jobs that were created while this transaction waited for the lock.
    cancel_all_of(conn, now, request.image).await?;
    let (receipt, _) = plan_removal(&image(conn, request.image).await?, request);
    redact(conn, now, request.image).await?;
    // A discarded image has all renditions of its blob, which are to be removed with it.
    let (_, removal) = plan_removal(&image(conn, request.image).await?, request);
    let jobs = [(request.job, JobKind::Delete)];
    create_tasks(conn, now, &[NewTask::of_deletion(request, &jobs)]).await?;
    sqlx::query(
        "insert into deletions (task_id, image_id, receipt, removal) values ($1, $2, $3, $4)",
    )
    .bind(request.task)
    .bind(request.image)
    .bind(Json(receipt))
    .bind(Json(removal))
    .execute(conn)
    .await?;
    Ok(Deletion::Accepted(request.task))
}

/// A transaction that adds a task to the image, or retries one, waits here: its foreign key looks at the
/// row. Returns whether the image was deleted before; `None` if it does not exist.
async fn lock_image(conn: &mut Conn, image: ImageId) -> Result<Option<bool>, StoreError> {
    let query = sqlx::query_scalar(concat!(
        "select deleted_at is not null from images where id = $1 ",
        lock_rows!("for update")
    ));
    Ok(query.bind(image).fetch_optional(conn).await?)
}

async fn deleted_before(conn: &mut Conn, image: ImageId) -> Result<Deletion, StoreError> {
    let query = sqlx::query_scalar("select task_id from deletions where image_id = $1");
    let task: Option<TaskId> = query.bind(image).fetch_optional(conn).await?;
    Ok(task.map_or(Deletion::Forgotten, Deletion::Before))
}

/// Removes the picture's metadata from the row, except the name of its blob, which the job needs.
async fn redact(conn: &mut Conn, now: Now, image: ImageId) -> Result<(), StoreError> {
    sqlx::query("update tasks set source = null where image_id = $1 and source is not null")
        .bind(image)
        .execute(&mut *conn)
        .await?;
    let query = sqlx::query(concat!(
        "update images
         set discarded_at = coalesce(discarded_at, ",
        now!("$2"),
        "), deleted_at = ",
        now!("$2"),
        ",",
        clear_labels!(),
        ", taken_at = null, latitude = null, longitude = null
         where id = $1"
    ));
    bind_now(query.bind(image), now).execute(conn).await?;
    Ok(())
}

async fn image(conn: &mut Conn, id: ImageId) -> Result<Image, StoreError> {
    let query = sqlx::query(concat!(
        "select",
        image_columns!(),
        "from images i",
        blob_joins!(),
        "where i.id = $1 order by r.preset, r.fingerprint, r.format"
    ));
    let image = rows::images(&query.bind(id).fetch_all(conn).await?)?.pop();
    image.ok_or_else(|| StoreError::Corrupt(format!("image {id} vanished while it was locked")))
}

/// Those of `tasks` that are deletions, with their receipts.
pub async fn receipts(
    store: &SqlStore,
    tasks: &[TaskId],
) -> Result<Vec<(TaskId, Receipt)>, StoreError> {
    let query = sqlx::query(concat!(
        "select task_id, receipt, proxies from deletions where task_id ",
        any_of!("$1")
    ));
    let rows = store.fetch_all(query.bind(ids(tasks.iter().map(|id| id.0)))).await?;
    let receipt = |row: &DbRow| {
        let Json(receipt) = row.try_get::<Json<Receipt>, _>("receipt")?;
        let proxies: Option<i32> = row.try_get("proxies")?;
        let proxies = proxies.and_then(|count| count.try_into().ok());
        Ok((row.try_get("task_id")?, Receipt { proxies, ..receipt }))
    };
    rows.iter().map(receipt).collect()
}
