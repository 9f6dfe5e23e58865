//! A backfill's next step: what it looked at is counted, and the work for it handed out, at once.

use std::{collections::BTreeMap, time::Duration};

use safelight_domain::{BackfillSpec, Visibility};
use safelight_store::{Advance, Child, StoreError};
use sqlx::{Row, SqliteConnection, types::Json};

use super::{touch, walk::without_known, write_items};
use crate::{
    convert::{micros, to_i64},
    sqlite::access,
};

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
