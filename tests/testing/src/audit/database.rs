//! Reads the database directly. Each row is one text with its fields separated by `|`, so that almost the
//! same SQL works on both engines.

use std::{
    collections::HashMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection, postgres::PgConnection};

use crate::wait::eventually_within;

/// How long work may stop after a fault on a busy machine.
const PROGRESS_LIMIT: Duration = Duration::from_secs(90);

/// The database to read.
#[derive(Debug, Clone)]
pub enum Database {
    /// A file.
    Sqlite(PathBuf),
    /// A server (`postgres://…`).
    Postgres(String),
}

/// A recorded task.
#[derive(Debug)]
pub(super) struct Task {
    pub status: String,
    /// The task's own counters: all jobs, and succeeded jobs.
    pub counted: (usize, usize),
    pub jobs: Vec<Job>,
}

/// A recorded job.
#[derive(Debug)]
#[allow(dead_code)] // printed when a task did not succeed
pub(super) struct Job {
    pub kind: String,
    pub status: String,
    pub attempts: u64,
    pub error: String,
}

/// A recorded image.
pub(super) struct Image {
    pub id: String,
    pub sha256: String,
    pub bytes: u64,
    /// Whether its write job has succeeded and it was not discarded.
    pub stored: bool,
    /// Whether it was deleted; then its hash and size are not recorded.
    pub deleted: bool,
}

/// A recorded rendition.
#[derive(Debug)]
pub(super) struct Rendition {
    /// The blob's hash.
    pub of: String,
    pub preset: String,
    pub fingerprint: String,
    /// The hash of the rendition itself.
    pub sha256: String,
}

impl Task {
    pub fn is_final(&self) -> bool {
        matches!(self.status.as_str(), "succeeded" | "failed" | "cancelled")
    }
}

impl Rendition {
    /// The file name without extension.
    pub fn stem(&self) -> String {
        format!("{}-{}", self.preset, self.fingerprint)
    }
}

impl Database {
    /// One line for each unfinished task or job, outbox row, and discarded image that is not removed yet.
    pub(super) async fn unfinished(&self) -> Result<Vec<String>> {
        self.texts(&format!(
            "select 'task ' || {} || ' is ' || status from tasks
             where status not in ('succeeded', 'failed', 'cancelled')
             union all
             select 'job ' || {} || ' is ' || status from jobs
             where status not in ('succeeded', 'failed', 'cancelled')
             union all
             select 'outbox ' || {} from outbox
             union all
             select 'image ' || {} || ' is to be removed' from images
             where discarded_at is not null and removed_at is null",
            self.id("id"),
            self.id("id"),
            self.id("job_id"),
            self.id("id"),
        ))
        .await
    }

    /// The number of queued jobs whose message was published.
    pub async fn published(&self) -> Result<usize> {
        let sql = "select 'x' from jobs where status = 'queued'
                   and id not in (select job_id from outbox)";
        Ok(self.texts(sql).await?.len())
    }

    /// The number of running jobs with an expired lease.
    pub async fn expired_leases(&self) -> Result<usize> {
        let now = match self {
            Self::Sqlite(_) => "cast(unixepoch('subsec') * 1000000 as integer)",
            Self::Postgres(_) => "now()",
        };
        let sql = format!("select 'x' from jobs where status = 'running' and lease_until <= {now}");
        Ok(self.texts(&sql).await?.len())
    }

    /// Waits until another task succeeds, also while the database is unavailable; returns how long it took.
    pub async fn wait_for_progress(&self) -> Result<Duration> {
        let (started, mut before) = (Instant::now(), None);
        eventually_within(PROGRESS_LIMIT, "another task has succeeded", async || {
            let Ok(now) = self.succeeded().await else { return Ok(false) };
            Ok(now > *before.get_or_insert(now))
        })
        .await?;
        Ok(started.elapsed())
    }

    async fn succeeded(&self) -> Result<usize> {
        let sql = "select cast(count(*) as text) from tasks where status = 'succeeded'";
        Ok(self.texts(sql).await?.first().context("a count")?.parse()?)
    }

    /// Kind, lane, id and generation of each queued job, as in its notice.
    pub async fn notices(&self) -> Result<Vec<[String; 4]>> {
        let sql = format!(
            "select kind || '|' || lane || '|' || {} || '|' || fence from jobs
             where status = 'queued'",
            self.id("id")
        );
        self.rows(&sql).await
    }

    /// The rows of all renditions in a fixed order, to check that they do not change.
    pub async fn rendition_records(&self) -> Result<Vec<String>> {
        self.texts(&format!(
            "select {} || '|' || preset || '|' || {} || '|' || created_at from renditions order by 1",
            self.hash("sha256"),
            self.hash("rendition_sha256")
        ))
        .await
    }

    pub(super) async fn tasks(&self) -> Result<HashMap<String, Task>> {
        let sql = format!(
            "select {} || '|' || status || '|' || jobs_total || '|' || jobs_succeeded from tasks",
            self.id("id")
        );
        let mut tasks = HashMap::new();
        for [id, status, total, succeeded] in self.rows(&sql).await? {
            let counted = (total.parse()?, succeeded.parse()?);
            tasks.insert(id, Task { status, counted, jobs: Vec::new() });
        }
        let sql = format!(
            "select {} || '|' || kind || '|' || status || '|' || (fence - released) || '|'
                    || coalesce(error_code, '') from jobs",
            self.id("task_id")
        );
        for [task, kind, status, attempts, error] in self.rows(&sql).await? {
            let job = Job { kind, status, attempts: attempts.parse()?, error };
            tasks.get_mut(&task).context("a job without a task")?.jobs.push(job);
        }
        Ok(tasks)
    }

    pub(super) async fn images(&self) -> Result<Vec<Image>> {
        let sql = format!(
            "select {} || '|' || {} || '|' || bytes || '|'
                    || case when stored_at is null or discarded_at is not null then 0 else 1 end
                    || '|' || case when deleted_at is null then 0 else 1 end from images",
            self.id("id"),
            self.hash("sha256")
        );
        let image = |[id, sha256, bytes, stored, deleted]: [String; 5]| {
            let (bytes, stored, deleted) = (bytes.parse()?, stored == "1", deleted == "1");
            Ok(Image { id, sha256, bytes, stored, deleted })
        };
        self.rows(&sql).await?.into_iter().map(image).collect()
    }

    pub(super) async fn renditions(&self) -> Result<Vec<Rendition>> {
        let sql = format!(
            "select {} || '|' || preset || '|' || fingerprint || '|' || {} from renditions",
            self.hash("sha256"),
            self.hash("rendition_sha256")
        );
        let rendition = |[of, preset, fingerprint, sha256]: [String; 4]| Rendition {
            of,
            preset,
            fingerprint,
            sha256,
        };
        Ok(self.rows(&sql).await?.into_iter().map(rendition).collect())
    }

    /// An id column in plain hexadecimal.
    fn id(&self, column: &str) -> String {
        match self {
            Self::Sqlite(_) => format!("lower(hex({column}))"),
            Self::Postgres(_) => format!("replace({column}::text, '-', '')"),
        }
    }

    /// A column of bytes in hexadecimal.
    fn hash(&self, column: &str) -> String {
        match self {
            Self::Sqlite(_) => format!("lower(hex({column}))"),
            Self::Postgres(_) => format!("encode({column}, 'hex')"),
        }
    }

    async fn rows<const N: usize>(&self, sql: &str) -> Result<Vec<[String; N]>> {
        let texts = self.texts(sql).await?;
        let fields = |text: String| {
            let fields: Vec<String> = text.split('|').map(str::to_owned).collect();
            fields.try_into().map_err(|_| anyhow::anyhow!("not {N} fields: {text}"))
        };
        texts.into_iter().map(fields).collect()
    }

    async fn texts(&self, sql: &str) -> Result<Vec<String>> {
        let query = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Sqlite(path) => {
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
                let mut conn: SqliteConnection =
                    options.busy_timeout(Duration::from_secs(5)).connect().await?;
                let texts = sqlx::query_scalar(query).fetch_all(&mut conn).await?;
                conn.close().await?;
                Ok(texts)
            }
            Self::Postgres(url) => {
                let mut conn = PgConnection::connect(url).await?;
                let texts = sqlx::query_scalar(query).fetch_all(&mut conn).await?;
                conn.close().await?;
                Ok(texts)
            }
        }
    }
}
