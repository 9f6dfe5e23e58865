//! Many clients wait for tasks; one batched look-up per tick serves all of them.

mod waiting;

use std::{
    collections::{HashMap, hash_map::Entry},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use safelight_domain::{ImageId, Owner, TaskId, retry::Reconnect};
use safelight_store::{Reads, StoreError, TaskVersion};
use tokio::sync::watch;

use crate::limits::{Permit, Shares};
use waiting::{IMAGE_PART, TooManyWatchers};
pub use waiting::{WaitLimits, Waiting};

/// Time between look-ups while few are waiting.
const FAST_TICK: Duration = Duration::from_millis(20);

/// Time between look-ups while thousands are waiting.
const SLOW_TICK: Duration = Duration::from_millis(250);

/// One batched look-up: the versions of those tasks that exist.
type Lookup =
    dyn Fn(Vec<TaskId>) -> BoxFuture<'static, Result<Vec<TaskVersion>, StoreError>> + Send + Sync;

/// Registers watchers and looks up their tasks. Clones share it.
#[derive(Clone)]
pub struct WatchHub(Arc<Hub>);

struct Hub {
    lookup: Box<Lookup>,
    limits: WaitLimits,
    permits: Shares<Waiting>,
    /// Of the permits, those for each image.
    per_image: Shares<ImageId>,
    board: Mutex<Board>,
}

#[derive(Default)]
struct Board {
    watched: HashMap<TaskId, Watched>,
    /// Whether a ticker runs. It ends, under this lock, when no task is watched.
    ticking: bool,
}

/// One watched task.
struct Watched {
    seen: watch::Sender<Option<TaskVersion>>,
    /// How many watch it; the last to leave removes the entry.
    watchers: usize,
}

/// One client that waits for one task. Dropping it ends the wait.
pub struct Watcher {
    id: TaskId,
    seen: watch::Receiver<Option<TaskVersion>>,
    hub: Arc<Hub>,
    _permits: (Permit<Waiting>, Option<Permit<ImageId>>),
}

impl WatchHub {
    /// A hub over the tasks in `store`.
    pub fn over(store: Arc<dyn Reads>, limits: WaitLimits) -> Self {
        Self::new(limits, move |ids| {
            let store = store.clone();
            async move { store.task_versions(&ids).await }
        })
    }

    /// A hub that calls `lookup` while any task is watched.
    pub fn new<F>(
        limits: WaitLimits,
        lookup: impl Fn(Vec<TaskId>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Vec<TaskVersion>, StoreError>> + Send + 'static,
    {
        Self(Arc::new(Hub {
            lookup: Box::new(move |ids| lookup(ids).boxed()),
            limits,
            permits: Shares::new(limits.all),
            // Those below are bounded by those above.
            per_image: Shares::new(usize::MAX),
            board: Mutex::default(),
        }))
    }

    /// Starts to wait for changes of a task, for `waiting`.
    pub fn watch(&self, id: TaskId, waiting: &Waiting) -> Result<Watcher, TooManyWatchers> {
        let WaitLimits { all, per_owner } = self.0.limits;
        let share = if *waiting == Waiting::Local { all } else { per_owner };
        let permit = self.0.permits.acquire(waiting, 1, share).map_err(TooManyWatchers)?;
        Ok(self.start(id, (permit, None)))
    }

    /// Starts to wait for changes of a task that makes something of `image` of `owner`, for anybody.
    pub fn watch_image(
        &self,
        id: TaskId,
        image: ImageId,
        owner: &Owner,
    ) -> Result<Watcher, TooManyWatchers> {
        let share = self.0.limits.per_owner;
        let of_image = share.div_ceil(IMAGE_PART);
        let of_image = self.0.per_image.acquire(&image, 1, of_image).map_err(TooManyWatchers)?;
        let waiting = Waiting::ImageOf(owner.clone());
        let permit = self.0.permits.acquire(&waiting, 1, share).map_err(TooManyWatchers)?;
        Ok(self.start(id, (permit, Some(of_image))))
    }

    fn start(&self, id: TaskId, permits: (Permit<Waiting>, Option<Permit<ImageId>>)) -> Watcher {
        let hub = self.0.clone();
        let mut board = hub.board();
        let entry = board
            .watched
            .entry(id)
            .or_insert_with(|| Watched { seen: watch::Sender::new(None), watchers: 0 });
        entry.watchers += 1;
        let seen = entry.seen.subscribe();
        if !board.ticking {
            board.ticking = true;
            tokio::spawn(tick(hub.clone()));
        }
        drop(board);
        Watcher { id, seen, hub, _permits: permits }
    }

    /// How many tasks are watched.
    #[cfg(test)]
    fn watched(&self) -> usize {
        self.0.board().watched.len()
    }
}

impl Watcher {
    /// Returns when the task is known to be in another version than `version`.
    pub async fn changed_from(&mut self, version: i64) {
        self.until(|seen| seen.version != version).await;
    }

    /// Returns when the task is known to be final.
    pub async fn is_final(&mut self) {
        self.until(|seen| seen.status.is_final()).await;
    }

    async fn until(&mut self, condition: impl Fn(&TaskVersion) -> bool) {
        let met = self.seen.wait_for(|seen| seen.as_ref().is_some_and(&condition)).await.is_ok();
        if !met {
            // The sender lives as long as this watcher's entry. If it did not, waiting would still be right,
            // since every caller has a deadline.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.hub.board().watched.entry(self.id) {
            entry.get_mut().watchers -= 1;
            if entry.get().watchers == 0 {
                entry.remove();
            }
        }
    }
}

impl Hub {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tasks to look up; `None` ends the ticker, because no task is watched.
    fn wanted(&self) -> Option<Vec<TaskId>> {
        let mut board = self.board();
        if board.watched.is_empty() {
            board.ticking = false;
            board.watched.shrink_to_fit();
            return None;
        }
        // Final tasks need no further look-up, even if their watchers have not left yet.
        let unsettled =
            |watched: &Watched| !watched.seen.borrow().is_some_and(|v| v.status.is_final());
        Some(board.watched.iter().filter(|(_, w)| unsettled(w)).map(|(id, _)| *id).collect())
    }

    fn publish(&self, versions: Vec<TaskVersion>) {
        let board = self.board();
        for version in versions {
            if let Some(watched) = board.watched.get(&version.id) {
                watched.seen.send_if_modified(|seen| {
                    let changed = *seen != Some(version);
                    *seen = Some(version);
                    changed
                });
            }
        }
    }
}

/// Looks up all watched tasks, again and again, until there are none. A look-up that fails is retried later;
/// watchers notice only the delay.
async fn tick(hub: Arc<Hub>) {
    let mut reconnect = Reconnect::default();
    let mut pause = FAST_TICK;
    loop {
        tokio::time::sleep(pause).await;
        let Some(ids) = hub.wanted() else { return };
        if ids.is_empty() {
            pause = FAST_TICK;
            continue;
        }
        let (count, started) = (ids.len(), Instant::now());
        match (hub.lookup)(ids).await {
            Ok(versions) => {
                hub.publish(versions);
                reconnect.reset();
                // A slow database is asked less often: look-ups take at most a third of the time.
                pause = tick_for(count).max(started.elapsed() * 2);
            }
            Err(error) => {
                pause = reconnect.next_delay();
                tracing::warn!(%error, watched = count, "cannot look up watched tasks");
            }
        }
    }
}

/// From [`FAST_TICK`] for one to [`SLOW_TICK`] from some nine thousand.
fn tick_for(watched: usize) -> Duration {
    let extra = Duration::from_micros(25 * watched as u64);
    (FAST_TICK + extra).min(SLOW_TICK)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

    use safelight_domain::{
        ContentHash, ImageFormat, ImageId, JOB_VERSION, JobId, JobKind, JobNotice, Labels, Lane,
        Status, Visibility, WorkerId,
    };
    use safelight_store::{Claim, DynStore, NewUpload};
    use safelight_store_sql::SqliteStore;

    use super::*;
    use crate::limits::NoPermit;

    const LIMITS: WaitLimits = WaitLimits { all: 10_000, per_owner: 2_000 };

    /// A lookup that counts its calls and reports `version` for every task.
    struct Counting {
        calls: AtomicUsize,
        version: AtomicI64,
        failing: AtomicUsize,
    }

    fn hub() -> (WatchHub, Arc<Counting>) {
        let counting = Arc::new(Counting {
            calls: AtomicUsize::new(0),
            version: AtomicI64::new(1),
            failing: AtomicUsize::new(0),
        });
        let lookup = counting.clone();
        let hub = WatchHub::new(LIMITS, move |ids| {
            let counting = lookup.clone();
            async move {
                counting.calls.fetch_add(1, Ordering::SeqCst);
                let left = counting.failing.load(Ordering::SeqCst);
                if left > 0 {
                    counting.failing.store(left - 1, Ordering::SeqCst);
                    return Err(StoreError::Corrupt("unavailable".to_owned()));
                }
                let version = counting.version.load(Ordering::SeqCst);
                let status = if version > 1 { Status::Succeeded } else { Status::Queued };
                Ok(ids.into_iter().map(|id| TaskVersion { id, version, status }).collect())
            }
        });
        (hub, counting)
    }

    /// Waits for `condition`, for at most 20 s.
    async fn until(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "the condition was not met in time");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    #[tokio::test]
    async fn ten_thousand_watchers_cost_one_lookup_per_tick() {
        let (hub, counting) = hub();
        let started = Instant::now();
        let mut watchers: Vec<_> = (0..10_000)
            .map(|_| hub.watch(TaskId::new(), &Waiting::Local).expect("a permit"))
            .collect();
        // At the first tick there were few watchers. All later ticks are slow ones.
        until(|| counting.calls.load(Ordering::SeqCst) >= 4).await;
        assert!(started.elapsed() >= SLOW_TICK * 3, "four lookups in {:?}", started.elapsed());
        counting.version.store(2, Ordering::SeqCst);
        let calls = counting.calls.load(Ordering::SeqCst);
        for watcher in &mut watchers {
            watcher.is_final().await;
        }
        // One lookup served all watchers. Another may have been running.
        assert!(counting.calls.load(Ordering::SeqCst) <= calls + 2);
        drop(watchers);
        assert_eq!(hub.watched(), 0);
    }

    #[tokio::test]
    async fn no_watchers_cost_no_lookups() {
        let (hub, counting) = hub();
        drop(hub.watch(TaskId::new(), &Waiting::Local).expect("a permit"));
        until(|| !hub.0.board().ticking).await;
        assert_eq!(counting.calls.load(Ordering::SeqCst), 0);
        // A later watcher is served again.
        let mut watcher = hub.watch(TaskId::new(), &Waiting::Local).expect("a permit");
        watcher.changed_from(0).await;
    }

    #[tokio::test]
    async fn store_is_queried_once_per_tick_for_all_watchers() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("watch.db");
        let store: DynStore = Arc::new(SqliteStore::open(&path).await.expect("SQLite"));
        store.migrate().await.expect("a schema");
        let uploads: Vec<_> = (0..50).map(|_| upload()).collect();
        for upload in &uploads {
            store.accept(upload).await.expect("accepted");
        }
        let calls = Arc::new(AtomicUsize::new(0));
        let (counter, source) = (calls.clone(), store.clone());
        let hub = WatchHub::new(LIMITS, move |ids| {
            counter.fetch_add(1, Ordering::SeqCst);
            let store = source.clone();
            async move { store.task_versions(&ids).await }
        });
        let started = Instant::now();
        let mut watchers: Vec<_> = uploads
            .iter()
            .flat_map(|upload| {
                (0..4).map(|_| hub.watch(upload.task, &Waiting::Local).expect("a permit"))
            })
            .collect();
        until(|| calls.load(Ordering::SeqCst) >= 2).await;
        for upload in &uploads {
            let (job, kind) = upload.jobs[0];
            let notice = JobNotice { job, kind, lane: upload.lane, generation: 0, trace: None };
            let lease = Duration::from_secs(30);
            let claim = store.claim(&notice, false, WorkerId::new(), lease, JOB_VERSION).await;
            assert!(matches!(claim, Ok(Claim::Run(_))), "{claim:?}");
        }
        for watcher in &mut watchers {
            watcher.changed_from(1).await;
        }
        let ticks = started.elapsed().as_millis() / FAST_TICK.as_millis() + 1;
        assert!(calls.load(Ordering::SeqCst) as u128 <= ticks, "more than one lookup per tick");
    }

    fn upload() -> NewUpload {
        NewUpload {
            owner: safelight_domain::Owner::local(),
            quota: safelight_domain::Quota::default(),
            image: ImageId::new(),
            task: TaskId::new(),
            lane: Lane::Interactive,
            sha256: ContentHash::of(b"x"),
            bytes: 1,
            format: ImageFormat::Png,
            labels: Labels { visibility: Some(Visibility::Public), ..Labels::default() },
            jobs: vec![(JobId::new(), JobKind::Write)],
            max_attempts: 3,
            key: None,
            trace: None,
        }
    }

    #[tokio::test]
    async fn failed_lookups_only_delay_watchers() {
        let (hub, counting) = hub();
        counting.failing.store(4, Ordering::SeqCst);
        counting.version.store(2, Ordering::SeqCst);
        let mut watcher = hub.watch(TaskId::new(), &Waiting::Local).expect("a permit");
        watcher.is_final().await;
        assert_eq!(counting.calls.load(Ordering::SeqCst), 5);
    }

    #[tokio::test]
    async fn watchers_of_one_task_share_a_lookup() {
        let (hub, counting) = hub();
        let id = TaskId::new();
        let mut first = hub.watch(id, &Waiting::Local).expect("a permit");
        let second = hub.watch(id, &Waiting::Local).expect("a permit");
        assert_eq!(hub.watched(), 1);
        drop(second);
        counting.version.store(2, Ordering::SeqCst);
        first.is_final().await;
    }

    #[tokio::test]
    async fn watchers_are_bounded_and_one_owner_leaves_permits_to_others() {
        let limits = WaitLimits { all: 20, per_owner: 6 };
        let hub = WatchHub::new(limits, |_| async { Ok(Vec::new()) });
        let [ada, bob] = ["ada", "bob"].map(|name| name.parse::<Owner>().expect("an owner"));
        let (task, waiting) = (TaskId::new(), Waiting::Owner(ada.clone()));
        let fill = |watch: &dyn Fn() -> Result<Watcher, TooManyWatchers>| {
            let mut held = Vec::new();
            loop {
                match watch() {
                    Ok(watcher) => held.push(watcher),
                    Err(TooManyWatchers(why)) => return (held, why),
                }
            }
        };
        let (long_polls, why) = fill(&|| hub.watch(task, &waiting));
        assert_eq!((long_polls.len(), why), (6, NoPermit::OwnShare));
        // One of her images has half of the share of all of them, whoever asks.
        let (first, second) = (ImageId::new(), ImageId::new());
        let (of_first, why) = fill(&|| hub.watch_image(task, first, &ada));
        assert_eq!((of_first.len(), why), (3, NoPermit::OwnShare));
        let (of_second, _) = fill(&|| hub.watch_image(task, second, &ada));
        assert_eq!(of_second.len(), 3);
        assert!(hub.watch_image(task, ImageId::new(), &ada).is_err(), "her share is used up");
        // Bob waits for his tasks, and anybody for his images.
        let bobs = hub.watch(task, &Waiting::Owner(bob.clone())).expect("his share is free");
        let of_bob = hub.watch_image(task, ImageId::new(), &bob).expect("his share is free");
        let (local, why) = fill(&|| hub.watch(task, &Waiting::Local));
        assert_eq!((local.len(), why), (6, NoPermit::All));
        drop((long_polls, of_first, of_second, bobs, of_bob, local));
        assert_eq!(hub.0.permits.taken() + hub.0.per_image.taken(), 0);
    }
}
