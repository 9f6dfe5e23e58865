//! One step of a backfill's walk: counts what it found, and creates the child tasks.

use std::{collections::BTreeMap, time::Duration};

use safelight_domain::{BackfillSpec, Owner, Quota, Visibility};
use safelight_store::{BackfillStep, StoreError};
use sqlx::{Row, types::Json};

use super::{
    access::usage,
    backfill_state::touch,
    create::{create_images, create_tasks},
    dialect::{Conn, Now, ago, bind_now, greatest, lock, lock_rows, now, span, write_lines},
    walk::sound_images,
};
use crate::{
    convert::to_i64,
    locks::Exclusive,
    new_task::{NewImage, NewTask},
};

/// Records a step; see [`Backfills::advance_backfill`](safelight_store::Backfills::advance_backfill).
pub async fn advance(conn: &mut Conn, now: Now, step: BackfillStep) -> Result<bool, StoreError> {
    let query = sqlx::query(concat!(
        "select b.skipped, b.spec, t.owner from backfills b join tasks t on t.id = b.task_id
         where b.task_id = $1 ",
        lock_rows!("for update of b")
    ));
    let row = query.bind(step.task).fetch_optional(&mut *conn).await?;
    let Some(row) = row else { return Ok(false) };
    let Json(spec) = row.try_get::<Json<BackfillSpec>, _>("spec")?;
    let Json(mut skipped) = row.try_get::<Json<BTreeMap<String, u64>>, _>("skipped")?;
    let owner: Owner = row.try_get("owner")?;
    let mut step = skip_duplicates(conn, step).await?;
    if !spec.dry_run && !spec.quota.is_unlimited() {
        step = refuse_over_quota(conn, step, spec.quota, &owner).await?;
    }
    let refused = step.count(&mut skipped);
    if !move_cursor(conn, now, &step, refused, &skipped, spec.dry_run).await? {
        return Ok(false);
    }
    if !spec.dry_run {
        create_children(conn, now, &step, &owner, spec.visibility).await?;
        write_lines(conn, step.task, &step.without_work).await?;
    }
    write_lines(conn, step.task, &step.done).await?;
    touch(conn, now, step.task).await?;
    Ok(true)
}

/// Skips pictures that other imports have created meanwhile. No other import creates images until the
/// transaction ends.
async fn skip_duplicates(conn: &mut Conn, step: BackfillStep) -> Result<BackfillStep, StoreError> {
    let imported = step.hashes();
    if imported.is_empty() {
        return Ok(step);
    }
    lock(conn, Exclusive::Imports).await?;
    let known = sound_images(conn, step.task, &imported).await?;
    Ok(step.skip_duplicates(&known))
}

/// Refuses pictures that exceed the owner's quota. Nothing else is recorded for the owner until the
/// transaction ends.
async fn refuse_over_quota(
    conn: &mut Conn,
    step: BackfillStep,
    quota: Quota,
    owner: &Owner,
) -> Result<BackfillStep, StoreError> {
    if step.hashes().is_empty() {
        return Ok(step);
    }
    lock(conn, Exclusive::Quota(owner)).await?;
    let used = usage(conn, owner).await?;
    Ok(step.refuse_over_quota(quota, used))
}

/// Adds the step's counts. Returns `false` unless the walk is still where the step started, and active.
async fn move_cursor(
    conn: &mut Conn,
    now: Now,
    step: &BackfillStep,
    refused: u64,
    skipped: &BTreeMap<String, u64>,
    dry_run: bool,
) -> Result<bool, StoreError> {
    let query = sqlx::query(concat!(
        "update backfills
         set cursor = $3, expected = coalesce($4, expected), planned = planned + $5,
             succeeded = succeeded + $11, refused = refused + $6, skipped = $7, problem = $9,
             state = case when $8 then 'walked' else state end,
             fed_at = case when $5 = 0 then fed_at
                           else ",
        greatest!(),
        "(coalesce(fed_at, ",
        now!("$13"),
        ") + $10, ",
        ago!("$12", "$13"),
        ") end
         where task_id = $1 and cursor is not distinct from $2 and state = 'walking' and not paused"
    ));
    let query = query
        .bind(step.task)
        .bind(&step.from)
        .bind(&step.to)
        .bind(step.expected.map(to_i64))
        .bind(to_i64(step.work.len() + step.done.len()))
        .bind(to_i64(refused))
        .bind(Json(skipped))
        .bind(step.is_last)
        .bind(&step.problem)
        .bind(span(Duration::try_from_secs_f64(step.paced_seconds).unwrap_or_default()))
        .bind(if dry_run { 0 } else { to_i64(step.done.len()) })
        // An unused rate is kept for a second at most.
        .bind(span(Duration::from_secs(1)));
    Ok(bind_now(query, now).execute(conn).await?.rows_affected() > 0)
}

async fn create_children(
    conn: &mut Conn,
    now: Now,
    step: &BackfillStep,
    owner: &Owner,
    visibility: Option<Visibility>,
) -> Result<(), StoreError> {
    let visibility = visibility.unwrap_or(Visibility::Public);
    let images: Vec<_> =
        step.work.iter().filter_map(|child| NewImage::of_child(child, owner, visibility)).collect();
    create_images(conn, now, &images).await?;
    let tasks: Vec<_> = step
        .work
        .iter()
        .map(|child| NewTask::of_child(child, step.task, step.max_attempts))
        .collect();
    create_tasks(conn, now, &tasks).await
}
