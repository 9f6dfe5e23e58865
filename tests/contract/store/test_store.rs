//! A store on a fresh database, and the records that the tests put into it.

use std::{ops::Deref, time::Duration};

use anyhow::{Context, Result, bail};
use safelight_config::DatabaseUrl;
use safelight_domain::{
    ContentHash, ErrorCode, Failure, Gps, ImageFacts, ImageFormat, ImageId, JOB_VERSION, JobId,
    JobKind, JobNotice, Labels, Lane, Owner, Placeholder, Quota, Rendition, Task, TaskId,
    Visibility, WorkerId, new_id,
};
use safelight_store::{
    Accepted, Claim, ClaimedJob, DynStore, Effect, NewUpload, Outcome, QueueCapacity, Settled,
};
use safelight_testing::postgres::Postgres;
use tempfile::TempDir;
use uuid::Uuid;

/// A duration that ends immediately.
pub const NOW: Duration = Duration::ZERO;
/// A duration that never ends during a test.
pub const HOUR: Duration = Duration::from_hours(1);

/// A store on its own migrated database.
pub struct TestStore {
    pub store: DynStore,
    pub url: DatabaseUrl,
    folder: Option<TempDir>,
}

impl Deref for TestStore {
    type Target = DynStore;

    fn deref(&self) -> &DynStore {
        &self.store
    }
}

impl TestStore {
    pub async fn sqlite() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let url = DatabaseUrl::Sqlite(folder.path().join("data/safelight.db"));
        Self::migrated(url, Some(folder)).await
    }

    pub async fn postgres() -> Result<Self> {
        Self::migrated(Postgres::fresh_database().await?.parse()?, None).await
    }

    async fn migrated(url: DatabaseUrl, folder: Option<TempDir>) -> Result<Self> {
        let store = safelight_testing::open::store(&url, 8).await?;
        store.migrate().await?;
        Ok(Self { store, url, folder })
    }

    /// Opens another store on the same database, as another process would.
    pub async fn another_store(&self) -> Result<DynStore> {
        Ok(safelight_testing::open::store(&self.url, 8).await?)
    }

    /// Drops the store and opens its database again.
    pub async fn reopen(self) -> Result<Self> {
        drop(self.store);
        let store = safelight_testing::open::store(&self.url, 8).await?;
        Ok(Self { store, url: self.url, folder: self.folder })
    }

    /// A fresh database of the same backend without a schema.
    pub async fn empty_database(&self) -> Result<DatabaseUrl> {
        Ok(match &self.url {
            DatabaseUrl::Sqlite(path) => DatabaseUrl::Sqlite(path.with_file_name("empty.db")),
            DatabaseUrl::Postgres(_) => Postgres::fresh_database().await?.parse()?,
        })
    }

    /// Runs SQL that the store never runs.
    pub async fn tamper(&self, sql: &'static str) -> Result<()> {
        use sqlx::{ConnectOptions, Connection};
        match &self.url {
            DatabaseUrl::Sqlite(path) => {
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
                sqlx::query(sql).execute(&mut options.connect().await?).await?;
            }
            DatabaseUrl::Postgres(url) => {
                let mut conn = sqlx::PgConnection::connect(&url[0]).await?;
                sqlx::query(sql).execute(&mut conn).await?;
            }
        }
        Ok(())
    }

    /// The result of a query that the store never makes.
    pub async fn query_number(&self, sql: &'static str) -> Result<i64> {
        use sqlx::{ConnectOptions, Connection};
        Ok(match &self.url {
            DatabaseUrl::Sqlite(path) => {
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
                sqlx::query_scalar(sql).fetch_one(&mut options.connect().await?).await?
            }
            DatabaseUrl::Postgres(url) => {
                let mut conn = sqlx::PgConnection::connect(&url[0]).await?;
                sqlx::query_scalar(sql).fetch_one(&mut conn).await?
            }
        })
    }

    /// Rows of text from a query that the store never makes.
    pub async fn query_texts(&self, sql: String) -> Result<Vec<String>> {
        use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
        let sql = AssertSqlSafe(sql);
        Ok(match &self.url {
            DatabaseUrl::Sqlite(path) => {
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
                sqlx::query_scalar(sql).fetch_all(&mut options.connect().await?).await?
            }
            DatabaseUrl::Postgres(url) => {
                let mut conn = sqlx::PgConnection::connect(&url[0]).await?;
                sqlx::query_scalar(sql).fetch_all(&mut conn).await?
            }
        })
    }

    /// The id of a job, as SQL.
    pub fn sql_id(&self, job: JobId) -> String {
        match &self.url {
            DatabaseUrl::Sqlite(_) => format!("x'{}'", job.0.simple()),
            DatabaseUrl::Postgres(_) => format!("'{}'", job.0),
        }
    }

    /// Lets each change of a job fail, until [`TestStore::allow_changes`].
    pub async fn refuse_changes_of(&self, job: JobId) -> Result<()> {
        let id = self.sql_id(job);
        let trigger = match &self.url {
            DatabaseUrl::Sqlite(_) => format!(
                "create trigger refuse before update on jobs when new.id = {id}
                 begin select raise(abort, 'refused'); end"
            ),
            DatabaseUrl::Postgres(_) => {
                self.tamper(
                    "create function refuse() returns trigger language plpgsql
                     as $$ begin raise exception 'refused'; end $$",
                )
                .await?;
                format!(
                    "create trigger refuse before update on jobs for each row
                     when (new.id = {id}) execute function refuse()"
                )
            }
        };
        self.query_texts(trigger).await.map(drop)
    }

    pub async fn allow_changes(&self) -> Result<()> {
        self.tamper(match &self.url {
            DatabaseUrl::Sqlite(_) => "drop trigger refuse",
            DatabaseUrl::Postgres(_) => "drop trigger refuse on jobs",
        })
        .await
    }

    /// All columns of points in time, as `table.column`.
    pub async fn time_columns(&self) -> Result<Vec<String>> {
        let sql = match &self.url {
            DatabaseUrl::Sqlite(_) => {
                "select t.name || '.' || c.name from sqlite_schema t
                 join pragma_table_info(t.name) c
                 where t.type = 'table' and t.name <> '_sqlx_migrations' and c.name <> 'taken_at'
                   and (c.name = 'at' or c.name like '%!_at' escape '!'
                        or c.name like '%!_until' escape '!' or c.name like '%!_since' escape '!')
                 order by 1"
            }
            DatabaseUrl::Postgres(_) => {
                "select table_name || '.' || column_name from information_schema.columns
                 where table_schema = 'public' and table_name <> '_sqlx_migrations'
                   and data_type = 'timestamp with time zone'
                 order by 1"
            }
        };
        self.query_texts(sql.to_owned()).await
    }

    /// Makes the database look as if all that was written had been written by a clock that was ahead: as if the
    /// clock was set back now.
    pub async fn advance_times(&self, by: Duration) -> Result<()> {
        for column in self.time_columns().await? {
            self.advance_time(&column, by).await?;
        }
        Ok(())
    }

    /// Makes the times of one column (`table.column`) later.
    pub async fn advance_time(&self, column: &str, by: Duration) -> Result<()> {
        let (table, column) = column.split_once('.').context("table.column")?;
        let by = match &self.url {
            DatabaseUrl::Sqlite(_) => by.as_micros().to_string(),
            DatabaseUrl::Postgres(_) => format!("interval '{} milliseconds'", by.as_millis()),
        };
        self.query_texts(format!("update {table} set {column} = {column} + {by}")).await.map(drop)
    }

    /// How many seconds the latest time of a column (`table.column`) lies ahead of the clock.
    pub async fn seconds_ahead(&self, column: &str) -> Result<i64> {
        self.seconds_ahead_where(column, "true").await
    }

    /// [`TestStore::seconds_ahead`] of the rows for which an SQL condition holds.
    pub async fn seconds_ahead_where(&self, column: &str, rows: &str) -> Result<i64> {
        let (table, column) = column.split_once('.').context("table.column")?;
        let ahead = match &self.url {
            DatabaseUrl::Sqlite(_) => format!("max({column}) / 1000000 - unixepoch()"),
            DatabaseUrl::Postgres(_) => {
                format!("extract(epoch from max({column}) - now())::bigint")
            }
        };
        let sql = format!("select cast({ahead} as text) from {table} where {rows}");
        let found = self.query_texts(sql).await?;
        Ok(found.first().context("no row")?.parse()?)
    }

    /// Creates an upload and accepts it.
    pub async fn accept_new_upload(&self) -> Result<NewUpload> {
        let upload = upload();
        self.accept_upload(&upload).await?;
        Ok(upload)
    }

    pub async fn accept_upload(&self, upload: &NewUpload) -> Result<()> {
        let accepted = self.accept(upload).await?;
        assert!(matches!(accepted, Accepted::Yes(_)), "{accepted:?}");
        Ok(())
    }

    /// The document of an upload's task.
    pub async fn task_of(&self, upload: &NewUpload) -> Result<Task> {
        self.task(upload.task).await?.context("no such task")
    }

    /// Claims a job with a lease that lasts for the whole test.
    pub async fn claim_job(&self, notice: &JobNotice) -> Result<ClaimedJob> {
        self.claim_job_for(notice, HOUR).await
    }

    pub async fn claim_job_for(&self, notice: &JobNotice, lease: Duration) -> Result<ClaimedJob> {
        match self.claim(notice, false, WorkerId::new(), lease, JOB_VERSION).await? {
            Claim::Run(job) => Ok(*job),
            claim @ (Claim::Nothing | Claim::Newer) => bail!("not claimed: {claim:?}"),
        }
    }

    /// Asserts that a claim for this message finds nothing to do.
    pub async fn assert_unclaimable(&self, notice: &JobNotice, redelivered: bool) -> Result<()> {
        let claim = self.claim(notice, redelivered, WorkerId::new(), HOUR, JOB_VERSION).await?;
        assert_eq!(claim, Claim::Nothing);
        Ok(())
    }

    /// Settles an attempt and asserts that it was applied.
    pub async fn settle_job(&self, job: &ClaimedJob, outcome: &Outcome) -> Result<()> {
        assert_eq!(self.settle(&job.lease, outcome).await?, Settled::Applied);
        Ok(())
    }

    /// Runs both jobs of an upload to success, and asserts that their messages then find nothing to do.
    pub async fn finish_jobs(&self, upload: &NewUpload) -> Result<()> {
        for (notice, outcome) in [
            (write_notice(upload), write_succeeded()),
            (thumbnail_notice(upload), thumbnail_succeeded()),
        ] {
            let job = self.claim_job(&notice).await?;
            self.settle_job(&job, &outcome).await?;
            self.assert_unclaimable(&notice, false).await?;
        }
        Ok(())
    }

    /// Takes all due jobs from the outbox and marks them published.
    pub async fn publish_all(&self) -> Result<Vec<JobNotice>> {
        let batch = self.take_unpublished(&QueueCapacity::each(10_000), HOUR).await?;
        self.mark_published(&batch.due).await?;
        Ok(batch.due)
    }
}

/// A new upload. Its bytes are unique.
/// A new id that is greater than those before: ids sort by their millisecond.
pub fn later_id() -> Uuid {
    let before = new_id();
    let millisecond = |id: Uuid| id.get_timestamp();
    loop {
        let id = new_id();
        if millisecond(id) != millisecond(before) {
            return id;
        }
        std::hint::spin_loop();
    }
}

/// An upload whose ids are greater than those of the uploads before.
pub fn upload() -> NewUpload {
    let image = ImageId(later_id());
    NewUpload {
        owner: Owner::local(),
        quota: Quota::default(),
        image,
        task: TaskId::new(),
        lane: Lane::Interactive,
        sha256: ContentHash::of(image.0.as_bytes()),
        bytes: 829_183,
        format: ImageFormat::Jpeg,
        labels: Labels {
            title: Some("Ein Hügel \"im\" Nebel 🌫".to_owned()),
            tags: vec!["fog".to_owned(), "a, b".to_owned()],
            filename: Some("hill.jpg".to_owned()),
            visibility: Some(Visibility::Public),
        },
        jobs: JobKind::jobs_of_new_image(),
        max_attempts: 3,
        key: None,
        trace: None,
    }
}

/// The first message of an upload's write job.
pub fn write_notice(upload: &NewUpload) -> JobNotice {
    notice(upload, 0)
}

/// The first message of an upload's thumbnail job.
pub fn thumbnail_notice(upload: &NewUpload) -> JobNotice {
    notice(upload, 1)
}

fn notice(upload: &NewUpload, index: usize) -> JobNotice {
    let (job, kind) = upload.jobs[index];
    JobNotice { job, kind, lane: upload.lane, generation: 0, trace: None }
}

pub fn facts() -> ImageFacts {
    ImageFacts {
        format: ImageFormat::Png,
        width: 2725,
        height: 2225,
        orientation: 6,
        taken_at: chrono::NaiveDate::from_ymd_opt(2012, 2, 29).and_then(|d| d.and_hms_opt(1, 2, 3)),
        gps: Some(Gps { latitude: -33.5, longitude: 151.25 }),
    }
}

pub fn write_succeeded() -> Outcome {
    Outcome::Succeeded(vec![Effect::StoredBlob(facts())])
}

pub fn rendition(preset: &str, bytes: u64) -> Rendition {
    Rendition {
        preset: preset.to_owned(),
        fingerprint: "0123456789ab".to_owned(),
        format: ImageFormat::Webp,
        width: 256,
        height: 209,
        bytes,
        sha256: ContentHash::of(&bytes.to_le_bytes()),
        made_at: None,
    }
}

/// The renditions without `made_at`, after a check that each has one.
pub fn without_made_at(recorded: &[Rendition]) -> Vec<Rendition> {
    assert!(recorded.iter().all(|one| one.made_at.is_some()), "{recorded:?}");
    recorded.iter().map(|one| Rendition { made_at: None, ..one.clone() }).collect()
}

/// Two renditions, in the order in which the store returns them.
pub fn renditions() -> Vec<Rendition> {
    vec![rendition("medium", 40_000), rendition("small", 9120)]
}

pub fn placeholder(mark: u8) -> Placeholder {
    Placeholder { thumbhash: vec![mark; 5], dominant_color: [mark, 0, 255] }
}

pub fn thumbnail_succeeded() -> Outcome {
    Outcome::Succeeded(vec![
        Effect::UpsertRenditions(renditions()),
        Effect::Placeholder(placeholder(1)),
    ])
}

pub fn failure() -> Failure {
    Failure::new(ErrorCode::StoreUnavailable, "the store did not answer")
}
