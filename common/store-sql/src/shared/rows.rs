//! Rows as domain types, and the column lists that they are read from.

use safelight_domain::{
    ContentHash, Failure, Gps, Image, ImageFacts, ImageId, Job, JobId, JobNotice, Labels,
    Placeholder, Progress, Rendition, Status, Task, TaskId, UnknownName,
};
use safelight_store::{ClaimedJob, Lease, StoreError};
use sqlx::{Decode, Row, Type, types::Json};

use super::dialect::{Db, DbRow, big, number, optional_time, small, time};

/// An image `i` with its placeholder and one rendition `r` of its blob, or none: see [`images`].
macro_rules! image_columns {
    () => {
        " i.id as image_id, i.sha256, i.bytes, i.format, i.title, i.tags, i.filename, i.width,
          i.height, i.orientation, i.taken_at, i.latitude, i.longitude,
          i.created_at as image_created_at, i.stored_at,
          i.discarded_at is not null as discarded, i.deleted_at is not null as deleted,
          i.owner as image_owner, i.visibility,
          r.preset, r.fingerprint, r.format as r_format, r.width as r_width, r.height as r_height,
          r.bytes as r_bytes, r.rendition_sha256, r.created_at as made_at,
          p.thumbhash, p.dominant_color "
    };
}

/// Clears all labels of images but the visibility.
macro_rules! clear_labels {
    () => {
        " title = null, tags = '[]', filename = null "
    };
}

/// The renditions and the placeholder of the blob of an image `i`, for `image_columns!`. An image shows them once
/// its own renditions were made, or if its owner has an equal image of which they were. A discarded image shows
/// them in any case: they are to be removed.
macro_rules! blob_joins {
    () => {
        concat!(
            " left join renditions r on r.sha256 = i.sha256 and",
            blob_joins!(@shown),
            "left join placeholders p on p.sha256 = i.sha256 and",
            blob_joins!(@shown)
        )
    };
    (@shown) => {
        " (not i.fresh or i.discarded_at is not null
           or exists (select 1 from images own
                      where own.sha256 = i.sha256 and own.owner = i.owner and not own.fresh)) "
    };
}

/// A job `j` as its worker needs it, for `backfill_joins!`.
macro_rules! claimed_columns {
    () => {
        " j.id as job_id, j.fence, j.released, j.task_id, j.kind, j.lane, j.max_attempts,
          b.spec as backfill, "
    };
}

/// The backfill that made the task of a job `j`, for `claimed_columns!`.
macro_rules! backfill_joins {
    () => {
        " left join tasks t on t.id = j.task_id
          left join backfills b on b.task_id = t.backfill_id "
    };
}

/// A task `t` with one job `j`, or none.
macro_rules! task_columns {
    () => {
        " t.id, t.kind, t.lane, t.status, t.owner, t.version, t.image_id, t.jobs_total, t.jobs_succeeded,
          t.jobs_failed, t.jobs_cancelled, t.created_at, t.updated_at, t.finished_at,
          j.id as job_id, j.kind as job_kind, j.status as job_status,
          j.fence - j.released as attempt, j.max_attempts, j.run_at, j.error_code,
          j.error_message "
    };
}

pub(super) use backfill_joins;
pub(super) use blob_joins;
pub(super) use claimed_columns;
pub(super) use clear_labels;
pub(super) use image_columns;
pub(super) use task_columns;

/// An enum by its stored name.
pub fn name<T: std::str::FromStr<Err = UnknownName>>(
    row: &DbRow,
    column: &str,
) -> Result<T, StoreError> {
    Ok(row.try_get::<&str, _>(column)?.parse()?)
}

/// A content hash of a column of bytes.
pub fn hash(row: &DbRow, column: &str) -> Result<ContentHash, StoreError> {
    ContentHash::try_from(row.try_get::<&[u8], _>(column)?)
        .map_err(|error| StoreError::Corrupt(format!("{column}: {error}")))
}

/// A notice from columns `job_id`, `kind`, `lane`, `generation`, `traceparent`.
pub fn notice(row: &DbRow) -> Result<JobNotice, StoreError> {
    Ok(JobNotice {
        job: row.try_get("job_id")?,
        kind: name(row, "kind")?,
        lane: name(row, "lane")?,
        generation: number(row, "generation")?,
        // A context that this release cannot parse breaks the trace, not the job.
        trace: row.try_get::<Option<&str>, _>("traceparent")?.and_then(|text| text.parse().ok()),
    })
}

fn image(row: &DbRow) -> Result<Image, StoreError> {
    let stored_at = optional_time(row, "stored_at")?;
    Ok(Image {
        id: row.try_get("image_id")?,
        sha256: hash(row, "sha256")?,
        bytes: big(row, "bytes")?,
        format: name(row, "format")?,
        facts: stored_at.map(|_| facts(row)).transpose()?,
        labels: labels(row)?,
        created_at: time(row, "image_created_at")?,
        stored_at,
        discarded: row.try_get("discarded")?,
        deleted: row.try_get("deleted")?,
        owner: row.try_get("image_owner")?,
        renditions: Vec::new(),
        placeholder: placeholder(row)?,
    })
}

fn labels(row: &DbRow) -> Result<Labels, StoreError> {
    Ok(Labels {
        title: row.try_get("title")?,
        tags: row.try_get::<Json<Vec<String>>, _>("tags")?.0,
        filename: row.try_get("filename")?,
        visibility: Some(name(row, "visibility")?),
    })
}

fn facts(row: &DbRow) -> Result<ImageFacts, StoreError> {
    let latitude: Option<f64> = row.try_get("latitude")?;
    let longitude: Option<f64> = row.try_get("longitude")?;
    Ok(ImageFacts {
        format: name(row, "format")?,
        width: number(row, "width")?,
        height: number(row, "height")?,
        orientation: small(row, "orientation")?,
        taken_at: row.try_get("taken_at")?,
        gps: latitude.zip(longitude).map(|(latitude, longitude)| Gps { latitude, longitude }),
    })
}

/// The rendition `r` of a row; `None` if it has none.
pub fn rendition(row: &DbRow) -> Result<Option<Rendition>, StoreError> {
    let Some(preset) = row.try_get::<Option<String>, _>("preset")? else { return Ok(None) };
    Ok(Some(Rendition {
        preset,
        fingerprint: row.try_get("fingerprint")?,
        format: name(row, "r_format")?,
        width: number(row, "r_width")?,
        height: number(row, "r_height")?,
        bytes: big(row, "r_bytes")?,
        sha256: hash(row, "rendition_sha256")?,
        made_at: optional_time(row, "made_at")?,
    }))
}

fn placeholder(row: &DbRow) -> Result<Option<Placeholder>, StoreError> {
    let Some(thumbhash) = row.try_get("thumbhash")? else { return Ok(None) };
    let color = row.try_get("dominant_color")?;
    let dominant_color = Placeholder::parse_css_color(color)
        .ok_or_else(|| StoreError::Corrupt(format!("dominant_color is {color}")))?;
    Ok(Some(Placeholder { thumbhash, dominant_color }))
}

fn claimed_job(row: &DbRow) -> Result<ClaimedJob, StoreError> {
    let fence: u32 = number(row, "fence")?;
    Ok(ClaimedJob {
        lease: Lease { job: row.try_get("job_id")?, fence },
        task: row.try_get("task_id")?,
        kind: name(row, "kind")?,
        lane: name(row, "lane")?,
        attempt: fence.saturating_sub(number(row, "released")?),
        max_attempts: number(row, "max_attempts")?,
        image: image(row)?,
        backfill: row.try_get::<Option<Json<_>>, _>("backfill")?.map(|Json(spec)| spec),
    })
}

/// Images with their renditions, from rows of `image_columns!` in which an image's rows are
/// neighbors.
pub fn images(rows: &[DbRow]) -> Result<Vec<Image>, StoreError> {
    let mut images: Vec<Image> = Vec::new();
    for row in rows {
        let id: ImageId = row.try_get("image_id")?;
        if images.last().is_none_or(|last| last.id != id) {
            images.push(image(row)?);
        }
        if let (Some(image), Some(rendition)) = (images.last_mut(), rendition(row)?) {
            image.renditions.push(rendition);
        }
    }
    Ok(images)
}

/// Jobs with their image, from rows of `claimed_columns!` and `image_columns!` in which a job's
/// rows are neighbors.
pub fn claimed_jobs(rows: &[DbRow]) -> Result<Vec<ClaimedJob>, StoreError> {
    let mut jobs: Vec<ClaimedJob> = Vec::new();
    for row in rows {
        let id: JobId = row.try_get("job_id")?;
        if jobs.last().is_none_or(|last| last.lease.job != id) {
            jobs.push(claimed_job(row)?);
        }
        if let (Some(job), Some(rendition)) = (jobs.last_mut(), rendition(row)?) {
            job.image.renditions.push(rendition);
        }
    }
    Ok(jobs)
}

/// Tasks with their jobs and the ids of their images, from rows of `task_columns!` in which a
/// task's rows are neighbors.
pub fn tasks(rows: &[DbRow]) -> Result<Vec<(Task, Option<ImageId>)>, StoreError> {
    let mut tasks: Vec<(Task, Option<ImageId>)> = Vec::new();
    for row in rows {
        let id: TaskId = row.try_get("id")?;
        if tasks.last().is_none_or(|(last, _)| last.id != id) {
            tasks.push((task(row)?, row.try_get("image_id")?));
        }
        if let (Some((task, _)), Some(job)) = (tasks.last_mut(), job(row)?) {
            task.jobs.push(job);
        }
    }
    Ok(tasks)
}

fn task(row: &DbRow) -> Result<Task, StoreError> {
    Ok(Task {
        id: row.try_get("id")?,
        kind: name(row, "kind")?,
        lane: name(row, "lane")?,
        status: name(row, "status")?,
        owner: row.try_get("owner")?,
        version: row.try_get("version")?,
        created_at: time(row, "created_at")?,
        updated_at: time(row, "updated_at")?,
        finished_at: optional_time(row, "finished_at")?,
        progress: Progress {
            total: number(row, "jobs_total")?,
            succeeded: number(row, "jobs_succeeded")?,
            failed: number(row, "jobs_failed")?,
            cancelled: number(row, "jobs_cancelled")?,
        },
        jobs: Vec::new(),
        image: None,
        backfill: None,
        receipt: None,
    })
}

fn job(row: &DbRow) -> Result<Option<Job>, StoreError> {
    let Some(id) = row.try_get::<Option<JobId>, _>("job_id")? else { return Ok(None) };
    let status = name(row, "job_status")?;
    let error = failure(row)?;
    let waits_for_retry = status == Status::Queued && error.is_some();
    let run_at = time(row, "run_at")?;
    Ok(Some(Job {
        id,
        kind: name(row, "job_kind")?,
        status,
        attempt: number(row, "attempt")?,
        max_attempts: number(row, "max_attempts")?,
        retry_at: waits_for_retry.then_some(run_at),
        error,
    }))
}

/// The failure of columns `error_code` and `error_message`, if there is one.
pub fn failure(row: &DbRow) -> Result<Option<Failure>, StoreError> {
    let Some(code) = row.try_get::<Option<&str>, _>("error_code")? else { return Ok(None) };
    let message: Option<String> = row.try_get("error_message")?;
    Ok(Some(Failure::new(code.parse()?, message.unwrap_or_default())))
}

/// One column of all rows.
pub fn column<T>(rows: &[DbRow], name: &str) -> Result<Vec<T>, StoreError>
where
    T: for<'r> Decode<'r, Db> + Type<Db>,
{
    rows.iter().map(|row| Ok(row.try_get(name)?)).collect()
}
