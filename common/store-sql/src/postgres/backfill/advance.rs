//! A backfill's next step: what it looked at is counted, and the work for it handed out, at once.

use std::{collections::BTreeMap, time::Duration};

use safelight_domain::{BackfillSpec, Owner, Quota, Visibility};
use safelight_store::{Advance, Child, StoreError};
use sqlx::{PgConnection, PgPool, Row, types::Json};

use super::{touch, walk::without_known, write_items};
use crate::{
    convert::to_i64,
    postgres::{accept::LOCK_QUOTA, access, interval},
};

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
