//! Rows of backfills and of their reports.

use std::collections::BTreeMap;

use safelight_domain::{Backfill, BackfillSpec, TaskId};
use safelight_store::{ReportLine, StoreError};
use sqlx::{Row, types::Json};

use super::{
    dialect::{DbRow, any_of, big, ids, micros_since, time},
    rows,
    store::SqlStore,
};
use crate::convert::from_sql;

/// A backfill `b` with its task `t`; `$time` is the parameter for the time.
macro_rules! backfill_columns {
    ($time:literal) => {
        concat!(
            " b.task_id, t.owner, t.created_at, b.spec, b.state, b.paused, b.cancelled,
              b.retrying_since is not null as retrying, b.cursor,
              b.expected, b.planned, b.skipped, b.refused, b.succeeded, b.failed, b.cancelled_count,
              b.problem, ",
            micros_since!("b.fed_at", $time),
            " as rested "
        )
    };
}

pub(super) use backfill_columns;

/// Those of `tasks` that are backfills.
pub async fn of_tasks(store: &SqlStore, tasks: &[TaskId]) -> Result<Vec<Backfill>, StoreError> {
    let query = sqlx::query(concat!(
        "select",
        backfill_columns!("$2"),
        "from backfills b join tasks t on t.id = b.task_id where b.task_id ",
        any_of!("$1")
    ));
    let query = query.bind(ids(tasks.iter().map(|id| id.0)));
    store.fetch_all(store.at_now(query)).await?.iter().map(backfill).collect()
}

/// A backfill from `backfill_columns!`.
#[allow(clippy::cast_precision_loss)] // of microseconds within centuries
pub fn backfill(row: &DbRow) -> Result<Backfill, StoreError> {
    let expected: Option<i64> = row.try_get("expected")?;
    let rested: Option<i64> = row.try_get("rested")?;
    Ok(Backfill {
        id: row.try_get("task_id")?,
        owner: row.try_get("owner")?,
        started_at: time(row, "created_at")?,
        spec: row.try_get::<Json<BackfillSpec>, _>("spec")?.0,
        state: rows::name(row, "state")?,
        paused: row.try_get("paused")?,
        cancelled: row.try_get("cancelled")?,
        retrying: row.try_get("retrying")?,
        cursor: row.try_get("cursor")?,
        expected: expected.map(|count| from_sql(count, "expected")).transpose()?,
        planned: big(row, "planned")?,
        skipped: row.try_get::<Json<BTreeMap<String, u64>>, _>("skipped")?.0,
        refused: big(row, "refused")?,
        succeeded: big(row, "succeeded")?,
        failed: big(row, "failed")?,
        cancelled_images: big(row, "cancelled_count")?,
        problem: row.try_get("problem")?,
        rested_seconds: rested.map(|micros| micros as f64 / 1e6),
    })
}

/// A line of a report: `id` and `outcome` name the columns of its id and outcome.
pub fn report_line(row: &DbRow, id: &str, outcome: &str) -> Result<ReportLine, StoreError> {
    Ok(ReportLine {
        id: row.try_get(id)?,
        outcome: rows::name(row, outcome)?,
        reason: row.try_get("reason")?,
        detail: row.try_get("detail")?,
        source: row.try_get("source")?,
    })
}
