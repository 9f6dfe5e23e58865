//! Reading tasks and images.

use std::collections::HashMap;

use async_trait::async_trait;
use safelight_domain::{Image, ImageId, JobKind, Owner, Task, TaskId, TaskKind};
use safelight_store::{
    ImagePage, PageRequest, Reads, StoreError, TaskFilter, TaskPage, TaskVersion,
};
use sqlx::{QueryBuilder, Row};
use uuid::Uuid;

use super::{
    backfill_rows, deletions,
    dialect::{Db, any_of, ids},
    rows::{self, blob_joins, image_columns, task_columns},
    store::SqlStore,
    task_filter,
};

#[async_trait]
impl Reads for SqlStore {
    async fn task(&self, id: TaskId) -> Result<Option<Task>, StoreError> {
        let query = sqlx::query(concat!(
            "select",
            task_columns!(),
            "from tasks t left join jobs j on j.task_id = t.id where t.id = $1 order by j.id"
        ));
        let rows = self.fetch_all(query.bind(id)).await?;
        Ok(with_details(self, rows::tasks(&rows)?).await?.pop())
    }

    async fn last_task_of_image(
        &self,
        id: ImageId,
        kind: JobKind,
    ) -> Result<Option<Task>, StoreError> {
        let query = sqlx::query(concat!(
            "select",
            task_columns!(),
            "from tasks t left join jobs j on j.task_id = t.id
             where t.id = (select of_image.id from tasks of_image
                           join jobs made on made.task_id = of_image.id
                           where of_image.image_id = $1 and made.kind = $2
                             and of_image.kind in ('upload', 'rendition')
                           order by of_image.id desc limit 1)
             order by j.id"
        ));
        let rows = self.fetch_all(query.bind(id).bind(kind.as_str())).await?;
        Ok(with_details(self, rows::tasks(&rows)?).await?.pop())
    }

    async fn task_versions(&self, tasks: &[TaskId]) -> Result<Vec<TaskVersion>, StoreError> {
        let query =
            sqlx::query(concat!("select id, version, status from tasks where id ", any_of!("$1")));
        let rows = self.fetch_all(query.bind(ids(tasks.iter().map(|id| id.0)))).await?;
        rows.iter()
            .map(|row| {
                Ok(TaskVersion {
                    id: row.try_get("id")?,
                    version: row.try_get("version")?,
                    status: rows::name(row, "status")?,
                })
            })
            .collect()
    }

    async fn list_tasks(
        &self,
        filter: &TaskFilter,
        page: &PageRequest<TaskId>,
    ) -> Result<TaskPage, StoreError> {
        let mut query = QueryBuilder::<Db>::new("with page as (select * from tasks where true");
        task_filter::push(&mut query, filter);
        if let Some(before) = page.before {
            query.push(" and id < ").push_bind(before);
        }
        query.push(" order by id desc limit ").push_bind(i64::from(page.limit) + 1);
        query.push(concat!(
            ") select",
            task_columns!(),
            "from page t left join jobs j on j.task_id = t.id order by t.id desc, j.id"
        ));
        let rows = self.fetch_all(query.build()).await?;
        let mut found = rows::tasks(&rows)?;
        let more = found.len() > page.limit as usize;
        found.truncate(page.limit as usize);
        let tasks = with_details(self, found).await?;
        let next = tasks.last().filter(|_| more).map(|task| task.id);
        Ok(TaskPage { tasks, next })
    }

    async fn image(&self, id: ImageId) -> Result<Option<Image>, StoreError> {
        let query = sqlx::query(concat!(
            "select",
            image_columns!(),
            "from images i",
            blob_joins!(),
            "where i.id = $1 order by r.preset, r.fingerprint, r.format"
        ));
        Ok(rows::images(&self.fetch_all(query.bind(id)).await?)?.pop())
    }

    async fn list_images(
        &self,
        owner: Option<&Owner>,
        page: &PageRequest<ImageId>,
    ) -> Result<ImagePage, StoreError> {
        let query = sqlx::query(concat!(
            "with page as (
                 select * from images
                 where id < $1 and discarded_at is null
                   and (cast($3 as text) is null or owner = $3)
                 order by id desc limit $2)
             select",
            image_columns!(),
            "from page i",
            blob_joins!(),
            "order by i.id desc, r.preset, r.fingerprint, r.format"
        ));
        let query = query
            .bind(page.before.unwrap_or(ImageId(Uuid::max())))
            .bind(i64::from(page.limit) + 1)
            .bind(owner);
        let mut images = rows::images(&self.fetch_all(query).await?)?;
        let more = images.len() > page.limit as usize;
        images.truncate(page.limit as usize);
        let next = images.last().filter(|_| more).map(|image| image.id);
        Ok(ImagePage { images, next })
    }

    async fn existing_images(&self, images: &[ImageId]) -> Result<Vec<ImageId>, StoreError> {
        let query = sqlx::query(concat!("select id from images where id ", any_of!("$1")));
        let rows = self.fetch_all(query.bind(ids(images.iter().map(|id| id.0)))).await?;
        rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
    }
}

/// Reads the images, backfills and receipts of tasks, each kind in one query. These queries run after that of
/// the tasks, so that a succeeded task never lacks its renditions.
async fn with_details(
    store: &SqlStore,
    found: Vec<(Task, Option<ImageId>)>,
) -> Result<Vec<Task>, StoreError> {
    let mut tasks = with_images(store, found).await?;
    let backfills = of_kind(&tasks, TaskKind::Backfill);
    if !backfills.is_empty() {
        for backfill in backfill_rows::of_tasks(store, &backfills).await? {
            if let Some(task) = tasks.iter_mut().find(|task| task.id == backfill.id) {
                task.backfill = Some(Box::new(backfill));
            }
        }
    }
    let removed = of_kind(&tasks, TaskKind::Delete);
    if !removed.is_empty() {
        for (id, receipt) in deletions::receipts(store, &removed).await? {
            if let Some(task) = tasks.iter_mut().find(|task| task.id == id) {
                task.receipt = Some(Box::new(receipt));
            }
        }
    }
    Ok(tasks)
}

fn of_kind(tasks: &[Task], kind: TaskKind) -> Vec<TaskId> {
    tasks.iter().filter(|task| task.kind == kind).map(|task| task.id).collect()
}

async fn with_images(
    store: &SqlStore,
    found: Vec<(Task, Option<ImageId>)>,
) -> Result<Vec<Task>, StoreError> {
    let images: Vec<Uuid> = found.iter().filter_map(|(_, image)| image.map(|id| id.0)).collect();
    if images.is_empty() {
        return Ok(found.into_iter().map(|(task, _)| task).collect());
    }
    let query = sqlx::query(concat!(
        "select",
        image_columns!(),
        "from images i",
        blob_joins!(),
        "where i.id ",
        any_of!("$1"),
        " order by i.id, r.preset, r.fingerprint, r.format"
    ));
    let rows = store.fetch_all(query.bind(ids(images))).await?;
    let images: HashMap<ImageId, Image> =
        rows::images(&rows)?.into_iter().map(|image| (image.id, image)).collect();
    let with_image = |(task, image): (Task, Option<ImageId>)| Task {
        image: image.and_then(|id| images.get(&id).cloned()),
        ..task
    };
    Ok(found.into_iter().map(with_image).collect())
}
