//! What the shared modules need to know about PostgreSQL. `now()`, the database's clock, decides all times, so
//! that statements have no parameter for the time.

use std::time::Duration;

use chrono::{DateTime, Utc};
use safelight_domain::{ContentHash, TaskId};
use safelight_store::{ReportLine, StoreError};
use sqlx::{
    PgConnection, Postgres, QueryBuilder, Row,
    error::DatabaseError,
    postgres::{PgArguments, PgRow, types::PgInterval},
    query::Query,
};
use uuid::Uuid;

use crate::{
    convert::{from_sql, micros},
    locks::Exclusive,
};

pub type Db = Postgres;
pub type DbRow = PgRow;
pub type Conn = PgConnection;
pub type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// The time of a transaction, which the database knows.
#[derive(Debug, Clone, Copy)]
pub struct Now;

/// The time. `$time`, the parameter for it, does not exist on PostgreSQL.
macro_rules! now {
    ($time:literal) => {
        "now()"
    };
}

/// A [`span`] before now.
macro_rules! ago {
    ($span:literal, $time:literal) => {
        concat!("now() - ", $span)
    };
}

/// A [`span`] after now.
macro_rules! later {
    ($span:literal, $time:literal) => {
        concat!("now() + ", $span)
    };
}

/// Microseconds since the time in a column.
macro_rules! micros_since {
    ($column:literal, $time:literal) => {
        concat!("cast(extract(epoch from now() - ", $column, ") * 1000000 as bigint)")
    };
}

/// Whether the value before it is in a list of [`ids`] or [`hashes`].
macro_rules! any_of {
    ($list:literal) => {
        concat!("= any(", $list, ")")
    };
}

/// Whether the value before it is in a list of [`texts`].
macro_rules! any_text_of {
    ($list:literal) => {
        concat!("= any(", $list, ")")
    };
}

/// The function that returns the greatest of its arguments.
macro_rules! greatest {
    () => {
        "greatest"
    };
}

/// The function that returns the least of its arguments.
macro_rules! least {
    () => {
        "least"
    };
}

/// The time of the statement, not that of its transaction: it never shows an earlier time than one that
/// another transaction has read and committed. `$time` is its parameter, which does not exist on PostgreSQL.
macro_rules! clock_time {
    ($time:literal) => {
        "clock_timestamp()"
    };
}

/// Locks the rows of a query.
macro_rules! lock_rows {
    ($clause:literal) => {
        $clause
    };
}

pub(super) use {
    ago, any_of, any_text_of, clock_time, greatest, later, least, lock_rows, micros_since, now,
};

/// Binds the time as the last parameter, if the dialect has one.
pub fn bind_now(query: Statement<'_>, _: Now) -> Statement<'_> {
    query
}

/// Adds the time to a query.
pub fn push_now(query: &mut QueryBuilder<Postgres>, _: Now) {
    query.push("now()");
}

/// A duration as a parameter.
pub fn span(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: micros(duration) }
}

/// A point in time as a parameter.
pub const fn instant(time: DateTime<Utc>) -> DateTime<Utc> {
    time
}

/// Ids as one parameter, for `any_of!`.
pub fn ids(ids: impl IntoIterator<Item = Uuid>) -> Vec<Uuid> {
    ids.into_iter().collect()
}

/// Hashes as one parameter, for `any_of!`.
pub fn hashes(hashes: &[ContentHash]) -> Vec<&[u8]> {
    hashes.iter().map(ContentHash::as_bytes).collect()
}

/// Texts as one parameter, for `any_text_of!`.
pub fn texts(texts: &[String]) -> &[String] {
    texts
}

/// A count as a parameter. Counts never come near the limit.
pub fn integer(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// A number of a `smallint` column.
pub fn small<T: TryFrom<i16>>(row: &PgRow, column: &str) -> Result<T, StoreError> {
    from_sql(row.try_get::<i16, _>(column)?, column)
}

/// A number of an `integer` column.
pub fn number<T: TryFrom<i32>>(row: &PgRow, column: &str) -> Result<T, StoreError> {
    from_sql(row.try_get::<i32, _>(column)?, column)
}

/// A number of a `bigint` column.
pub fn big<T: TryFrom<i64>>(row: &PgRow, column: &str) -> Result<T, StoreError> {
    from_sql(row.try_get::<i64, _>(column)?, column)
}

/// A point in time.
pub fn time(row: &PgRow, column: &str) -> Result<DateTime<Utc>, StoreError> {
    Ok(row.try_get(column)?)
}

/// A point in time that may be missing.
pub fn optional_time(row: &PgRow, column: &str) -> Result<Option<DateTime<Utc>>, StoreError> {
    Ok(row.try_get(column)?)
}

/// Waits until no other transaction makes this decision, and keeps others waiting until this one ends.
pub async fn lock(conn: &mut PgConnection, what: Exclusive<'_>) -> Result<(), StoreError> {
    /// A number without a meaning.
    const IMPORTS: i64 = 0x7361_6665_696d_706f;
    let query = match what {
        Exclusive::Quota(owner) => {
            sqlx::query("select pg_advisory_xact_lock(hashtextextended('quota of ' || $1, 0))")
                .bind(owner.clone())
        }
        Exclusive::SigningKeys(owner) => sqlx::query(
            "select pg_advisory_xact_lock(hashtextextended('signing keys of ' || $1, 0))",
        )
        .bind(owner.clone()),
        Exclusive::Imports => sqlx::query("select pg_advisory_xact_lock($1)").bind(IMPORTS),
    };
    query.execute(conn).await?;
    Ok(())
}

/// The line of history that the server follows, and the database's own number in it: a promoted standby, a
/// recovery to a point in time and a restored dump each begin another one. `None` where the server does not tell.
pub async fn lineage(conn: &mut PgConnection) -> Result<Option<String>, StoreError> {
    // The first eight digits of the name of a WAL file are the timeline.
    let lineage = sqlx::query_scalar(
        "select s.system_identifier || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8)
                || '/' || d.oid
         from pg_control_system() s, pg_database d where d.datname = current_database()",
    );
    match lineage.fetch_one(conn).await {
        Ok(lineage) => Ok(lineage),
        Err(error) if is_withheld(&error) => {
            tracing::debug!(%error, "the server does not tell its timeline");
            Ok(None)
        }
        // A time-out or a lost connection says nothing about the timeline.
        Err(error) => Err(error.into()),
    }
}

/// Whether the server does not let us call a function, or has none of this name. Services that are compatible with
/// PostgreSQL do without some.
fn is_withheld(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    // insufficient_privilege, undefined_function, undefined_table, undefined_column, feature_not_supported
    matches!(code.as_deref(), Some("42501" | "42883" | "42P01" | "42703" | "0A000"))
}

/// See [`Deletions::forget_blob`](safelight_store::Deletions::forget_blob). One statement, so that the decision
/// and its effects see the same images.
pub async fn forget_blob(conn: &mut PgConnection, sha256: ContentHash) -> Result<bool, StoreError> {
    let wanted: bool = sqlx::query_scalar(
        "with wanted as (
             select exists (select from images where sha256 = $1 and discarded_at is null) as yes),
         forgotten as (
             delete from renditions using wanted where sha256 = $1 and not wanted.yes),
         placeholder as (
             delete from placeholders using wanted where sha256 = $1 and not wanted.yes)
         select yes from wanted",
    )
    .bind(sha256.as_bytes())
    .fetch_one(conn)
    .await?;
    Ok(!wanted)
}

/// Writes lines into the report of a backfill. A line that is there already is replaced.
pub async fn write_lines(
    conn: &mut PgConnection,
    backfill: TaskId,
    lines: &[ReportLine],
) -> Result<(), StoreError> {
    if lines.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into backfill_items (task_id, item, outcome, reason, detail, source)
         select $1, * from unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[])
         on conflict (task_id, item) do update
         set outcome = excluded.outcome, reason = excluded.reason, detail = excluded.detail",
    )
    .bind(backfill)
    .bind(lines.iter().map(|line| line.id).collect::<Vec<_>>())
    .bind(lines.iter().map(|line| line.outcome.as_str()).collect::<Vec<_>>())
    .bind(lines.iter().map(|line| line.reason.clone()).collect::<Vec<_>>())
    .bind(lines.iter().map(|line| line.detail.clone()).collect::<Vec<_>>())
    .bind(lines.iter().map(|line| line.source.clone()).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    Ok(())
}
