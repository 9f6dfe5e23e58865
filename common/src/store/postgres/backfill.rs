//! Backfills. Whoever changes one locks its row first, and the rows of its children's jobs and tasks
//! only after it.

use std::{collections::BTreeMap, time::Duration};

use sqlx::{PgConnection, PgPool, Postgres, QueryBuilder, Row, postgres::PgRow, types::Json};
use uuid::Uuid;

use super::{
    accept::LOCK_QUOTA,
    access, interval, prune,
    rows::{self, big, blob_joins, image_columns},
};
use crate::{
    domain::{
        Backfill, BackfillSpec, ContentHash, Failure, Image, ImageId, ItemOutcome, Owner, Quota,
        TaskId, Visibility, WorkerId,
    },
    store::{
        Advance, Child, ImageFilter, Item, NewBackfill, Obstacle, StoreError, convert::to_i64,
    },
};

/// A backfill `b` with its task `t`.
macro_rules! backfill_columns {
    () => {
        " b.task_id, t.owner, t.created_at, b.spec, b.state, b.paused, b.cancelled,
          b.retrying_since is not null as retrying, b.cursor,
          b.expected, b.planned, b.skipped, b.refused, b.succeeded, b.failed, b.cancelled_count,
          b.problem, extract(epoch from now() - b.fed_at)::float8 as rested "
    };
}

pub async fn create(pool: &PgPool, new: &NewBackfill) -> Result<bool, StoreError> {
    sqlx::query(
        "with task as (
             insert into tasks (id, kind, lane, status, jobs_total, owner)
             values ($1, 'backfill', 'bulk', 'queued', 0, $2)
             on conflict (id) do nothing returning id)
         insert into backfills (task_id, spec) select id, $3 from task",
    )
    .bind(new.task)
    .bind(&new.owner)
    .bind(Json(&new.spec))
    .execute(pool)
    .await?;
    Ok(sqlx::query_scalar(
        "select exists (select from backfills b join tasks t on t.id = b.task_id
                        where b.task_id = $1 and t.owner = $2 and b.spec = $3)",
    )
    .bind(new.task)
    .bind(&new.owner)
    .bind(Json(&new.spec))
    .fetch_one(pool)
    .await?)
}

pub async fn lead(
    pool: &PgPool,
    foreman: WorkerId,
    hold: Duration,
    limit: u32,
) -> Result<Vec<Backfill>, StoreError> {
    let rows = sqlx::query(concat!(
        "with mine as (
             select task_id from backfills
             where state <> 'ended' and (foreman = $1 or foreman is null or foreman_until <= now())
             order by paused, task_id limit $3),
         due as (
             select task_id from backfills
             where task_id = any(array(select task_id from mine))
               and (foreman is null or foreman_until <= now()
                    or foreman = $1
                       and foreman_until not between now() + $2 * 0.67 and now() + $2)
             for update skip locked),
         renewed as (
             update backfills b set foreman = $1, foreman_until = now() + $2
             from due where b.task_id = due.task_id
             returning b.task_id)
         select",
        backfill_columns!(),
        "from backfills b join tasks t on t.id = b.task_id
         where b.task_id = any(array(select task_id from mine))
           and (b.foreman = $1 or b.task_id in (select task_id from renewed))
         order by b.paused, b.task_id"
    ))
    .bind(foreman)
    .bind(interval(hold))
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await?;
    rows.iter().map(backfill).collect()
}

/// Those of `ids` that are backfills.
pub async fn of_tasks(pool: &PgPool, ids: &[TaskId]) -> Result<Vec<Backfill>, StoreError> {
    let rows = sqlx::query(concat!(
        "select",
        backfill_columns!(),
        "from backfills b join tasks t on t.id = b.task_id where b.task_id = any($1)"
    ))
    .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
    .fetch_all(pool)
    .await?;
    rows.iter().map(backfill).collect()
}

fn backfill(row: &PgRow) -> Result<Backfill, StoreError> {
    Ok(Backfill {
        id: row.try_get("task_id")?,
        owner: row.try_get("owner")?,
        begun_at: row.try_get("created_at")?,
        spec: row.try_get::<Json<BackfillSpec>, _>("spec")?.0,
        state: rows::name(row, "state")?,
        paused: row.try_get("paused")?,
        cancelled: row.try_get("cancelled")?,
        retrying: row.try_get("retrying")?,
        cursor: row.try_get("cursor")?,
        expected: row
            .try_get::<Option<i64>, _>("expected")?
            .map(|_| big(row, "expected"))
            .transpose()?,
        planned: big(row, "planned")?,
        skipped: row.try_get::<Json<BTreeMap<String, u64>>, _>("skipped")?.0,
        refused: big(row, "refused")?,
        succeeded: big(row, "succeeded")?,
        failed: big(row, "failed")?,
        cancelled_images: big(row, "cancelled_count")?,
        problem: row.try_get("problem")?,
        rested_seconds: row.try_get("rested")?,
    })
}

fn push_filter(query: &mut QueryBuilder<Postgres>, filter: &ImageFilter) {
    query.push(" where discarded_at is null and created_at <= ").push_bind(filter.until);
    if let Some(after) = filter.created_after {
        query.push(" and created_at >= ").push_bind(after);
    }
    if let Some(format) = filter.format {
        query.push(" and format = ").push_bind(format.as_str());
    }
}

pub async fn count_images(pool: &PgPool, filter: &ImageFilter) -> Result<u64, StoreError> {
    let mut query = QueryBuilder::new("select count(*) as images from images");
    push_filter(&mut query, filter);
    big(&query.build().fetch_one(pool).await?, "images")
}

pub async fn walk_images(
    pool: &PgPool,
    filter: &ImageFilter,
    after: Option<ImageId>,
    limit: u32,
) -> Result<Vec<Image>, StoreError> {
    let mut query = QueryBuilder::new("with page as (select * from images");
    push_filter(&mut query, filter);
    query.push(" and id > ").push_bind(after.unwrap_or(ImageId(Uuid::nil())));
    query.push(" order by id limit ").push_bind(i64::from(limit));
    query.push(concat!(
        ") select",
        image_columns!(),
        "from page i",
        blob_joins!(),
        "order by i.id, r.preset, r.fingerprint, r.format"
    ));
    rows::images(&query.build().fetch_all(pool).await?)
}

/// Whether image `i` has a job that stores it or makes its renditions and is under way, or has failed for
/// good.
macro_rules! under_way {
    () => {
        "exists (select from tasks t join jobs j on j.task_id = t.id
                 where t.image_id = i.id and j.kind in ('write', 'thumbnail')
                   and j.status in ('queued', 'running'))"
    };
}
macro_rules! failed {
    () => {
        "exists (select from tasks t join jobs j on j.task_id = t.id
                 where t.image_id = i.id and j.kind in ('write', 'thumbnail')
                   and j.status = 'failed' and not j.superseded
                   and not exists (
                       select from tasks u join jobs s on s.task_id = u.id
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
    pool: &PgPool,
    owner: &Owner,
    hashes: &[ContentHash],
) -> Result<Vec<(ContentHash, ImageId)>, StoreError> {
    let rows = sqlx::query(concat!(
        "select distinct on (i.sha256) i.sha256, i.id from images i
         where i.sha256 = any($1) and i.owner = $2 and i.discarded_at is null
         order by i.sha256, ",
        sound!(),
        " desc, i.id"
    ))
    .bind(hashes.iter().map(ContentHash::as_bytes).collect::<Vec<_>>())
    .bind(owner)
    .fetch_all(pool)
    .await?;
    rows.iter().map(equal).collect()
}

/// An advisory lock of imports, which look up and make images one after the other; a number of no meaning.
const IMPORTS: i64 = 0x7361_6665_696d_706f;

/// The step without pictures that others have taken in meanwhile. Nobody else takes any in until the
/// transaction ends.
async fn without_known(conn: &mut PgConnection, step: &Advance) -> Result<Advance, StoreError> {
    let hashes = step.hashes();
    if hashes.is_empty() {
        return Ok(step.clone());
    }
    sqlx::query("select pg_advisory_xact_lock($1)").bind(IMPORTS).execute(&mut *conn).await?;
    let rows = sqlx::query(concat!(
        "select i.sha256, i.id from images i
         where i.sha256 = any($1) and i.owner = (select owner from tasks where id = $2)
           and i.discarded_at is null and ",
        sound!()
    ))
    .bind(hashes.iter().map(ContentHash::as_bytes).collect::<Vec<_>>())
    .bind(step.task)
    .fetch_all(conn)
    .await?;
    Ok(step.without(&rows.iter().map(equal).collect::<Result<Vec<_>, _>>()?))
}

/// The step without pictures that the owner's quota has no room for. Nothing else is recorded for the owner
/// until the transaction ends.
async fn within_quota(
    conn: &mut PgConnection,
    step: Advance,
    quota: Quota,
    owner: &Owner,
) -> Result<Advance, StoreError> {
    if step.hashes().is_empty() {
        return Ok(step);
    }
    sqlx::query(LOCK_QUOTA).bind(owner).execute(&mut *conn).await?;
    let used = access::usage(conn, owner).await?;
    Ok(step.within(quota, used))
}

fn equal(row: &PgRow) -> Result<(ContentHash, ImageId), StoreError> {
    Ok((rows::hash(row, "sha256")?, row.try_get("id")?))
}

pub async fn obstacles(pool: &PgPool, images: &[ImageId]) -> Result<Vec<Obstacle>, StoreError> {
    // What is open counts more than what has ended, a later end more than an earlier.
    let rows = sqlx::query(
        "select * from (
             select distinct on (t.image_id, j.kind)
                    t.image_id, j.kind, j.status, j.error_code, j.error_message
             from images i join tasks t on t.image_id = i.id join jobs j on j.task_id = t.id
             where i.id = any($1) and j.kind in ('write', 'thumbnail', 'verify')
               and j.status <> 'cancelled' and not j.superseded
               and not (j.kind = 'verify' and j.status = 'failed' and exists (
                   select from images e
                   where e.sha256 = i.sha256 and e.stored_at > j.updated_at))
             order by t.image_id, j.kind, j.status in ('queued', 'running') desc,
                      j.updated_at desc, j.id desc) newest
         where status <> 'succeeded'",
    )
    .bind(images.iter().map(|id| id.0).collect::<Vec<_>>())
    .fetch_all(pool)
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

fn failure(row: &PgRow) -> Result<Option<Failure>, StoreError> {
    let Some(code) = row.try_get::<Option<&str>, _>("error_code")? else { return Ok(None) };
    let message: Option<String> = row.try_get("error_message")?;
    Ok(Some(Failure::new(code.parse()?, message.unwrap_or_default())))
}

/// Adds the step's counts, if the walk still stands where it began and goes on.
const ADVANCE: &str = "
    update backfills b
    set cursor = $3, expected = coalesce($4, expected), planned = planned + $5,
        succeeded = succeeded + $11, refused = refused + $6, skipped = $7, problem = $9,
        state = case when $8 then 'walked' else state end,
        fed_at = case when $5 = 0 then fed_at
                      else greatest(coalesce(fed_at, now()) + $10, now() - interval '1 second') end
    where task_id = $1 and cursor is not distinct from $2 and state = 'walking' and not paused";

const IMAGES: &str = "
    insert into images (id, sha256, bytes, format, title, tags, filename, owner, visibility, fresh)
    select new.*, (select owner from tasks where id = $8), $9, true
    from unnest($1::uuid[], $2::bytea[], $3::bigint[], $4::text[], $5::text[], $6::jsonb[],
                $7::text[]) as new";

const TASKS: &str = "
    insert into tasks (id, kind, lane, status, image_id, jobs_total, owner, backfill_id, source)
    select new.id, new.kind, 'bulk', 'queued', i.id, new.jobs, i.owner, $1, new.source
    from unnest($2::uuid[], $3::text[], $4::uuid[], $5::int[], $6::text[])
         as new (id, kind, image_id, jobs, source)
    join images i on i.id = new.image_id";

const JOBS: &str = "
    with job as (
        insert into jobs (id, task_id, image_id, kind, lane, share, status, max_attempts, needs_version)
        select id, task_id, image_id, kind, 'bulk', $6::text, 'queued', $1,
               case kind when 'thumbnail' then 2 else 1 end
        from unnest($2::uuid[], $3::uuid[], $4::uuid[], $5::text[])
             as new (id, task_id, image_id, kind)
        returning id, kind, lane, share)
    insert into outbox (job_id, kind, lane, share, generation)
    select id, kind, lane, share, 0 from job";

pub async fn advance(pool: &PgPool, step: &Advance) -> Result<bool, StoreError> {
    let mut transaction = pool.begin().await?;
    let row = sqlx::query(
        "select b.skipped, b.spec, t.owner from backfills b join tasks t on t.id = b.task_id
         where b.task_id = $1 for update of b",
    )
    .bind(step.task)
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(row) = row else { return Ok(false) };
    let Json(spec) = row.try_get::<Json<BackfillSpec>, _>("spec")?;
    let Json(mut skipped) = row.try_get::<Json<BTreeMap<String, u64>>, _>("skipped")?;
    let dry_run = spec.dry_run;
    let mut step = without_known(&mut transaction, step).await?;
    if !dry_run && !spec.quota.is_unlimited() {
        step = within_quota(&mut transaction, step, spec.quota, &row.try_get("owner")?).await?;
    }
    let step = &step;
    let refused = step.count(&mut skipped);
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
        .bind(interval(Duration::try_from_secs_f64(step.paced_seconds).unwrap_or_default()))
        .bind(if dry_run { 0 } else { to_i64(step.done.len()) })
        .execute(&mut *transaction)
        .await?;
    if advanced.rows_affected() == 0 {
        return Ok(false);
    }
    if !dry_run {
        make_children(&mut transaction, step, spec.visibility).await?;
        write_items(&mut transaction, step.task, &step.settled).await?;
    }
    write_items(&mut transaction, step.task, &step.done).await?;
    touch(&mut transaction, step.task).await?;
    transaction.commit().await?;
    Ok(true)
}

/// The backfill's document has changed.
async fn touch(conn: &mut PgConnection, task: TaskId) -> Result<(), StoreError> {
    sqlx::query(
        "update tasks
         set version = version + 1, updated_at = now(),
             status = case status when 'queued' then 'running' else status end
         where id = $1",
    )
    .bind(task)
    .execute(conn)
    .await?;
    Ok(())
}

async fn make_children(
    conn: &mut PgConnection,
    step: &Advance,
    visibility: Option<Visibility>,
) -> Result<(), StoreError> {
    let children = &step.work;
    if children.is_empty() {
        return Ok(());
    }
    let imported: Vec<_> =
        children.iter().filter_map(|child| Some((child.image, child.import.as_ref()?))).collect();
    if !imported.is_empty() {
        sqlx::query(IMAGES)
            .bind(imported.iter().map(|(id, _)| id.0).collect::<Vec<_>>())
            .bind(imported.iter().map(|(_, new)| new.sha256.as_bytes()).collect::<Vec<_>>())
            .bind(imported.iter().map(|(_, new)| to_i64(new.bytes)).collect::<Vec<_>>())
            .bind(imported.iter().map(|(_, new)| new.format.as_str()).collect::<Vec<_>>())
            .bind(imported.iter().map(|(_, new)| new.title.clone()).collect::<Vec<_>>())
            .bind(imported.iter().map(|(_, new)| Json(&new.tags)).collect::<Vec<_>>())
            .bind(imported.iter().map(|(_, new)| new.filename.clone()).collect::<Vec<_>>())
            .bind(step.task)
            .bind(visibility.unwrap_or(Visibility::Public).as_str())
            .execute(&mut *conn)
            .await?;
    }
    let source = |child: &Child| child.import.as_ref().map(|import| import.source.clone());
    sqlx::query(TASKS)
        .bind(step.task)
        .bind(children.iter().map(|child| child.task.0).collect::<Vec<_>>())
        .bind(children.iter().map(|child| child.kind.as_str()).collect::<Vec<_>>())
        .bind(children.iter().map(|child| child.image.0).collect::<Vec<_>>())
        .bind(children.iter().map(|child| count(child.jobs.len())).collect::<Vec<_>>())
        .bind(children.iter().map(source).collect::<Vec<_>>())
        .execute(&mut *conn)
        .await?;
    let jobs: Vec<_> =
        children.iter().flat_map(|child| child.jobs.iter().map(move |job| (child, job))).collect();
    sqlx::query(JOBS)
        .bind(i32::try_from(step.max_attempts).unwrap_or(i32::MAX))
        .bind(jobs.iter().map(|(_, (id, _))| id.0).collect::<Vec<_>>())
        .bind(jobs.iter().map(|(child, _)| child.task.0).collect::<Vec<_>>())
        .bind(jobs.iter().map(|(child, _)| child.image.0).collect::<Vec<_>>())
        .bind(jobs.iter().map(|(_, (_, kind))| kind.as_str()).collect::<Vec<_>>())
        .bind(step.task.to_string())
        .execute(conn)
        .await?;
    Ok(())
}

/// For counts, which never come near the limit.
fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

async fn write_items(
    conn: &mut PgConnection,
    task: TaskId,
    items: &[Item],
) -> Result<(), StoreError> {
    if items.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into backfill_items (task_id, item, outcome, reason, detail, source)
         select $1, * from unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[])
         on conflict (task_id, item) do update
         set outcome = excluded.outcome, reason = excluded.reason, detail = excluded.detail",
    )
    .bind(task)
    .bind(items.iter().map(|item| item.id).collect::<Vec<_>>())
    .bind(items.iter().map(|item| item.outcome.as_str()).collect::<Vec<_>>())
    .bind(items.iter().map(|item| item.reason.clone()).collect::<Vec<_>>())
    .bind(items.iter().map(|item| item.detail.clone()).collect::<Vec<_>>())
    .bind(items.iter().map(|item| item.source.clone()).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    Ok(())
}

/// Children that have ended and are not counted, each with what its report line says.
const ENDED: &str = "
    select t.id, t.image_id, t.status, t.source, j.error_code as reason,
           coalesce(j.error_message, (select string_agg(n.note, '; ') from jobs n
                                      where n.task_id = t.id)) as detail
    from tasks t
    left join lateral (
        select error_code, error_message from jobs
        where task_id = t.id and status = 'failed' order by id limit 1) j on true
    where t.backfill_id = $1 and not t.tallied and t.status in ('succeeded', 'failed', 'cancelled')
    order by t.id limit $2 for update of t";

/// Notes for failed jobs that one of these tasks has done later what they could not.
const SUPERSEDE: &str = "
    update jobs f set superseded = true
    from jobs s, tasks t
    where s.task_id = any($1) and s.status = 'succeeded'
      and t.image_id = s.image_id and f.task_id = t.id
      and f.kind = s.kind and f.status = 'failed' and f.updated_at < s.updated_at";

const END: &str = "
    with done as (
        update backfills set state = 'ended', foreman = null, paused = false
        where task_id = $1 and state = 'walked' and retrying_since is null
          and planned = (case when (spec ->> 'dry_run')::boolean then planned
                              else succeeded + failed + cancelled_count end)
        returning task_id, cancelled, problem is not null or failed + refused > 0 as incomplete)
    update tasks t
    set status = case when done.cancelled then 'cancelled' when incomplete then 'failed'
                      else 'succeeded' end,
        finished_at = now(), updated_at = now(), version = version + 1
    from done where t.id = done.task_id";

pub async fn tally(pool: &PgPool, task: TaskId, limit: u32) -> Result<u64, StoreError> {
    let mut transaction = pool.begin().await?;
    let found = sqlx::query("select 1 from backfills where task_id = $1 for update")
        .bind(task)
        .fetch_optional(&mut *transaction)
        .await?;
    if found.is_none() {
        return Ok(0);
    }
    let rows =
        sqlx::query(ENDED).bind(task).bind(i64::from(limit)).fetch_all(&mut *transaction).await?;
    let mut ended = Ended::default();
    for row in &rows {
        ended.add(row)?;
    }
    if !rows.is_empty() {
        write_items(&mut transaction, task, &ended.items).await?;
        sqlx::query(SUPERSEDE).bind(&ended.others).execute(&mut *transaction).await?;
        ended.forget(&mut transaction).await?;
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
        .execute(&mut *transaction)
        .await?;
        touch(&mut transaction, task).await?;
    }
    sqlx::query(END).bind(task).execute(&mut *transaction).await?;
    transaction.commit().await?;
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
    fn add(&mut self, row: &PgRow) -> Result<(), StoreError> {
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

    async fn forget(&self, conn: &mut PgConnection) -> Result<(), StoreError> {
        sqlx::query("update tasks set tallied = true where id = any($1)")
            .bind(&self.failed)
            .execute(&mut *conn)
            .await?;
        prune::forget(conn, &self.others).await
    }
}

pub async fn pause(pool: &PgPool, task: TaskId, paused: bool) -> Result<bool, StoreError> {
    let mut transaction = pool.begin().await?;
    let found = sqlx::query(
        "update backfills set paused = $2
         where task_id = $1 and state <> 'ended' and not cancelled
           and (not $2 or state = 'walking' or retrying_since is not null)",
    )
    .bind(task)
    .bind(paused)
    .execute(&mut *transaction)
    .await?;
    if found.rows_affected() == 0 {
        return Ok(false);
    }
    touch(&mut transaction, task).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Cancels a backfill's walk. `None` if this is no backfill, `false` if it has ended; else the children
/// that are open.
pub async fn cancel(
    conn: &mut PgConnection,
    task: TaskId,
) -> Result<Option<(bool, Vec<TaskId>)>, StoreError> {
    let row = sqlx::query("select state from backfills where task_id = $1 for update")
        .bind(task)
        .fetch_optional(&mut *conn)
        .await?;
    let Some(row) = row else { return Ok(None) };
    if row.try_get::<&str, _>("state")? == "ended" {
        return Ok(Some((false, Vec::new())));
    }
    sqlx::query(
        "update backfills set cancelled = true, paused = false, retrying_since = null, state = 'walked'
         where task_id = $1",
    )
    .bind(task)
    .execute(&mut *conn)
    .await?;
    touch(conn, task).await?;
    let open: Vec<TaskId> = sqlx::query_scalar(
        "select id from tasks
         where backfill_id = $1 and not tallied and status in ('queued', 'running') order by id",
    )
    .bind(task)
    .fetch_all(&mut *conn)
    .await?;
    Ok(Some((true, open)))
}

/// Opens a failed backfill again, for [`retry_children`]. Answers which of `ids` these are.
pub async fn reopen(conn: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<TaskId>, StoreError> {
    Ok(sqlx::query_scalar(
        "with again as (
             update backfills b set state = 'walked', retrying_since = now(), paused = false
             from tasks t
             where b.task_id = any($1) and t.id = b.task_id and t.status = 'failed'
               and b.failed > 0
             returning b.task_id)
         update tasks t
         set status = 'running', finished_at = null, version = version + 1, updated_at = now()
         from again where t.id = again.task_id
         returning t.id",
    )
    .bind(ids)
    .fetch_all(conn)
    .await?)
}

/// Locks the backfills of these failed children, and takes the children out of their counts: they are
/// about to be tried again.
pub async fn uncount(conn: &mut PgConnection, children: &[Uuid]) -> Result<(), StoreError> {
    sqlx::query(
        "with again as (
             update tasks set tallied = false
             where id = any($1) and backfill_id is not null and tallied
             returning backfill_id),
         counted as (select backfill_id, count(*) as children from again group by backfill_id),
         backfill as (
             update backfills b
             set failed = failed - children, state = case state when 'ended' then 'walked' else state end
             from counted where b.task_id = counted.backfill_id
             returning b.task_id)
         update tasks t
         set status = 'running', finished_at = null, version = version + 1, updated_at = now()
         from backfill where t.id = backfill.task_id",
    )
    .bind(children)
    .execute(conn)
    .await?;
    Ok(())
}

/// Failed children of a backfill, oldest first.
pub async fn failed_children(
    pool: &PgPool,
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
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await?)
}

pub async fn retried(pool: &PgPool, task: TaskId) -> Result<(), StoreError> {
    sqlx::query("update backfills set retrying_since = null where task_id = $1")
        .bind(task)
        .execute(pool)
        .await?;
    Ok(())
}

pub async fn report(
    pool: &PgPool,
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
    .bind(i64::from(limit))
    .fetch_all(pool)
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
