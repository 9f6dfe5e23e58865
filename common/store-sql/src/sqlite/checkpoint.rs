//! Empties the write-ahead log into the database file, so that a copy of that file alone is nearly complete.
//!
//! SQLite itself moves the log's pages into the file whenever the log has 1000 pages, but does not empty it while a
//! reader uses it, and does nothing while nobody writes (<https://www.sqlite.org/wal.html>, sections 2.3 and 6).

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use sqlx::{Row, SqliteConnection};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::patience::PATIENCE;

/// How often the log is looked at. A log that did not change in between is emptied.
const POLL: Duration = Duration::from_secs(1);

/// A log that changes all the time is emptied after this time.
const AT_LATEST: Duration = Duration::from_secs(30);

/// When the log is to be emptied.
pub struct Checkpoints(Option<Log>);

struct Log {
    file: PathBuf,
    ticks: Interval,
    seen: Option<State>,
    emptied: Instant,
}

/// What shows whether the log was written.
#[derive(PartialEq, Eq)]
struct State {
    bytes: u64,
    modified: Option<SystemTime>,
}

impl Checkpoints {
    /// For the database in the file `path`.
    pub fn of(path: &Path) -> Self {
        let mut file = path.as_os_str().to_owned();
        file.push("-wal");
        let mut ticks = tokio::time::interval_at(Instant::now() + POLL, POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self(Some(Log { file: file.into(), ticks, seen: None, emptied: Instant::now() }))
    }

    /// For a database that no other process reads.
    #[cfg(any(test, feature = "testing"))]
    pub fn never() -> Self {
        Self(None)
    }

    /// Waits until the log has something, and is no longer written or was not emptied for long. Cancel safe.
    pub async fn due(&mut self) {
        let Some(log) = &mut self.0 else { return std::future::pending().await };
        loop {
            log.ticks.tick().await;
            if log.is_due() {
                return;
            }
        }
    }

    /// Empties the log, unless a reader or another process uses it. Then it is due again later.
    pub async fn run(&mut self, conn: &mut SqliteConnection) {
        let Some(log) = &mut self.0 else { return };
        log.emptied = Instant::now();
        match empty(conn).await {
            Ok(true) => {}
            Ok(false) => tracing::debug!("the log of SQLite is in use and was not emptied"),
            Err(error) => tracing::debug!(%error, "cannot empty the log of SQLite"),
        }
    }
}

impl Log {
    fn is_due(&mut self) -> bool {
        let now = fs::metadata(&self.file).ok().filter(|found| found.len() > 0);
        let now = now.map(|found| State { bytes: found.len(), modified: found.modified().ok() });
        let due = now.is_some() && (now == self.seen || self.emptied.elapsed() >= AT_LATEST);
        self.seen = now;
        due
    }
}

/// Returns `false` if the log could not be emptied, because somebody uses it.
async fn empty(conn: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    // A checkpoint that waits for readers keeps writers out meanwhile.
    sqlx::query("pragma busy_timeout = 0").execute(&mut *conn).await?;
    let result = sqlx::query("pragma wal_checkpoint(truncate)").fetch_one(&mut *conn).await;
    let patience = format!("pragma busy_timeout = {}", PATIENCE.as_millis());
    sqlx::query(sqlx::AssertSqlSafe(patience)).execute(conn).await?;
    Ok(result?.try_get::<i64, _>("busy")? == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn log_is_emptied_when_it_rests_and_at_the_latest_after_half_a_minute() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("db-wal");
        let mut checkpoints = Checkpoints::of(&folder.path().join("db"));
        let log = checkpoints.0.as_mut().expect("a log");
        assert!(!log.is_due(), "there is no log");
        fs::write(&file, "").expect("written");
        assert!(!log.is_due() && !log.is_due(), "it is empty");
        fs::write(&file, "page").expect("written");
        assert!(!log.is_due(), "it was just written");
        assert!(log.is_due(), "it rests");
        fs::write(&file, "two pages").expect("written");
        assert!(!log.is_due(), "it was written again");
        log.emptied -= AT_LATEST;
        fs::write(&file, "three pages").expect("written");
        assert!(log.is_due(), "it is written all the time");
    }
}
