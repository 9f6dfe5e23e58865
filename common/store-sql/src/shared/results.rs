//! Collecting the results of a backfill's children: they are counted, reported and removed. The column
//! `tallied` marks failed children whose results are collected, since they stay.

use safelight_domain::{ItemOutcome, TaskId};
use safelight_store::{CollectedResults, StoreError};
use sqlx::Row;

use super::{
    backfill_rows::report_line,
    backfill_state::touch,
    dialect::{Conn, Now, any_of, bind_now, ids, lock_rows, now, write_lines},
    prune,
    store::SqlStore,
};
use crate::convert::to_i64;

/// Collects up to `limit` results; see [`Backfills::collect_results`](safelight_store::Backfills::collect_results).
pub async fn collect_results(
    store: &SqlStore,
    backfill: TaskId,
    limit: u32,
) -> Result<u64, StoreError> {
    // Most calls find nothing, and should not write.
    let query = sqlx::query(
        "select 1 from backfills b
         where b.task_id = $1 and (b.state = 'walked' or exists (
             select 1 from tasks t
             where t.backfill_id = $1 and not t.tallied
               and t.status in ('succeeded', 'failed', 'cancelled')))",
    );
    if store.fetch_optional(query.bind(backfill)).await?.is_none() {
        return Ok(0);
    }
    store.transaction(move |conn, now| Box::pin(collect(conn, now, backfill, limit))).await
}

/// Ended children that are not counted, each with its report line.
const ENDED: &str = concat!(
    "select t.id, t.image_id, t.source, j.error_code as reason,
            -- A failure because the picture was deleted meanwhile counts as a cancellation.
            case when t.status = 'failed' and i.discarded_at is not null then 'cancelled'
                 else t.status end as status,
            coalesce(j.error_message, (select string_agg(n.note, '; ') from jobs n
                                       where n.task_id = t.id)) as detail
     from tasks t
     left join images i on i.id = t.image_id
     left join jobs j on j.id = (select f.id from jobs f
                                 where f.task_id = t.id and f.status = 'failed'
                                 order by f.id limit 1)
     where t.backfill_id = $1 and not t.tallied and t.status in ('succeeded', 'failed', 'cancelled')
     order by t.id limit $2 ",
    lock_rows!("for update of t")
);

/// Marks failed jobs whose work one of these tasks has done later.
const SUPERSEDE: &str = concat!(
    "update jobs as f set superseded = true
     from jobs s, tasks t
     where s.task_id ",
    any_of!("$1"),
    " and s.status = 'succeeded'
       and t.image_id = s.image_id and f.task_id = t.id
       and f.kind = s.kind and f.status = 'failed' and f.updated_at < s.updated_at"
);

async fn collect(
    conn: &mut Conn,
    now: Now,
    backfill: TaskId,
    limit: u32,
) -> Result<u64, StoreError> {
    sqlx::query(concat!("select 1 from backfills where task_id = $1 ", lock_rows!("for update")))
        .bind(backfill)
        .execute(&mut *conn)
        .await?;
    let query = sqlx::query(ENDED).bind(backfill).bind(i64::from(limit));
    let rows = query.fetch_all(&mut *conn).await?;
    let mut ended = CollectedResults::default();
    for row in &rows {
        ended.add(row.try_get("id")?, report_line(row, "image_id", "status")?);
    }
    if !rows.is_empty() {
        record(conn, backfill, &ended).await?;
        touch(conn, now, backfill).await?;
    }
    end_if_done(conn, now, backfill).await?;
    Ok(rows.len() as u64)
}

async fn record(
    conn: &mut Conn,
    backfill: TaskId,
    ended: &CollectedResults,
) -> Result<(), StoreError> {
    write_lines(conn, backfill, &ended.lines).await?;
    sqlx::query(SUPERSEDE).bind(ids(ended.others.iter().copied())).execute(&mut *conn).await?;
    sqlx::query(concat!("update tasks set tallied = true where id ", any_of!("$1")))
        .bind(ids(ended.failed.iter().copied()))
        .execute(&mut *conn)
        .await?;
    prune::remove(conn, ended.others.iter().copied()).await?;
    sqlx::query(
        "update backfills
         set succeeded = succeeded + $2, failed = failed + $3,
             cancelled_count = cancelled_count + $4
         where task_id = $1",
    )
    .bind(backfill)
    .bind(to_i64(ended.count(ItemOutcome::Succeeded)))
    .bind(to_i64(ended.count(ItemOutcome::Failed)))
    .bind(to_i64(ended.count(ItemOutcome::Cancelled)))
    .execute(conn)
    .await?;
    Ok(())
}

/// Ends a backfill, and its task, once its walk is over and no child is open. Not with `finish_tasks!`: the
/// task has no jobs, and its status comes from the counts of the backfill.
async fn end_if_done(conn: &mut Conn, now: Now, backfill: TaskId) -> Result<(), StoreError> {
    let query = sqlx::query_scalar(
        "update backfills set state = 'ended', foreman = null, paused = false
         where task_id = $1 and state = 'walked' and retrying_since is null
           and (cast(spec ->> 'dry_run' as boolean)
                or planned = succeeded + failed + cancelled_count)
         returning case when cancelled then 'cancelled'
                        when problem is not null or failed + refused > 0 then 'failed'
                        else 'succeeded' end",
    );
    let status: Option<String> = query.bind(backfill).fetch_optional(&mut *conn).await?;
    let Some(status) = status else { return Ok(()) };
    let query = sqlx::query(concat!(
        "update tasks
         set status = $2, version = version + 1, finished_at = ",
        now!("$3"),
        ", updated_at = ",
        now!("$3"),
        " where id = $1"
    ));
    bind_now(query.bind(backfill).bind(status), now).execute(conn).await?;
    Ok(())
}
