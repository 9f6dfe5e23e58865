//! The database's clock was set back: which times then lie ahead of it, and how they are brought back.
//!
//! A new column of times belongs into [`BROUGHT_BACK`] if something waits until that time, and otherwise into
//! `STAYS` with the reason; a contract test compares both with the schema. In a statement, `$1` is the time, `$2` by
//! how much the clock was set back (zero if nobody saw it), `$3`, `$4` and `$5` are the [`LongestWaits`], and `$6` is
//! the [`TOLERANCE`].
//!
//! A million rows may lie ahead. So they are brought back in batches of [`BATCH`], each in its own short transaction and
//! by the clock of that moment. A batch changes nothing that an earlier one brought back, so a call that fails halfway
//! is simply repeated, and the step stays on record until all batches are done.

use std::{iter, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use safelight_store::{DatabaseClock, LongestWaits, StoreError};
use sqlx::Row;
use uuid::Uuid;

use super::{
    dialect::{
        Conn, DbRow, Now, Statement, bind_now, clock_time, greatest, instant, least, lock_rows,
        span, time,
    },
    notices::insert_notices,
    store::SqlStore,
};

/// A clock that is behind by less was not set back: NTP daemons slow a clock down rather than set it back where the
/// error is small (ntpd: 128 ms, chrony: any, systemd-timesyncd: 400 ms), and two CPUs may disagree a little.
const TOLERANCE: Duration = Duration::from_secs(1);

/// How old the recorded time may become. An idle database is not written more often than this.
const RECORD_EVERY: Duration = Duration::from_secs(5);

/// The rows of one transaction: few enough to keep nobody waiting, also SQLite's only writer.
const BATCH: u32 = 500;

/// Rows with times that lie ahead.
pub struct BroughtBack {
    /// Columns that are brought back, as `table.column`.
    pub columns: &'static [&'static str],
    /// Finds one of the rows.
    find: &'static str,
    /// Where there may be many rows: the last id of each full batch, in their order. `$7` is the size of a batch.
    borders: Option<&'static str>,
    /// Locks the rows of one batch, where an order matters.
    lock: Option<&'static str>,
    /// Brings the rows of one batch back. The statements run in this order. The ids of the batch are those after `$7`,
    /// up to `$8`.
    changes: &'static [&'static str],
}

/// The last ids of full batches of the rows of a table. They are read once: a search for the next batch would pass all
/// rows that were brought back before.
macro_rules! borders {
    ($id:literal, $rows:expr) => {
        concat!(
            "select id from (select ",
            $id,
            " as id, row_number() over (order by ",
            $id,
            ") as number from ",
            $rows,
            ") numbered where number % $7 = 0 order by id"
        )
    };
}

/// Ends the condition of a statement: only the rows of the batch.
macro_rules! in_batch {
    ($id:literal) => {
        concat!(" and ", $id, " > $7 and ", $id, " <= $8")
    };
}

/// Queued jobs that were queued at a time that is still to come, or wait longer than any job does.
macro_rules! queued_ahead {
    () => {
        "status = 'queued' and (updated_at > $1 + $6 or run_at > $1 + $5 or waiting_since > $1 + $5)"
    };
}

macro_rules! running_ahead {
    () => {
        "status = 'running' and lease_until > $1 + $3"
    };
}

/// Cancelled jobs keep their lease: until its end the worker may be writing. Found through their tasks, which are
/// few, because there is no index of their leases.
macro_rules! cancelled_ahead {
    () => {
        "status = 'cancelled' and lease_until > $1 + $3
         and task_id in (select id from tasks where status = 'cancelled')"
    };
}

/// Notices `o` of jobs `j` that lie ahead. A notice that is due later than its job is held by a relay.
macro_rules! notice_ahead {
    () => {
        "outbox.due_at > $1
         and (j.updated_at > $1 + $6 or outbox.due_at > $1 + $5
              or outbox.due_at > j.run_at and outbox.due_at > $1 + $3)"
    };
}

/// A due time, brought back: earlier by the step; not later than its own delay from now on, which is the time
/// between `$written` and it; and not later than any process writes it. An earlier time stays.
macro_rules! due {
    ($column:literal, $written:literal, $longest:literal) => {
        concat!(
            "case when ",
            $column,
            " > $1 then ",
            least!(),
            "(",
            greatest!(),
            "($1, ",
            $column,
            " - $2), $1 + (",
            $column,
            " - ",
            $written,
            "), $1 + ",
            $longest,
            ") else ",
            $column,
            " end"
        )
    };
}

/// The end of a hold, brought back: earlier by the step, and not later than any process writes it.
macro_rules! held {
    ($column:literal, $longest:literal) => {
        concat!(least!(), "(", greatest!(), "($1, ", $column, " - $2), $1 + ", $longest, ")")
    };
}

/// Jobs are locked before their notices, and in one order, as everywhere. Changes nothing.
macro_rules! lock_jobs {
    ($ahead:expr) => {
        concat!(
            "select 1 from jobs where ",
            $ahead,
            in_batch!("id"),
            " order by id ",
            lock_rows!("for no key update")
        )
    };
}

/// Brings the notices of jobs back.
macro_rules! notices_back {
    () => {
        concat!(
            "update outbox set due_at = ",
            due!(
                "outbox.due_at",
                "j.updated_at",
                "case when outbox.due_at > j.run_at then $3 else $5 end"
            ),
            " from jobs j where j.id = outbox.job_id and ",
            notice_ahead!()
        )
    };
}

/// All columns on which something waits.
pub const BROUGHT_BACK: &[BroughtBack] = &[
    BroughtBack {
        // `updated_at` says when the job was queued. It is brought back with the others so that the row is not found
        // again.
        columns: &["jobs.run_at", "jobs.waiting_since", "jobs.updated_at"],
        find: concat!("select 1 from jobs where ", queued_ahead!(), " limit 1"),
        borders: Some(borders!("id", concat!("jobs where ", queued_ahead!()))),
        lock: Some(lock_jobs!(queued_ahead!())),
        changes: &[
            // In the transaction of their jobs: a notice that was due before its job would be published for nothing.
            concat!(notices_back!(), " and ", queued_ahead!(), in_batch!("j.id")),
            // The message of a published job has reached a worker that could not claim it yet.
            concat!(
                insert_notices!(),
                due!("run_at", "updated_at", "$5"),
                " from jobs where ",
                queued_ahead!(),
                in_batch!("id"),
                " on conflict do nothing"
            ),
            concat!(
                "update jobs set run_at = ",
                due!("run_at", "updated_at", "$5"),
                ", waiting_since = ",
                due!("waiting_since", "updated_at", "$5"),
                ", updated_at = ",
                least!(),
                "(updated_at, $1) where ",
                queued_ahead!(),
                in_batch!("id")
            ),
        ],
    },
    BroughtBack {
        // Those that relays hold, and those of jobs that do not wait.
        columns: &["outbox.due_at"],
        find: concat!(
            "select 1 from outbox join jobs j on j.id = outbox.job_id where ",
            notice_ahead!(),
            " limit 1"
        ),
        borders: Some(borders!(
            "job_id",
            concat!("outbox join jobs j on j.id = outbox.job_id where ", notice_ahead!())
        )),
        lock: None,
        changes: &[concat!(notices_back!(), in_batch!("outbox.job_id"))],
    },
    BroughtBack {
        columns: &["jobs.lease_until"],
        find: concat!("select 1 from jobs where ", running_ahead!(), " limit 1"),
        borders: Some(borders!("id", concat!("jobs where ", running_ahead!()))),
        lock: Some(lock_jobs!(running_ahead!())),
        changes: &[concat!(
            "update jobs set lease_until = ",
            held!("lease_until", "$3"),
            " where ",
            running_ahead!(),
            in_batch!("id")
        )],
    },
    BroughtBack {
        columns: &["jobs.lease_until"],
        find: concat!("select 1 from jobs where ", cancelled_ahead!(), " limit 1"),
        borders: Some(borders!("id", concat!("jobs where ", cancelled_ahead!()))),
        lock: None,
        changes: &[concat!(
            "update jobs set lease_until = ",
            held!("lease_until", "$3"),
            " where ",
            cancelled_ahead!(),
            in_batch!("id")
        )],
    },
    BroughtBack {
        // A later success would not supersede the failure.
        columns: &["jobs.updated_at"],
        find: "select 1 from jobs where status = 'failed' and updated_at > $1 + $6 limit 1",
        borders: Some(borders!("id", "jobs where status = 'failed' and updated_at > $1 + $6")),
        lock: None,
        changes: &[concat!(
            "update jobs set updated_at = $1 where status = 'failed' and updated_at > $1 + $6",
            in_batch!("id")
        )],
    },
    BroughtBack {
        columns: &["idempotency_keys.held_until"],
        find: "select 1 from idempotency_keys where task_id is null and held_until > $1 + $4 limit 1",
        borders: None,
        lock: None,
        changes: &[concat!(
            "update idempotency_keys set held_until = ",
            held!("held_until", "$4"),
            " where task_id is null and held_until > $1 + $4"
        )],
    },
    BroughtBack {
        columns: &["backfills.foreman_until"],
        find: "select 1 from backfills where state <> 'ended' and foreman_until > $1 + $3 limit 1",
        borders: None,
        lock: None,
        changes: &[concat!(
            "update backfills set foreman_until = ",
            held!("foreman_until", "$3"),
            " where state <> 'ended' and foreman_until > $1 + $3"
        )],
    },
    BroughtBack {
        // A slow rate may use up more than the longest delay of a job; then the backfill is a little faster once.
        columns: &["backfills.fed_at"],
        find: "select 1 from backfills where state <> 'ended' and fed_at > $1 + $5 limit 1",
        borders: None,
        lock: None,
        changes: &[concat!(
            "update backfills set fed_at = ",
            held!("fed_at", "$5"),
            " where state <> 'ended' and fed_at > $1 + $5"
        )],
    },
    BroughtBack {
        // The janitor waits until caches have forgotten the image. They have as long as if it was discarded now.
        columns: &["images.discarded_at"],
        find: "select 1 from images
               where discarded_at > $1 + $6 and removed_at is null limit 1",
        borders: Some(borders!("id", "images where discarded_at > $1 + $6 and removed_at is null")),
        lock: None,
        changes: &[concat!(
            "update images set discarded_at = $1
             where discarded_at > $1 + $6 and removed_at is null",
            in_batch!("id")
        )],
    },
    BroughtBack {
        // A dead worker would not be shown as lost.
        columns: &["workers.last_heartbeat_at", "workers.started_at"],
        find: "select 1 from workers where last_heartbeat_at > $1 + $6 limit 1",
        borders: None,
        lock: None,
        changes: &[concat!(
            "update workers set last_heartbeat_at = $1, started_at = ",
            least!(),
            "(started_at, $1) where last_heartbeat_at > $1 + $6"
        )],
    },
    BroughtBack {
        // URLs are signed with the newest key.
        columns: &["signing_keys.created_at"],
        find: "select 1 from signing_keys where created_at > $1 + $6 limit 1",
        borders: None,
        lock: None,
        changes: &["update signing_keys set created_at = $1 where created_at > $1 + $6"],
    },
];

/// All other columns, and why nothing waits for them.
#[cfg(feature = "testing")]
pub const STAYS: &[(&str, &str)] = &[
    ("api_keys.created_at", "shown only"),
    ("api_keys.expires_at", "a date on which people agreed, by the calendar"),
    ("api_keys.last_used_at", "shown only"),
    ("api_keys.revoked_at", "a key is revoked once it has any"),
    ("audit_log.at", "a record of what happened; the log is sorted by id"),
    ("database_clock.seen_at", "what tells a step"),
    ("idempotency_keys.created_at", "the key is remembered longer, by as much as the step"),
    ("images.created_at", "backfills look at images of the future too: see walk.rs"),
    ("images.deleted_at", "an image is deleted once it has any"),
    ("images.removed_at", "its bytes are removed once it has any"),
    ("images.stored_at", "a failed verification does not count until the clock is there again"),
    ("installation.created_at", "shown only"),
    ("installation.keep_unknown_until", "it protects bytes, longer by as much as the step"),
    ("installation.marked_at", "the store is marked once it has any"),
    ("jobs.created_at", "shown only"),
    ("placeholders.created_at", "shown only"),
    ("renditions.created_at", "shown only"),
    ("backfills.retrying_since", "it is retrying while it has any"),
    ("signing_keys.revoked_at", "a key is revoked once it has any"),
    ("tasks.created_at", "shown only"),
    (
        "tasks.finished_at",
        "an end in the future is not recent (uploads.rs); the task is kept longer",
    ),
    ("tasks.updated_at", "shown only"),
];

/// The parameters of the statements.
#[derive(Clone, Copy)]
struct Ahead {
    now: DateTime<Utc>,
    step: Duration,
    waits: LongestWaits,
}

#[async_trait]
impl DatabaseClock for SqlStore {
    async fn observe_clock(&self, waits: &LongestWaits) -> Result<Option<Duration>, StoreError> {
        let clock = Clock::of(&self.fetch_one(self.at_now(sqlx::query(CLOCK))).await?)?;
        // Most calls write nothing, and lock nothing.
        let Some(step) = clock.step() else {
            if clock.is_to_be_recorded() {
                self.transaction(move |conn, _| Box::pin(record(conn, clock))).await?;
            }
            return Ok(None);
        };
        let ahead = Ahead { now: clock.now, step, waits: *waits };
        if bring_back(self, ahead).await?.is_none() {
            return Ok(None);
        }
        // Until here the step is seen again, by the next call or by another process.
        let is_first = self.transaction(move |conn, _| Box::pin(record(conn, clock))).await?;
        Ok(is_first.then_some(step))
    }

    async fn bring_times_back(&self, waits: &LongestWaits) -> Result<u64, StoreError> {
        let Clock { now, .. } = Clock::of(&self.fetch_one(self.at_now(sqlx::query(CLOCK))).await?)?;
        let ahead = Ahead { now, step: Duration::ZERO, waits: *waits };
        for one in BROUGHT_BACK {
            if self.fetch_optional(ahead.bind_to(one.find)).await?.is_some() {
                return Ok(bring_back(self, ahead).await?.unwrap_or(0));
            }
        }
        Ok(0)
    }
}

/// The clock, and the latest time that it has shown.
const CLOCK: &str =
    concat!("select seen_at, ", clock_time!("$1"), " as time_now from database_clock");

#[derive(Clone, Copy)]
struct Clock {
    seen: DateTime<Utc>,
    now: DateTime<Utc>,
}

impl Clock {
    fn of(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self { seen: time(row, "seen_at")?, now: time(row, "time_now")? })
    }

    async fn read(conn: &mut Conn, now: Now) -> Result<Self, StoreError> {
        Self::of(&bind_now(sqlx::query(CLOCK), now).fetch_one(conn).await?)
    }

    /// By how much it was set back.
    fn step(&self) -> Option<Duration> {
        (self.seen - self.now).to_std().ok().filter(|behind| *behind > TOLERANCE)
    }

    fn is_to_be_recorded(&self) -> bool {
        (self.now - self.seen).to_std().is_ok_and(|age| age >= RECORD_EVERY)
    }
}

/// Records the time, unless another process has recorded one meanwhile or is about to. Nobody holds this row for long:
/// the proof that the database can commit needs it too.
async fn record(conn: &mut Conn, clock: Clock) -> Result<bool, StoreError> {
    let lock = sqlx::query(concat!(
        "select 1 from database_clock ",
        lock_rows!("for no key update skip locked")
    ));
    if lock.fetch_optional(&mut *conn).await?.is_none() {
        return Ok(false);
    }
    let query = sqlx::query("update database_clock set seen_at = $1 where seen_at = $2");
    let query = query.bind(instant(clock.now)).bind(instant(clock.seen));
    Ok(query.execute(conn).await?.rows_affected() > 0)
}

/// Brings all times back. Returns how many rows it changed, or `None` if another process does it now: one is enough.
async fn bring_back(store: &SqlStore, ahead: Ahead) -> Result<Option<u64>, StoreError> {
    let Some(turn) = store.clock_turn().await? else { return Ok(None) };
    let brought_back = bring_all_back(store, ahead).await;
    store.end_clock_turn(turn).await;
    brought_back.map(Some)
}

async fn bring_all_back(store: &SqlStore, ahead: Ahead) -> Result<u64, StoreError> {
    let mut all = 0;
    for one in BROUGHT_BACK {
        if store.fetch_optional(ahead.bind_to(one.find)).await?.is_none() {
            continue;
        }
        let borders = match one.borders {
            Some(borders) => store.fetch_all(ahead.bind_to(borders).bind(i64::from(BATCH))).await?,
            None => Vec::new(),
        };
        let borders = borders.iter().map(|row| row.try_get::<Uuid, _>("id"));
        let mut after = Uuid::nil();
        for border in borders.chain(iter::once(Ok(Uuid::max()))) {
            let ids = (after, border?);
            let batch = store.transaction(move |conn, now| {
                Box::pin(bring_batch_back(conn, now, one, ahead, ids))
            });
            all += batch.await?;
            after = ids.1;
        }
    }
    Ok(all)
}

/// Brings back the rows whose ids lie after the first of `ids`, up to the second.
async fn bring_batch_back(
    conn: &mut Conn,
    now: Now,
    one: &'static BroughtBack,
    ahead: Ahead,
    ids: (Uuid, Uuid),
) -> Result<u64, StoreError> {
    // By the first batch's time, what was written rightly since then would lie ahead.
    let Clock { now, .. } = Clock::read(conn, now).await?;
    let ahead = Ahead { now, ..ahead };
    if let Some(lock) = one.lock {
        ahead.bind_to(lock).bind(ids.0).bind(ids.1).execute(&mut *conn).await?;
    }
    let mut all = 0;
    for change in one.changes {
        let query = ahead.bind_to(change).bind(ids.0).bind(ids.1);
        let rows = query.execute(&mut *conn).await?.rows_affected();
        if rows > 0 {
            tracing::debug!(columns = ?one.columns, rows, "brought times back");
        }
        all += rows;
    }
    Ok(all)
}

impl Ahead {
    fn bind_to(&self, statement: &'static str) -> Statement<'static> {
        let LongestWaits { lease, key_hold, job_delay } = self.waits;
        sqlx::query(statement)
            .bind(instant(self.now))
            .bind(span(self.step))
            .bind(span(lease))
            .bind(span(key_hold))
            .bind(span(job_delay))
            .bind(span(TOLERANCE))
    }
}
