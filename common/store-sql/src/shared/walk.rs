//! The images that a backfill walks over, page by page, and the jobs that block them.

use safelight_domain::{ContentHash, Image, ImageId, Owner, TaskId};
use safelight_store::{BlockingJob, ImageFilter, StoreError};
use sqlx::{QueryBuilder, Row};
use uuid::Uuid;

use super::{
    dialect::{Conn, Db, DbRow, Now, any_of, big, hashes, ids, instant, push_now},
    rows::{self, blob_joins, image_columns},
    store::SqlStore,
};

/// An image of the future was accepted before the clock was set back, so before `until` too.
fn push_filter(query: &mut QueryBuilder<Db>, filter: &ImageFilter, now: Now) {
    query.push(" where discarded_at is null and (created_at <= ");
    query.push_bind(instant(filter.until)).push(" or created_at > ");
    push_now(query, now);
    query.push(")");
    if let Some(after) = filter.created_after {
        query.push(" and created_at >= ").push_bind(instant(after));
    }
    if let Some(format) = filter.format {
        query.push(" and format = ").push_bind(format.as_str());
    }
}

/// See [`Backfills::count_images`](safelight_store::Backfills::count_images).
pub async fn count_images(store: &SqlStore, filter: &ImageFilter) -> Result<u64, StoreError> {
    let mut query = QueryBuilder::new("select count(*) as images from images");
    push_filter(&mut query, filter, store.now());
    big(&store.fetch_one(query.build()).await?, "images")
}

/// See [`Backfills::walk_images`](safelight_store::Backfills::walk_images).
pub async fn walk_images(
    store: &SqlStore,
    filter: &ImageFilter,
    after: Option<ImageId>,
    limit: u32,
) -> Result<Vec<Image>, StoreError> {
    let mut query = QueryBuilder::new("with page as (select * from images");
    push_filter(&mut query, filter, store.now());
    query.push(" and id > ").push_bind(after.unwrap_or(ImageId(Uuid::nil())));
    query.push(" order by id limit ").push_bind(i64::from(limit));
    query.push(concat!(
        ") select",
        image_columns!(),
        "from page i",
        blob_joins!(),
        "order by i.id, r.preset, r.fingerprint, r.format"
    ));
    rows::images(&store.fetch_all(query.build()).await?)
}

/// Whether image `i` is preferred to a new import of equal bytes: a job that stores it or makes its
/// renditions is open; or it is stored, and no such job has failed for good.
macro_rules! is_sound {
    () => {
        "(exists (select 1 from tasks t join jobs j on j.task_id = t.id
                  where t.image_id = i.id and j.kind in ('write', 'thumbnail')
                    and j.status in ('queued', 'running'))
          or i.stored_at is not null and not exists (
              select 1 from tasks t join jobs j on j.task_id = t.id
              where t.image_id = i.id and j.kind in ('write', 'thumbnail')
                and j.status = 'failed' and not j.superseded
                and not exists (
                    select 1 from tasks u join jobs s on s.task_id = u.id
                    where u.image_id = i.id and s.kind = j.kind and s.status = 'succeeded'
                      and s.updated_at > j.updated_at)))"
    };
}

/// See [`Backfills::images_with_blobs`](safelight_store::Backfills::images_with_blobs).
pub async fn images_with_blobs(
    store: &SqlStore,
    owner: &Owner,
    sought: &[ContentHash],
) -> Result<Vec<(ContentHash, ImageId)>, StoreError> {
    let query = sqlx::query(concat!(
        "select sha256, id from (
             select i.sha256, i.id,
                    row_number() over (partition by i.sha256 order by ",
        is_sound!(),
        " desc, i.id) as rank
             from images i
             where i.sha256 ",
        any_of!("$1"),
        " and i.owner = $2 and i.discarded_at is null) found
         where rank = 1"
    ));
    let rows = store.fetch_all(query.bind(hashes(sought)).bind(owner)).await?;
    rows.iter().map(equal).collect()
}

/// Sound images with these hashes of the owner of a task.
pub async fn sound_images(
    conn: &mut Conn,
    task: TaskId,
    sought: &[ContentHash],
) -> Result<Vec<(ContentHash, ImageId)>, StoreError> {
    let query = sqlx::query(concat!(
        "select i.sha256, i.id from images i
         where i.sha256 ",
        any_of!("$1"),
        " and i.owner = (select owner from tasks where id = $2)
           and i.discarded_at is null and ",
        is_sound!()
    ));
    let rows = query.bind(hashes(sought)).bind(task).fetch_all(conn).await?;
    rows.iter().map(equal).collect()
}

fn equal(row: &DbRow) -> Result<(ContentHash, ImageId), StoreError> {
    Ok((rows::hash(row, "sha256")?, row.try_get("id")?))
}

/// See [`Backfills::blocking_jobs`](safelight_store::Backfills::blocking_jobs).
pub async fn blocking_jobs(
    store: &SqlStore,
    images: &[ImageId],
) -> Result<Vec<BlockingJob>, StoreError> {
    // An open job counts more than an ended one, a later end more than an earlier.
    let query = sqlx::query(concat!(
        "select image_id, kind, status, error_code, error_message from (
             select t.image_id, j.kind, j.status, j.error_code, j.error_message,
                    row_number() over (partition by t.image_id, j.kind
                                       order by j.status in ('queued', 'running') desc,
                                                j.updated_at desc, j.id desc) as rank
             from images i join tasks t on t.image_id = i.id join jobs j on j.task_id = t.id
             where i.id ",
        any_of!("$1"),
        " and j.kind in ('write', 'thumbnail', 'verify')
               and j.status <> 'cancelled' and not j.superseded
               and not (j.kind = 'verify' and j.status = 'failed' and exists (
                   select 1 from images e
                   where e.sha256 = i.sha256 and e.stored_at > j.updated_at))) newest
         where rank = 1 and status <> 'succeeded'"
    ));
    let rows = store.fetch_all(query.bind(ids(images.iter().map(|id| id.0)))).await?;
    rows.iter()
        .map(|row| {
            Ok(BlockingJob {
                image: row.try_get("image_id")?,
                kind: rows::name(row, "kind")?,
                status: rows::name(row, "status")?,
                failure: rows::failure(row)?,
            })
        })
        .collect()
}
