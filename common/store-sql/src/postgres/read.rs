//! Reading tasks and images.

use std::collections::HashMap;

use safelight_domain::{Image, ImageId, JobKind, Owner, Task, TaskId, TaskKind};
use safelight_store::{ImagePage, PageRequest, StoreError, TaskFilter, TaskPage, TaskVersion};
use sqlx::{PgPool, Postgres, QueryBuilder, Row};
use uuid::Uuid;

use super::{
    backfill, deletion, filter,
    rows::{self, blob_joins, image_columns, task_columns},
};

pub async fn task(pool: &PgPool, id: TaskId) -> Result<Option<Task>, StoreError> {
    let rows = sqlx::query(concat!(
        "select",
        task_columns!(),
        "from tasks t left join jobs j on j.task_id = t.id where t.id = $1 order by j.id"
    ))
    .bind(id)
    .fetch_all(pool)
    .await?;
    Ok(with_details(pool, rows::tasks(&rows)?).await?.pop())
}

pub async fn last_task_of_image(
    pool: &PgPool,
    id: ImageId,
    kind: JobKind,
) -> Result<Option<Task>, StoreError> {
    let rows = sqlx::query(concat!(
        "select",
        task_columns!(),
        "from tasks t left join jobs j on j.task_id = t.id
         where t.id = (select of_image.id from tasks of_image
                       join jobs made on made.task_id = of_image.id
                       where of_image.image_id = $1 and made.kind = $2
                         and of_image.kind in ('upload', 'rendition')
                       order by of_image.id desc limit 1)
         order by j.id"
    ))
    .bind(id)
    .bind(kind.as_str())
    .fetch_all(pool)
    .await?;
    Ok(with_details(pool, rows::tasks(&rows)?).await?.pop())
}

pub async fn task_versions(pool: &PgPool, ids: &[TaskId]) -> Result<Vec<TaskVersion>, StoreError> {
    let rows = sqlx::query(
        "select id, version, status from tasks
         where id = any($1)",
    )
    .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
    .fetch_all(pool)
    .await?;
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

pub async fn list_tasks(
    pool: &PgPool,
    filter: &TaskFilter,
    page: &PageRequest<TaskId>,
) -> Result<TaskPage, StoreError> {
    let mut query = QueryBuilder::<Postgres>::new("with page as (select * from tasks where true");
    filter::push(&mut query, filter);
    if let Some(before) = page.before {
        query.push(" and id < ").push_bind(before);
    }
    query.push(" order by id desc limit ").push_bind(i64::from(page.limit) + 1);
    query.push(concat!(
        ") select",
        task_columns!(),
        "from page t left join jobs j on j.task_id = t.id order by t.id desc, j.id"
    ));
    let rows = query.build().fetch_all(pool).await?;
    let mut found = rows::tasks(&rows)?;
    let more = found.len() > page.limit as usize;
    found.truncate(page.limit as usize);
    let tasks = with_details(pool, found).await?;
    let next = tasks.last().filter(|_| more).map(|task| task.id);
    Ok(TaskPage { tasks, next })
}

/// Reads the tasks' images, backfills and receipts, each all in one query. That comes after the tasks', so that a task that says
/// `succeeded` never lacks its renditions.
async fn with_details(
    pool: &PgPool,
    found: Vec<(Task, Option<ImageId>)>,
) -> Result<Vec<Task>, StoreError> {
    let mut tasks = with_images(pool, found).await?;
    let backfills = of_kind(&tasks, TaskKind::Backfill);
    if !backfills.is_empty() {
        for stands in backfill::of_tasks(pool, &backfills).await? {
            if let Some(task) = tasks.iter_mut().find(|task| task.id == stands.id) {
                task.backfill = Some(Box::new(stands));
            }
        }
    }
    let deletions = of_kind(&tasks, TaskKind::Delete);
    if !deletions.is_empty() {
        for (id, receipt) in deletion::receipts(pool, &deletions).await? {
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
    pool: &PgPool,
    found: Vec<(Task, Option<ImageId>)>,
) -> Result<Vec<Task>, StoreError> {
    let ids: Vec<Uuid> = found.iter().filter_map(|(_, image)| image.map(|id| id.0)).collect();
    if ids.is_empty() {
        return Ok(found.into_iter().map(|(task, _)| task).collect());
    }
    let rows = sqlx::query(concat!(
        "select",
        image_columns!(),
        "from images i",
        blob_joins!(),
        "where i.id = any($1)
         order by i.id, r.preset, r.fingerprint, r.format"
    ))
    .bind(ids)
    .fetch_all(pool)
    .await?;
    let images: HashMap<ImageId, Image> =
        rows::images(&rows)?.into_iter().map(|image| (image.id, image)).collect();
    let with_image = |(task, image): (Task, Option<ImageId>)| Task {
        image: image.and_then(|id| images.get(&id).cloned()),
        ..task
    };
    Ok(found.into_iter().map(with_image).collect())
}

pub async fn image(pool: &PgPool, id: ImageId) -> Result<Option<Image>, StoreError> {
    let rows = sqlx::query(concat!(
        "select",
        image_columns!(),
        "from images i",
        blob_joins!(),
        "where i.id = $1 order by r.preset, r.fingerprint, r.format"
    ))
    .bind(id)
    .fetch_all(pool)
    .await?;
    Ok(rows::images(&rows)?.pop())
}

pub async fn list_images(
    pool: &PgPool,
    owner: Option<&Owner>,
    page: &PageRequest<ImageId>,
) -> Result<ImagePage, StoreError> {
    let rows = sqlx::query(concat!(
        "with page as (
             select * from images
             where id < $1 and discarded_at is null and ($3::text is null or owner = $3)
             order by id desc limit $2)
         select",
        image_columns!(),
        "from page i",
        blob_joins!(),
        "order by i.id desc, r.preset, r.fingerprint, r.format"
    ))
    .bind(page.before.unwrap_or(ImageId(Uuid::max())))
    .bind(i64::from(page.limit) + 1)
    .bind(owner)
    .fetch_all(pool)
    .await?;
    let mut images = rows::images(&rows)?;
    let more = images.len() > page.limit as usize;
    images.truncate(page.limit as usize);
    let next = images.last().filter(|_| more).map(|image| image.id);
    Ok(ImagePage { images, next })
}

pub async fn existing_images(pool: &PgPool, ids: &[ImageId]) -> Result<Vec<ImageId>, StoreError> {
    Ok(sqlx::query_scalar("select id from images where id = any($1)")
        .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
        .fetch_all(pool)
        .await?)
}
