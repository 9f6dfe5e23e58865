//! What the shared modules need to know about SQLite. Times are microseconds since 1970; the last parameter of
//! a statement is the time.

use std::{
    future::{Ready, ready},
    time::Duration,
};

use chrono::{DateTime, Utc};
use safelight_domain::{ContentHash, TaskId};
use safelight_store::{ReportLine, StoreError};
use sqlx::{
    QueryBuilder, Row, Sqlite, SqliteConnection,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
    types::Json,
};
use uuid::Uuid;

use crate::{
    convert::{from_sql, micros},
    locks::Exclusive,
};

pub type Db = Sqlite;
pub type DbRow = SqliteRow;
pub type Conn = SqliteConnection;
pub type Statement<'q> = Query<'q, Sqlite, SqliteArguments>;

/// The time of a transaction.
pub type Now = i64;

/// The time, from its parameter.
macro_rules! now {
    ($time:literal) => {
        $time
    };
}

/// A [`span`] before now.
macro_rules! ago {
    ($span:literal, $time:literal) => {
        concat!("(", $time, " - ", $span, ")")
    };
}

/// A [`span`] after now.
macro_rules! later {
    ($span:literal, $time:literal) => {
        concat!("(", $time, " + ", $span, ")")
    };
}

/// Microseconds since the time in a column.
macro_rules! micros_since {
    ($column:literal, $time:literal) => {
        concat!("(", $time, " - ", $column, ")")
    };
}

/// Whether the value before it is in a list of [`ids`] or [`hashes`].
macro_rules! any_of {
    ($list:literal) => {
        concat!("in (select unhex(value) from json_each(", $list, "))")
    };
}

/// Whether the value before it is in a list of [`texts`].
macro_rules! any_text_of {
    ($list:literal) => {
        concat!("in (select value from json_each(", $list, "))")
    };
}

/// The function that returns the greatest of its arguments.
macro_rules! greatest {
    () => {
        "max"
    };
}

/// The function that returns the least of its arguments.
macro_rules! least {
    () => {
        "min"
    };
}

/// The time. `$time` is its parameter.
macro_rules! clock_time {
    ($time:literal) => {
        $time
    };
}

/// Nothing: there is one writer, so that no row needs a lock.
macro_rules! lock_rows {
    ($clause:literal) => {
        ""
    };
}

pub(super) use {
    ago, any_of, any_text_of, clock_time, greatest, later, least, lock_rows, micros_since, now,
};

/// Binds the time as the last parameter.
pub fn bind_now(query: Statement<'_>, now: Now) -> Statement<'_> {
    query.bind(now)
}

/// Adds the time to a query.
pub fn push_now(query: &mut QueryBuilder<Sqlite>, now: Now) {
    query.push_bind(now);
}

/// A duration as a parameter.
pub fn span(duration: Duration) -> i64 {
    micros(duration)
}

/// A point in time as a parameter.
pub fn instant(time: DateTime<Utc>) -> i64 {
    time.timestamp_micros()
}

/// Ids as one parameter, for `any_of!`.
pub fn ids(ids: impl IntoIterator<Item = Uuid>) -> Json<Vec<String>> {
    Json(ids.into_iter().map(|id| id.simple().to_string()).collect())
}

/// Hashes as one parameter, for `any_of!`.
pub fn hashes(hashes: &[ContentHash]) -> Json<Vec<String>> {
    Json(hashes.iter().map(ToString::to_string).collect())
}

/// Texts as one parameter, for `any_text_of!`.
pub const fn texts(texts: &[String]) -> Json<&[String]> {
    Json(texts)
}

/// A count as a parameter.
pub const fn integer(number: u32) -> u32 {
    number
}

/// A number. SQLite has one kind of integers.
pub fn number<T: TryFrom<i64>>(row: &SqliteRow, column: &str) -> Result<T, StoreError> {
    from_sql(row.try_get::<i64, _>(column)?, column)
}

pub use self::{number as small, number as big};

/// A point in time.
pub fn time(row: &SqliteRow, column: &str) -> Result<DateTime<Utc>, StoreError> {
    time_of(row.try_get(column)?)
}

/// A point in time that may be missing.
pub fn optional_time(row: &SqliteRow, column: &str) -> Result<Option<DateTime<Utc>>, StoreError> {
    row.try_get::<Option<i64>, _>(column)?.map(time_of).transpose()
}

/// A point in time from its microseconds.
pub fn time_of(micros: i64) -> Result<DateTime<Utc>, StoreError> {
    DateTime::from_timestamp_micros(micros)
        .ok_or_else(|| StoreError::Corrupt(format!("time {micros}")))
}

/// There is one writer, so that no decision is made twice at the same time.
pub fn lock(_: &mut SqliteConnection, _: Exclusive<'_>) -> Ready<Result<(), StoreError>> {
    ready(Ok(()))
}

/// SQLite has no lines of history.
pub fn lineage(_: &mut SqliteConnection) -> Ready<Result<Option<String>, StoreError>> {
    ready(Ok(None))
}

/// See [`Deletions::forget_blob`](safelight_store::Deletions::forget_blob).
pub async fn forget_blob(
    conn: &mut SqliteConnection,
    sha256: ContentHash,
) -> Result<bool, StoreError> {
    let wanted: bool = sqlx::query_scalar(
        "select exists (select 1 from images where sha256 = $1 and discarded_at is null)",
    )
    .bind(sha256.as_bytes())
    .fetch_one(&mut *conn)
    .await?;
    if !wanted {
        sqlx::query(
            "delete from renditions where sha256 = $1;
             delete from placeholders where sha256 = $1",
        )
        .bind(sha256.as_bytes())
        .execute(conn)
        .await?;
    }
    Ok(!wanted)
}

/// Writes lines into the report of a backfill. A line that is there already is replaced.
pub async fn write_lines(
    conn: &mut SqliteConnection,
    backfill: TaskId,
    lines: &[ReportLine],
) -> Result<(), StoreError> {
    for line in lines {
        sqlx::query(
            "insert into backfill_items (task_id, item, outcome, reason, detail, source)
             values ($1, $2, $3, $4, $5, $6)
             on conflict (task_id, item) do update
             set outcome = excluded.outcome, reason = excluded.reason, detail = excluded.detail",
        )
        .bind(backfill)
        .bind(line.id)
        .bind(line.outcome.as_str())
        .bind(line.reason.as_deref())
        .bind(line.detail.as_deref())
        .bind(line.source.as_deref())
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}
