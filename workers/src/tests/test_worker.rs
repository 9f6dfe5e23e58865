//! The worker half of Safelight in a temporary folder.

use std::{
    io::Cursor,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use image::{DynamicImage, RgbImage};
use safelight_blobs::{BlobKey, BlobLocation, Blobs};
use safelight_config::{DatabaseUrl, SharedCacheUrl};
use safelight_domain::{
    BackfillKind, BackfillSpec, ContentHash, ImageFacts, ImageFormat, ImageId, JOB_VERSION, Job,
    JobId, JobKind, JobNotice, Labels, Lane, Rendition, Task, TaskId, TaskKind, Visibility,
    WorkerId,
};
use safelight_queue::{InProcessQueue, OutboxSignal, Queue};
use safelight_removal::Remover;
use safelight_shared_cache::{Location, SharedCache};
use safelight_store::{
    Accepted, BackfillStep, ChildTask, Claim, DynStore, Effect, NewBackfill, NewUpload, Outcome,
    testing::FaultyStore,
};
use safelight_store_sql::SqliteStore;
use sqlx::{ConnectOptions, sqlite::SqliteConnectOptions};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::database_faults::DatabaseFaults;
use crate::{
    ServiceStatuses, WorkerOptions, WorkerParts,
    backfill::BackfillCoordinator,
    consumer,
    maintenance::janitor::discarded::DiscardedImages,
    run_service,
    services::{self, services},
};

/// How long a test waits for something that must happen.
const DEADLINE: Duration = Duration::from_secs(30);

/// How often a test looks whether it has happened.
const POLL: Duration = Duration::from_millis(5);

pub(crate) struct TestWorker {
    pub parts: WorkerParts,
    pub statuses: ServiceStatuses,
    pub store: Arc<FaultyStore<DatabaseFaults>>,
    pub shutdown: CancellationToken,
    folder: tempfile::TempDir,
}

impl TestWorker {
    /// Uses the default configuration with short waits, overridden by `settings`.
    pub async fn new(settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().to_str().expect("UTF-8");
        let base = [
            ("SAFELIGHT_DATA_DIR", path),
            // A decoder runs the current executable, which is the test here.
            ("SAFELIGHT_ISOLATE_DECODING", "false"),
            ("SAFELIGHT_BACKOFF_BASE_MS", "20"),
            ("SAFELIGHT_BACKOFF_CAP_MS", "50"),
            ("SAFELIGHT_RELAY_POLL_MS", "20"),
        ];
        let environment = base.iter().chain(settings);
        let environment = environment.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let config = safelight_config::load_from(None, environment).expect("configuration");
        let DatabaseUrl::Sqlite(file) = &config.database_url else { panic!("SQLite by default") };
        let sqlite: DynStore = Arc::new(SqliteStore::open(file).await.expect("open"));
        sqlite.migrate().await.expect("migrate");
        let store = Arc::new(FaultyStore { inner: sqlite, plan: DatabaseFaults::default() });
        let shared_cache = match &config.shared_cache_url {
            SharedCacheUrl::Single(url) => Some(SharedCache::new(Location::Single(url.clone()))),
            SharedCacheUrl::Cluster(_) | SharedCacheUrl::Off => None,
        };
        let location = BlobLocation::Folder(folder.path().join("blobs"));
        let blobs = Blobs::open(&location, &folder.path().join("spool")).expect("blobs");
        let installation = store.inner.installation().await.expect("an installation").id;
        blobs.mark(installation).await.expect("mark");
        let blobs = blobs.of_installation(installation);
        let parts = WorkerParts {
            config: Arc::new(config),
            store: store.clone(),
            queue: Arc::new(InProcessQueue::new()),
            blobs,
            shared_cache,
            outbox_signal: OutboxSignal::default(),
        };
        let (statuses, shutdown) = (ServiceStatuses::default(), CancellationToken::new());
        Self { parts, statuses, store, shutdown, folder }
    }

    /// Stages and accepts an upload like the API, but does not notify the relay.
    pub async fn upload(&self, bytes: &[u8]) -> NewUpload {
        self.upload_on(Lane::Interactive, bytes).await
    }

    /// [`TestWorker::upload`] on a lane.
    pub async fn upload_on(&self, lane: Lane, bytes: &[u8]) -> NewUpload {
        let mut staging = self.parts.blobs.stage().await.expect("stage");
        staging.write(bytes).await.expect("write");
        let stored = staging.end().await.expect("end").store().await.expect("store");
        let upload = self.accept(lane, ImageId::new(), bytes).await;
        stored.ensure_stored().await.expect("stored");
        upload
    }

    /// An upload that a node of the version before accepted: its bytes are staged for its image.
    pub async fn upload_staged(&self, bytes: &[u8]) -> NewUpload {
        self.upload_damaged(bytes, |_| {}).await
    }

    /// [`TestWorker::upload_staged`] whose file `damage` changes before any worker can see it.
    pub async fn upload_damaged(&self, bytes: &[u8], damage: impl FnOnce(&Path)) -> NewUpload {
        let key = BlobKey::Incoming(ImageId::new());
        self.parts.blobs.put(&key, Bytes::copy_from_slice(bytes)).await.expect("stage");
        damage(&self.blob_path(&key));
        let BlobKey::Incoming(image) = key else { unreachable!("staged") };
        self.accept(Lane::Interactive, image, bytes).await
    }

    async fn accept(&self, lane: Lane, image: ImageId, bytes: &[u8]) -> NewUpload {
        let upload = NewUpload {
            owner: safelight_domain::Owner::local(),
            quota: safelight_domain::Quota::default(),
            image,
            task: TaskId::new(),
            lane,
            sha256: ContentHash::of(bytes),
            bytes: bytes.len() as u64,
            format: ImageFormat::sniff(bytes).unwrap_or(ImageFormat::Jpeg),
            labels: Labels { visibility: Some(Visibility::Public), ..Labels::default() },
            jobs: JobKind::jobs_of_new_image(),
            max_attempts: self.parts.config.max_attempts,
            key: None,
            trace: None,
        };
        let accepted = self.parts.store.accept(&upload).await.expect("accept");
        assert!(matches!(accepted, Accepted::Yes(_)), "{accepted:?}");
        upload
    }

    /// The same folder and database for parts that start after a shutdown.
    pub fn restarted(mut self) -> Self {
        self.shutdown = CancellationToken::new();
        self
    }

    pub fn worker(&self) -> JoinHandle<()> {
        let (parts, shutdown) = (self.parts.clone(), self.shutdown.clone());
        let statuses = self.statuses.clone();
        tokio::spawn(async move { consumer::run(&parts, options(), statuses, shutdown).await })
    }

    pub fn relay(&self) -> JoinHandle<()> {
        self.services(&["outbox_relay"])
    }

    pub fn clock_watch(&self) -> JoinHandle<()> {
        self.services(&["clock_watch"])
    }

    /// Runs SQL that the store never runs.
    pub async fn tamper(&self, sql: &'static str) {
        let DatabaseUrl::Sqlite(file) = &self.parts.config.database_url else { panic!("SQLite") };
        let options = SqliteConnectOptions::new().filename(file);
        let mut conn = options.connect().await.expect("open");
        sqlx::query(sql).execute(&mut conn).await.expect("tamper");
    }

    pub fn rescuer(&self) -> JoinHandle<()> {
        self.services(&["lease_rescuer", "message_rescuer"])
    }

    pub fn janitor(&self) -> JoinHandle<()> {
        self.services(&[
            "staged_bytes",
            "unfinished_writes",
            "trash",
            "quarantine",
            "discarded_images",
        ])
    }

    pub fn coordinator(&self) -> JoinHandle<()> {
        self.services(&["backfill_coordinator"])
    }

    /// Runs background services until shutdown.
    pub fn services(&self, names: &[&str]) -> JoinHandle<()> {
        let mut chosen = services(&self.parts);
        chosen.retain(|service| names.contains(&service.name()));
        assert_eq!(chosen.len(), names.len(), "{names:?}");
        let run = |service| run_service(service, self.statuses.clone(), self.shutdown.clone());
        let running: Vec<_> = chosen.into_iter().map(run).collect();
        tokio::spawn(async move { drop(futures::future::join_all(running).await) })
    }

    /// A coordinator that the test drives step by step.
    pub fn stepping_coordinator(&self) -> BackfillCoordinator {
        let WorkerParts { config, store, blobs, outbox_signal, .. } = &self.parts;
        let guard = self.parts.installation_guard();
        let signal = outbox_signal.clone();
        BackfillCoordinator::new(store.clone(), blobs.clone(), guard, signal, config)
    }

    pub fn remover(&self) -> Remover {
        self.parts.remover()
    }

    pub fn discarded_images(&self) -> DiscardedImages {
        services::discarded_images(&self.parts)
    }

    /// Waits until the task satisfies `wanted`.
    pub async fn wait_for_task(&self, id: TaskId, wanted: impl Fn(&Task) -> bool) -> Task {
        eventually_some("the task is as wanted", async || Some(self.task(id).await).filter(&wanted))
            .await
    }

    /// The current state of the task, past the fault plan, which must not affect the test itself.
    pub async fn task(&self, id: TaskId) -> Task {
        self.store.inner.task(id).await.expect("task").expect("a known task")
    }

    pub async fn wait_until_ended(&self, id: TaskId) -> Task {
        self.wait_for_task(id, |task| task.status.is_final()).await
    }

    /// How often a method of the store has returned.
    pub fn finished_calls(&self, method: &str) -> u32 {
        let calls = self.store.plan.finished_calls.lock().expect("not poisoned");
        calls.get(method).copied().unwrap_or_default()
    }

    /// The number of messages in all queues.
    pub async fn count_messages(&self) -> u64 {
        let mut depth = 0;
        for queue in Queue::all() {
            depth += self.parts.queue.depth(queue).await.expect("depth");
        }
        depth
    }

    /// The file of an object.
    pub fn blob_path(&self, key: &BlobKey) -> PathBuf {
        self.folder.path().join("blobs").join(key.path().as_ref())
    }

    /// Takes the blob store away, as if its volume was unmounted, and leaves an empty folder.
    pub fn unmount_blobs(&self) {
        let blobs = self.folder.path().join("blobs");
        std::fs::rename(&blobs, self.folder.path().join("unmounted")).expect("rename");
        std::fs::create_dir(blobs).expect("a mount point");
    }

    /// Brings back what [`TestWorker::unmount_blobs`] took away.
    pub fn mount_blobs(&self) {
        let blobs = self.folder.path().join("blobs");
        std::fs::remove_dir_all(&blobs).expect("remove");
        std::fs::rename(self.folder.path().join("unmounted"), blobs).expect("rename");
    }

    /// The number of objects in the trash.
    pub fn trash_count(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("blobs/trash")).map_or(0, Iterator::count)
    }

    /// The folder of the quarantine.
    pub fn quarantine(&self) -> PathBuf {
        self.folder.path().join("blobs/quarantine")
    }

    /// Records a rendition of a finished upload, like a verify job that made it again.
    pub async fn record_rendition(&self, upload: &NewUpload, made: &Rendition) {
        let spec = BackfillSpec::new(BackfillKind::Verify);
        let (backfill, job) = (TaskId::new(), JobId::new());
        let new = NewBackfill { task: backfill, owner: safelight_domain::Owner::local(), spec };
        self.store.inner.create_backfill(&new).await.expect("begin");
        let work = ChildTask {
            task: TaskId::new(),
            kind: TaskKind::Rendition,
            image: upload.image,
            jobs: vec![(job, JobKind::Verify)],
            import: None,
        };
        let step =
            BackfillStep { work: vec![work], max_attempts: 1, ..BackfillStep::of(backfill, None) };
        assert!(self.store.inner.advance_backfill(&step).await.expect("a step"));
        let notice =
            JobNotice { job, kind: JobKind::Verify, lane: Lane::Bulk, generation: 0, trace: None };
        let (worker, lease) = (WorkerId::new(), Duration::from_mins(1));
        let claim = self.store.inner.claim(&notice, false, worker, lease, JOB_VERSION).await;
        let Ok(Claim::Run(claimed)) = claim else { panic!("{claim:?}") };
        let outcome = Outcome::Succeeded(vec![Effect::UpsertRenditions(vec![made.clone()])]);
        self.store.inner.settle(&claimed.lease, &outcome).await.expect("settle");
    }

    /// The folder to which [`Blobs::check_writable`] writes.
    pub fn probe_folder(&self) -> PathBuf {
        self.folder.path().join("blobs/probe")
    }

    pub fn rendition_folder(&self) -> PathBuf {
        self.folder.path().join("blobs/renditions")
    }
}

impl Drop for TestWorker {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// The number of files in a folder and all its subfolders.
pub(crate) fn count_files(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.map(|path| if path.is_dir() { count_files(&path) } else { 1 }).sum()
}

/// The options of a small worker that runs all kinds of jobs.
pub(crate) fn options() -> WorkerOptions {
    WorkerOptions { kinds: JobKind::ALL.to_vec(), lanes: Lane::ALL.to_vec(), concurrency: 2 }
}

pub(crate) fn job(task: &Task, kind: JobKind) -> &Job {
    task.jobs.iter().find(|job| job.kind == kind).expect("a job of each kind")
}

/// Facts as a write job records them.
pub(crate) fn facts() -> ImageFacts {
    ImageFacts {
        format: ImageFormat::Png,
        width: 1,
        height: 1,
        orientation: 1,
        taken_at: None,
        gps: None,
    }
}

/// A valid PNG of 300 × 200 pixels.
pub(crate) fn picture() -> Vec<u8> {
    let picture: DynamicImage = RgbImage::from_fn(300, 200, |x, y| {
        image::Rgb([(x % 256).to_le_bytes()[0], (y % 256).to_le_bytes()[0], 90])
    })
    .into();
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).expect("encode");
    bytes.into_inner()
}

/// Waits for `event`; panics after [`DEADLINE`].
pub(crate) async fn within<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, event).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    eventually_some(what, async || condition().await.then_some(())).await;
}

/// [`eventually`] for a condition with a result.
pub(crate) async fn eventually_some<T>(what: &str, found: impl AsyncFn() -> Option<T>) -> T {
    within(what, async {
        loop {
            if let Some(found) = found().await {
                return found;
            }
            tokio::time::sleep(POLL).await;
        }
    })
    .await
}
