//! Backfills.

use std::{collections::BTreeMap, time::Duration};

use sqlx::{
    QueryBuilder, Row, Sqlite, SqliteConnection, SqliteExecutor, SqlitePool, sqlite::SqliteRow,
    types::Json,
};
use uuid::Uuid;

use super::{
    access, prune,
    rows::{self, blob_joins, image_columns, number},
    writer::Writer,
};
use crate::{
    domain::{
        Backfill, BackfillSpec, ContentHash, Failure, Image, ImageId, ItemOutcome, Owner, TaskId,
        Visibility, WorkerId,
    },
    store::{
        Advance, Child, ImageFilter, Item, NewBackfill, Obstacle, StoreError,
        convert::{micros, to_i64},
    },
};

/// A backfill `b` with its task `t`; `$1` is the time.
macro_rules! backfill_columns {
    () => {
        " b.task_id, t.owner, t.created_at, b.spec, b.state, b.paused, b.cancelled,
          b.retrying_since is not null as retrying, b.cursor,
          b.expected, b.planned, b.skipped, b.refused, b.succeeded, b.failed, b.cancelled_count,
          b.problem, ($1 - b.fed_at) / 1000000.0 as rested "
    };
}

pub async fn create(
    conn: &mut SqliteConnection,
    now: i64,
    new: NewBackfill,
) -> Result<bool, StoreError> {
    let created = sqlx::query(
        "insert into tasks (id, kind, lane, status, jobs_total, owner, created_at, updated_at)
         values ($1, 'backfill', 'bulk', 'queued', 0, $2, $3, $3)
         on conflict (id) do nothing",
    )
    .bind(new.task)
    .bind(&new.owner)
    .bind(now)
    .execute(&mut *conn)
    .await?;
    if created.rows_affected() > 0 {
        sqlx::query("insert into backfills (task_id, spec) values ($1, $2)")
            .bind(new.task)
            .bind(Json(&new.spec))
            .execute(&mut *conn)
            .await?;
    }
    Ok(sqlx::query_scalar(
        "select exists (select 1 from backfills b join tasks t on t.id = b.task_id
                        where b.task_id = $1 and t.owner = $2 and b.spec = $3)",
    )
    .bind(new.task)
    .bind(&new.owner)
    .bind(Json(&new.spec))
    .fetch_one(conn)
    .await?)
}

/// Of the backfills that foreman `$1` leads or may lead at the time `$2`, `$4` at most, those that he does
/// not lead until about `$3`.
macro_rules! renewable {
    () => {
        "select task_id from backfills
         where task_id in (
             select task_id from backfills
             where state <> 'ended' and (foreman = $1 or foreman is null or foreman_until <= $2)
             order by paused, task_id limit $4)
           and (foreman is not $1 or foreman_until not between $3 - ($3 - $2) / 3 and $3)"
    };
}

pub async fn lead(
    reads: &SqlitePool,
    writer: &Writer,
    now: i64,
    foreman: WorkerId,
    hold: Duration,
    limit: u32,
) -> Result<Vec<Backfill>, StoreError> {
    // Most looks change nothing, and need no place in the writer's queue.
    let keeps = sqlx::query_scalar(concat!("select not exists (", renewable!(), ")"))
        .bind(foreman)
        .bind(now)
        .bind(now + micros(hold))
        .bind(limit)
        .fetch_one(reads)
        .await?;
    if keeps {
        return led(reads, now, foreman).await;
    }
    writer.run(move |conn, now| Box::pin(renew(conn, now, foreman, hold, limit))).await
}

async fn renew(
    conn: &mut SqliteConnection,
    now: i64,
    foreman: WorkerId,
    hold: Duration,
    limit: u32,
) -> Result<Vec<Backfill>, StoreError> {
    sqlx::query(concat!(
        "update backfills set foreman = $1, foreman_until = $3 where task_id in (",
        renewable!(),
        ")"
    ))
    .bind(foreman)
    .bind(now)
    .bind(now + micros(hold))
    .bind(limit)
    .execute(&mut *conn)
    .await?;
    led(conn, now, foreman).await
}

/// The backfills that a foreman leads.
async fn led(
    conn: impl SqliteExecutor<'_>,
    now: i64,
    foreman: WorkerId,
) -> Result<Vec<Backfill>, StoreError> {
    let rows = sqlx::query(concat!(
        "select",
        backfill_columns!(),
        "from backfills b join tasks t on t.id = b.task_id
         where b.state <> 'ended' and b.foreman = $2 order by b.paused, b.task_id"
    ))
    .bind(now)
    .bind(foreman)
    .fetch_all(conn)
    .await?;
    rows.iter().map(backfill).collect()
}

/// Those of `ids` that are backfills.
pub async fn of_tasks(
    reads: &SqlitePool,
    now: i64,
    ids: &[TaskId],
) -> Result<Vec<Backfill>, StoreError> {
    let rows = sqlx::query(concat!(
        "select",
        backfill_columns!(),
        "from backfills b join tasks t on t.id = b.task_id
         where b.task_id in (select unhex(value) from json_each($2))"
    ))
    .bind(now)
    .bind(rows::id_list(ids.iter().map(|id| id.0)))
    .fetch_all(reads)
    .await?;
    rows.iter().map(backfill).collect()
}

fn backfill(row: &SqliteRow) -> Result<Backfill, StoreError> {
    Ok(Backfill {
        id: row.try_get("task_id")?,
        owner: row.try_get("owner")?,
        begun_at: rows::time(row.try_get("created_at")?)?,
        spec: row.try_get::<Json<BackfillSpec>, _>("spec")?.0,
        state: rows::name(row, "state")?,
        paused: row.try_get("paused")?,
        cancelled: row.try_get("cancelled")?,
        retrying: row.try_get("retrying")?,
        cursor: row.try_get("cursor")?,
        expected: row
            .try_get::<Option<i64>, _>("expected")?
            .map(|_| number(row, "expected"))
            .transpose()?,
        planned: number(row, "planned")?,
        skipped: row.try_get::<Json<BTreeMap<String, u64>>, _>("skipped")?.0,
        refused: number(row, "refused")?,
        succeeded: number(row, "succeeded")?,
        failed: number(row, "failed")?,
        cancelled_images: number(row, "cancelled_count")?,
        problem: row.try_get("problem")?,
        rested_seconds: row.try_get("rested")?,
    })
}

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
async fn without_known(conn: &mut SqliteConnection, step: Advance) -> Result<Advance, StoreError> {
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

/// Adds the step's counts, if the walk still stands where it began and goes on.
const ADVANCE: &str = "
    update backfills
    set cursor = $3, expected = coalesce($4, expected), planned = planned + $5,
        succeeded = succeeded + $12, refused = refused + $6, skipped = $7, problem = $9,
        state = case when $8 then 'walked' else state end,
        fed_at = case when $5 = 0 then fed_at
                      else max(coalesce(fed_at, $11) + $10, $11 - 1000000) end
    where task_id = $1 and cursor is $2 and state = 'walking' and not paused";

pub async fn advance(
    conn: &mut SqliteConnection,
    now: i64,
    step: Advance,
) -> Result<bool, StoreError> {
    let row = sqlx::query(
        "select b.skipped, b.spec, t.owner from backfills b join tasks t on t.id = b.task_id
         where b.task_id = $1",
    )
    .bind(step.task)
    .fetch_optional(&mut *conn)
    .await?;
    let Some(row) = row else { return Ok(false) };
    let Json(spec) = row.try_get::<Json<BackfillSpec>, _>("spec")?;
    let Json(mut skipped) = row.try_get::<Json<BTreeMap<String, u64>>, _>("skipped")?;
    let dry_run = spec.dry_run;
    let mut step = without_known(conn, step).await?;
    if !dry_run && !spec.quota.is_unlimited() {
        let used = access::usage(&mut *conn, &row.try_get("owner")?).await?;
        step = step.within(spec.quota, used);
    }
    let refused = step.count(&mut skipped);
    let paced = Duration::try_from_secs_f64(step.paced_seconds).unwrap_or_default();
    let advanced = sqlx::query(ADVANCE)
        .bind(step.task)
        .bind(&step.from)
        .bind(&step.to)
        .bind(step.expected.map(to_i64))
        .bind(to_i64(step.work.len() + step.done.len()))
        .bind(to_i64(refused))
        .bind(Json(&skipped))
        .bind(step.is_last)
        .bind(&step.problem)
        .bind(micros(paced))
        .bind(now)
        .bind(if dry_run { 0 } else { to_i64(step.done.len()) })
        .execute(&mut *conn)
        .await?;
    if advanced.rows_affected() == 0 {
        return Ok(false);
    }
    if !dry_run {
        for child in &step.work {
            make_child(conn, now, &step, child, spec.visibility).await?;
        }
        write_items(conn, step.task, &step.settled).await?;
    }
    write_items(conn, step.task, &step.done).await?;
    touch(conn, now, step.task).await?;
    Ok(true)
}

/// The backfill's document has changed.
async fn touch(conn: &mut SqliteConnection, now: i64, task: TaskId) -> Result<(), StoreError> {
    sqlx::query(
        "update tasks
         set version = version + 1, updated_at = $2,
             status = case status when 'queued' then 'running' else status end
         where id = $1",
    )
    .bind(task)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// One script, as accepting an upload is.
const CHILD: &str = "
    insert into images (id, sha256, bytes, format, title, tags, filename, created_at, visibility, owner,
                        fresh)
    select $1, $2, $3, $4, $5, $6, $7, $8, $15, owner, 1 from tasks where id = $12 and $2 is not null;

    insert into tasks (id, kind, lane, status, image_id, jobs_total, owner, backfill_id, source,
                       created_at, updated_at)
    select $9, $10, 'bulk', 'queued', $1, json_array_length($11), owner, $12, $13, $8, $8
    from images where id = $1;

    insert into jobs (id, task_id, image_id, kind, lane, share, status, max_attempts, run_at,
                      waiting_since, created_at, updated_at, needs_version)
    select unhex(value ->> 0), $9, $1, value ->> 1, 'bulk', lower(hex($12)), 'queued', $14, $8, $8, $8, $8,
           case value ->> 1 when 'thumbnail' then 2 else 1 end
    from json_each($11);

    insert into outbox (job_id, kind, lane, share, generation, due_at)
    select id, kind, lane, share, 0, $8 from jobs where task_id = $9;";

async fn make_child(
    conn: &mut SqliteConnection,
    now: i64,
    step: &Advance,
    child: &Child,
    visibility: Option<Visibility>,
) -> Result<(), StoreError> {
    let import = child.import.as_ref();
    let jobs: Vec<(String, &str)> =
        child.jobs.iter().map(|(id, kind)| (id.0.simple().to_string(), kind.as_str())).collect();
    sqlx::query(CHILD)
        .bind(child.image)
        .bind(import.map(|new| new.sha256.as_bytes()))
        .bind(import.map(|new| to_i64(new.bytes)))
        .bind(import.map(|new| new.format.as_str()))
        .bind(import.map(|new| new.title.clone()))
        .bind(import.map(|new| Json(&new.tags)))
        .bind(import.map(|new| new.filename.clone()))
        .bind(now)
        .bind(child.task)
        .bind(child.kind.as_str())
        .bind(Json(jobs))
        .bind(step.task)
        .bind(import.map(|new| new.source.as_str()))
        .bind(step.max_attempts)
        .bind(visibility.unwrap_or(Visibility::Public).as_str())
        .execute(conn)
        .await?;
    Ok(())
}

async fn write_items(
    conn: &mut SqliteConnection,
    task: TaskId,
    items: &[Item],
) -> Result<(), StoreError> {
    for item in items {
        sqlx::query(
            "insert into backfill_items (task_id, item, outcome, reason, detail, source)
             values ($1, $2, $3, $4, $5, $6)
             on conflict (task_id, item) do update
             set outcome = excluded.outcome, reason = excluded.reason, detail = excluded.detail",
        )
        .bind(task)
        .bind(item.id)
        .bind(item.outcome.as_str())
        .bind(item.reason.as_deref())
        .bind(item.detail.as_deref())
        .bind(item.source.as_deref())
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

/// Children that have ended and are not counted, each with what its report line says.
const ENDED: &str = "
    select t.id, t.image_id, t.status, t.source, j.error_code as reason,
           coalesce(j.error_message, (select group_concat(n.note, '; ') from jobs n
                                      where n.task_id = t.id)) as detail
    from tasks t
    left join jobs j on j.id = (select min(f.id) from jobs f
                                where f.task_id = t.id and f.status = 'failed')
    where t.backfill_id = $1 and not t.tallied and t.status in ('succeeded', 'failed', 'cancelled')
    order by t.id limit $2";

/// Notes for failed jobs that one of these tasks has done later what they could not.
const SUPERSEDE: &str = "
    update jobs as f set superseded = 1
    from jobs s, tasks t
    where s.task_id in (select unhex(value) from json_each($1)) and s.status = 'succeeded'
      and t.image_id = s.image_id and f.task_id = t.id
      and f.kind = s.kind and f.status = 'failed' and f.updated_at < s.updated_at";

pub async fn tally(
    reads: &SqlitePool,
    writer: &Writer,
    task: TaskId,
    limit: u32,
) -> Result<u64, StoreError> {
    // Most looks find nothing, and need no place in the writer's queue.
    let due = sqlx::query(
        "select 1 from backfills b
         where b.task_id = $1 and (b.state = 'walked' or exists (
             select 1 from tasks t
             where t.backfill_id = $1 and not t.tallied
               and t.status in ('succeeded', 'failed', 'cancelled')))",
    )
    .bind(task)
    .fetch_optional(reads)
    .await?;
    if due.is_none() {
        return Ok(0);
    }
    writer.run(move |conn, now| Box::pin(tally_ended(conn, now, task, limit))).await
}

async fn tally_ended(
    conn: &mut SqliteConnection,
    now: i64,
    task: TaskId,
    limit: u32,
) -> Result<u64, StoreError> {
    let rows = sqlx::query(ENDED).bind(task).bind(limit).fetch_all(&mut *conn).await?;
    let mut ended = Ended::default();
    for row in &rows {
        ended.add(row)?;
    }
    if !rows.is_empty() {
        write_items(conn, task, &ended.items).await?;
        sqlx::query(
            "update tasks set tallied = 1 where id in (select unhex(value) from json_each($1))",
        )
        .bind(rows::id_list(ended.failed.iter().copied()))
        .execute(&mut *conn)
        .await?;
        sqlx::query(SUPERSEDE)
            .bind(rows::id_list(ended.others.iter().copied()))
            .execute(&mut *conn)
            .await?;
        prune::forget(conn, ended.others.iter().copied()).await?;
        let count = |outcome| to_i64(ended.items.iter().filter(|i| i.outcome == outcome).count());
        sqlx::query(
            "update backfills set succeeded = succeeded + $2, failed = failed + $3,
                                  cancelled_count = cancelled_count + $4
             where task_id = $1",
        )
        .bind(task)
        .bind(count(ItemOutcome::Succeeded))
        .bind(count(ItemOutcome::Failed))
        .bind(count(ItemOutcome::Cancelled))
        .execute(&mut *conn)
        .await?;
        touch(conn, now, task).await?;
    }
    end_if_done(conn, now, task).await?;
    Ok(rows.len() as u64)
}

/// Children that a tally has found ended.
#[derive(Default)]
struct Ended {
    items: Vec<Item>,
    /// Their tasks are kept for whoever wants to try them again.
    failed: Vec<Uuid>,
    others: Vec<Uuid>,
}

impl Ended {
    fn add(&mut self, row: &SqliteRow) -> Result<(), StoreError> {
        let outcome: ItemOutcome = rows::name(row, "status")?;
        let kept = if outcome == ItemOutcome::Failed { &mut self.failed } else { &mut self.others };
        kept.push(row.try_get("id")?);
        self.items.push(Item {
            id: row.try_get("image_id")?,
            outcome,
            reason: row.try_get("reason")?,
            detail: row.try_get("detail")?,
            source: row.try_get("source")?,
        });
        Ok(())
    }
}

async fn end_if_done(
    conn: &mut SqliteConnection,
    now: i64,
    task: TaskId,
) -> Result<(), StoreError> {
    let status: Option<String> = sqlx::query_scalar(
        "update backfills set state = 'ended', foreman = null, paused = 0
         where task_id = $1 and state = 'walked' and retrying_since is null
           and (spec ->> 'dry_run' or planned = succeeded + failed + cancelled_count)
         returning case when cancelled then 'cancelled'
                        when problem is not null or failed + refused > 0 then 'failed'
                        else 'succeeded' end",
    )
    .bind(task)
    .fetch_optional(&mut *conn)
    .await?;
    let Some(status) = status else { return Ok(()) };
    sqlx::query(
        "update tasks set status = $2, finished_at = $3, updated_at = $3, version = version + 1
         where id = $1",
    )
    .bind(task)
    .bind(status)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn pause(
    conn: &mut SqliteConnection,
    now: i64,
    task: TaskId,
    paused: bool,
) -> Result<bool, StoreError> {
    let found = sqlx::query(
        "update backfills set paused = $2
         where task_id = $1 and state <> 'ended' and not cancelled
           and (not $2 or state = 'walking' or retrying_since is not null)",
    )
    .bind(task)
    .bind(paused)
    .execute(&mut *conn)
    .await?;
    if found.rows_affected() == 0 {
        return Ok(false);
    }
    touch(conn, now, task).await?;
    Ok(true)
}

/// Cancels a backfill's walk. `None` if this is no backfill, `false` if it has ended; else the children
/// that are open.
pub async fn cancel(
    conn: &mut SqliteConnection,
    now: i64,
    task: TaskId,
) -> Result<Option<(bool, Vec<TaskId>)>, StoreError> {
    let state: Option<String> =
        sqlx::query_scalar("select state from backfills where task_id = $1")
            .bind(task)
            .fetch_optional(&mut *conn)
            .await?;
    match state.as_deref() {
        None => return Ok(None),
        Some("ended") => return Ok(Some((false, Vec::new()))),
        Some(_) => {}
    }
    sqlx::query(
        "update backfills set cancelled = 1, paused = 0, retrying_since = null, state = 'walked'
         where task_id = $1",
    )
    .bind(task)
    .execute(&mut *conn)
    .await?;
    touch(conn, now, task).await?;
    let open = sqlx::query_scalar(
        "select id from tasks
         where backfill_id = $1 and not tallied and status in ('queued', 'running') order by id",
    )
    .bind(task)
    .fetch_all(conn)
    .await?;
    Ok(Some((true, open)))
}

/// Opens failed backfills again, so that their children are tried again. Answers which of `ids` these are.
pub async fn reopen(
    conn: &mut SqliteConnection,
    now: i64,
    ids: &[TaskId],
) -> Result<Vec<TaskId>, StoreError> {
    let again: Vec<TaskId> = sqlx::query_scalar(
        "update backfills set state = 'walked', retrying_since = $2, paused = 0
         where task_id in (select unhex(value) from json_each($1)) and failed > 0
           and exists (select 1 from tasks t where t.id = task_id and t.status = 'failed')
         returning task_id",
    )
    .bind(rows::id_list(ids.iter().map(|id| id.0)))
    .bind(now)
    .fetch_all(&mut *conn)
    .await?;
    run_again(conn, now, &again).await?;
    Ok(again)
}

async fn run_again(
    conn: &mut SqliteConnection,
    now: i64,
    backfills: &[TaskId],
) -> Result<(), StoreError> {
    sqlx::query(
        "update tasks
         set status = 'running', finished_at = null, version = version + 1, updated_at = $2
         where id in (select unhex(value) from json_each($1))",
    )
    .bind(rows::id_list(backfills.iter().map(|id| id.0)))
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Takes those of `tasks` that are failed children out of the counts of their backfills: they are about to
/// be tried again.
pub async fn uncount(
    conn: &mut SqliteConnection,
    now: i64,
    tasks: &[TaskId],
) -> Result<(), StoreError> {
    let backfills: Vec<TaskId> = sqlx::query_scalar(
        "update tasks set tallied = 0
         where id in (select unhex(value) from json_each($1))
           and backfill_id is not null and tallied
         returning backfill_id",
    )
    .bind(rows::id_list(tasks.iter().map(|id| id.0)))
    .fetch_all(&mut *conn)
    .await?;
    for backfill in &backfills {
        sqlx::query(
            "update backfills
             set failed = failed - 1, state = case state when 'ended' then 'walked' else state end
             where task_id = $1",
        )
        .bind(backfill)
        .execute(&mut *conn)
        .await?;
    }
    run_again(conn, now, &backfills).await
}

/// Failed children of a backfill, oldest first.
pub async fn failed_children(
    reads: &SqlitePool,
    task: TaskId,
    limit: u32,
) -> Result<Vec<TaskId>, StoreError> {
    Ok(sqlx::query_scalar(
        "select t.id from tasks t join images i on i.id = t.image_id
                join backfills b on b.task_id = t.backfill_id
         where t.backfill_id = $1 and t.tallied and t.status = 'failed'
           and t.finished_at <= b.retrying_since and i.discarded_at is null
         order by t.id limit $2",
    )
    .bind(task)
    .bind(limit)
    .fetch_all(reads)
    .await?)
}

pub async fn retried(conn: &mut SqliteConnection, task: TaskId) -> Result<(), StoreError> {
    sqlx::query("update backfills set retrying_since = null where task_id = $1")
        .bind(task)
        .execute(conn)
        .await?;
    Ok(())
}

pub async fn report(
    reads: &SqlitePool,
    task: TaskId,
    after: Option<Uuid>,
    limit: u32,
) -> Result<Vec<Item>, StoreError> {
    let rows = sqlx::query(
        "select item, outcome, reason, detail, source from backfill_items
         where task_id = $1 and item > $2 order by item limit $3",
    )
    .bind(task)
    .bind(after.unwrap_or(Uuid::nil()))
    .bind(limit)
    .fetch_all(reads)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Item {
                id: row.try_get("item")?,
                outcome: rows::name(row, "outcome")?,
                reason: row.try_get("reason")?,
                detail: row.try_get("detail")?,
                source: row.try_get("source")?,
            })
        })
        .collect()
}
