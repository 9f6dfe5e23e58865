//! What a backfill looks at: images page by page, and what is known of them.

use safelight_domain::{ContentHash, Failure, Image, ImageId, Owner};
use safelight_store::{Advance, ImageFilter, Obstacle, StoreError};
use sqlx::{
    QueryBuilder, Row, Sqlite, SqliteConnection, SqlitePool, sqlite::SqliteRow, types::Json,
};
use uuid::Uuid;

use crate::sqlite::rows::{self, blob_joins, image_columns, number};

fn push_filter(query: &mut QueryBuilder<Sqlite>, filter: &ImageFilter) {
    query.push(" where discarded_at is null and created_at <= ");
    query.push_bind(filter.until.timestamp_micros());
    if let Some(after) = filter.created_after {
        query.push(" and created_at >= ").push_bind(after.timestamp_micros());
    }
    if let Some(format) = filter.format {
        query.push(" and format = ").push_bind(format.as_str());
    }
}

pub async fn count_images(reads: &SqlitePool, filter: &ImageFilter) -> Result<u64, StoreError> {
    let mut query = QueryBuilder::new("select count(*) as images from images");
    push_filter(&mut query, filter);
    number(&query.build().fetch_one(reads).await?, "images")
}

pub async fn walk_images(
    reads: &SqlitePool,
    filter: &ImageFilter,
    after: Option<ImageId>,
    limit: u32,
) -> Result<Vec<Image>, StoreError> {
    let mut query = QueryBuilder::new("with page as (select * from images");
    push_filter(&mut query, filter);
    query.push(" and id > ").push_bind(after.unwrap_or(ImageId(Uuid::nil())));
    query.push(" order by id limit ").push_bind(limit);
    query.push(concat!(
        ") select",
        image_columns!(),
        "from page i",
        blob_joins!(),
        "order by i.id, r.preset, r.fingerprint, r.format"
    ));
    rows::images(&query.build().fetch_all(reads).await?)
}

/// Whether image `i` has a job that stores it or makes its renditions and is under way, or has failed for
/// good.
macro_rules! under_way {
    () => {
        "exists (select 1 from tasks t join jobs j on j.task_id = t.id
                 where t.image_id = i.id and j.kind in ('write', 'thumbnail')
                   and j.status in ('queued', 'running'))"
    };
}
macro_rules! failed {
    () => {
        "exists (select 1 from tasks t join jobs j on j.task_id = t.id
                 where t.image_id = i.id and j.kind in ('write', 'thumbnail')
                   and j.status = 'failed' and not j.superseded
                   and not exists (
                       select 1 from tasks u join jobs s on s.task_id = u.id
                       where u.image_id = i.id and s.kind = j.kind and s.status = 'succeeded'
                         and s.updated_at > j.updated_at))"
    };
}

/// Whether image `i` is worth more than equal bytes from elsewhere.
macro_rules! sound {
    () => {
        concat!("(", under_way!(), " or i.stored_at is not null and not ", failed!(), ")")
    };
}

pub async fn images_with_blobs(
    reads: &SqlitePool,
    owner: &Owner,
    hashes: &[ContentHash],
) -> Result<Vec<(ContentHash, ImageId)>, StoreError> {
    let rows = sqlx::query(concat!(
        "select sha256, id from (
             select i.sha256, i.id,
                    row_number() over (partition by i.sha256 order by ",
        sound!(),
        " desc, i.id) as place
             from images i
             where i.sha256 in (select unhex(value) from json_each($1)) and i.owner = $2
               and i.discarded_at is null)
         where place = 1"
    ))
    .bind(hash_list(hashes))
    .bind(owner)
    .fetch_all(reads)
    .await?;
    rows.iter().map(equal).collect()
}

/// The step without pictures that others have taken in meanwhile.
pub(super) async fn without_known(
    conn: &mut SqliteConnection,
    step: Advance,
) -> Result<Advance, StoreError> {
    let hashes = step.hashes();
    if hashes.is_empty() {
        return Ok(step);
    }
    let rows = sqlx::query(concat!(
        "select i.sha256, i.id from images i
         where i.sha256 in (select unhex(value) from json_each($1))
           and i.owner = (select owner from tasks where id = $2) and i.discarded_at is null and ",
        sound!()
    ))
    .bind(hash_list(&hashes))
    .bind(step.task)
    .fetch_all(conn)
    .await?;
    Ok(step.without(&rows.iter().map(equal).collect::<Result<Vec<_>, _>>()?))
}

fn hash_list(hashes: &[ContentHash]) -> Json<Vec<String>> {
    Json(hashes.iter().map(ToString::to_string).collect())
}

fn equal(row: &SqliteRow) -> Result<(ContentHash, ImageId), StoreError> {
    Ok((rows::hash(row, "sha256")?, row.try_get("id")?))
}

pub async fn obstacles(
    reads: &SqlitePool,
    images: &[ImageId],
) -> Result<Vec<Obstacle>, StoreError> {
    // What is open counts more than what has ended, a later end more than an earlier.
    let rows = sqlx::query(
        "select image_id, kind, status, error_code, error_message from (
             select t.image_id, j.kind, j.status, j.error_code, j.error_message,
                    row_number() over (partition by t.image_id, j.kind
                                       order by j.status in ('queued', 'running') desc,
                                                j.updated_at desc, j.id desc) as place
             from images i join tasks t on t.image_id = i.id join jobs j on j.task_id = t.id
             where i.id in (select unhex(value) from json_each($1))
               and j.kind in ('write', 'thumbnail', 'verify')
               and j.status <> 'cancelled' and not j.superseded
               and not (j.kind = 'verify' and j.status = 'failed' and exists (
                   select 1 from images e
                   where e.sha256 = i.sha256 and e.stored_at > j.updated_at)))
         where place = 1 and status <> 'succeeded'",
    )
    .bind(rows::id_list(images.iter().map(|id| id.0)))
    .fetch_all(reads)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Obstacle {
                image: row.try_get("image_id")?,
                kind: rows::name(row, "kind")?,
                status: rows::name(row, "status")?,
                failure: failure(row)?,
            })
        })
        .collect()
}

fn failure(row: &SqliteRow) -> Result<Option<Failure>, StoreError> {
    let Some(code) = row.try_get::<Option<&str>, _>("error_code")? else { return Ok(None) };
    let message: Option<String> = row.try_get("error_message")?;
    Ok(Some(Failure::new(code.parse()?, message.unwrap_or_default())))
}
