//! Lookups of keys that this node has not seen lately share one query, so a flood of invented keys makes queries larger,
//! not more numerous, and a valid key is found by the next one.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use safelight_store::{Access, KnownApiKey, StoreError};
use tokio::{
    sync::{Semaphore, oneshot},
    time::timeout,
};

/// Keys in one query.
const BATCH: usize = 512;

/// Lookups that wait at the same time.
const MAX_WAITING: usize = 4096;

/// How long a lookup may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// What one lookup finds.
pub type Found = Result<Option<KnownApiKey>, StoreError>;

/// The lookups of a node. Clones share them.
#[derive(Clone)]
pub struct KeyLookups(Arc<Inner>);

struct Inner {
    store: Arc<dyn Access>,
    permits: Semaphore,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    /// The prefixes that are looked for, and who waits for them.
    waiting: Vec<(String, oneshot::Sender<Found>)>,
    /// Whether a task asks the database for them.
    is_asking: bool,
}

/// The task that asks the database. If it panics, the next lookup starts another one.
struct Asking(KeyLookups);

impl KeyLookups {
    /// In `store`.
    pub fn new(store: Arc<dyn Access>) -> Self {
        let permits = Semaphore::new(MAX_WAITING);
        Self(Arc::new(Inner { store, permits, queue: Mutex::default() }))
    }

    /// The key whose secret starts with `prefix`; `None` if too many wait, or if it takes too long.
    pub async fn key(&self, prefix: &str) -> Option<Found> {
        let _permit = self.0.permits.try_acquire().ok()?;
        let (sender, answer) = oneshot::channel();
        if self.add(prefix, sender) {
            // In a task of its own, so that a client that hangs up cuts off nobody else.
            tokio::spawn(Asking(self.clone()).run());
        }
        timeout(LOOKUP_TIMEOUT, answer).await.ok()?.ok()
    }

    /// Adds a lookup. Returns whether nobody asks the database yet: the caller must.
    fn add(&self, prefix: &str, sender: oneshot::Sender<Found>) -> bool {
        let mut queue = self.queue();
        // While the database does not answer, clients come and go.
        if queue.waiting.len() >= 2 * MAX_WAITING {
            queue.waiting.retain(|(_, sender)| !sender.is_closed());
        }
        queue.waiting.push((prefix.to_owned(), sender));
        !mem::replace(&mut queue.is_asking, true)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asking {
    /// Asks until nobody waits.
    async fn run(self) {
        while let Some(batch) = self.next_batch() {
            let mut prefixes: Vec<_> = batch.iter().map(|(prefix, _)| prefix.clone()).collect();
            prefixes.sort_unstable();
            prefixes.dedup();
            let found = self.0.0.store.api_keys(&prefixes).await;
            for (prefix, sender) in batch {
                let of_prefix = |keys: &Vec<KnownApiKey>| {
                    keys.iter().find(|known| known.key.prefix == prefix).cloned()
                };
                // The client may be gone.
                let _ = sender.send(found.as_ref().map(of_prefix).map_err(Clone::clone));
            }
        }
    }

    /// Those that have waited for the longest time.
    fn next_batch(&self) -> Option<Vec<(String, oneshot::Sender<Found>)>> {
        let mut queue = self.0.queue();
        // Nobody needs what a client that is gone has asked for.
        queue.waiting.retain(|(_, sender)| !sender.is_closed());
        let count = queue.waiting.len().min(BATCH);
        // Under the same lock as the look, so that the next lookup starts a task.
        queue.is_asking = count > 0;
        (count > 0).then(|| queue.waiting.drain(..count).collect())
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.queue().is_asking = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use safelight_domain::secrets::ApiSecret;
    use safelight_store::{
        DynStore, NewApiKey,
        testing::{Call, FaultPlan, FaultyStore},
    };
    use safelight_store_sql::SqliteStore;
    use tokio::sync::Semaphore;

    use super::*;

    /// Counts queries, and lets them wait for a permit.
    struct Gate(Arc<AtomicUsize>, Arc<Semaphore>);

    #[async_trait]
    impl FaultPlan for Gate {
        async fn before(&self, call: Call<'_>) -> Result<(), StoreError> {
            if call.method == "api_keys" {
                self.0.fetch_add(1, Ordering::SeqCst);
                self.1.acquire().await.expect("open").forget();
            }
            Ok(())
        }
    }

    struct Setting {
        lookups: KeyLookups,
        queries: Arc<AtomicUsize>,
        gate: Arc<Semaphore>,
        secret: ApiSecret,
        _folder: tempfile::TempDir,
    }

    impl Setting {
        async fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let store = SqliteStore::open(&folder.path().join("keys.db")).await.expect("SQLite");
            let inner: DynStore = Arc::new(store);
            inner.migrate().await.expect("a schema");
            let secret = ApiSecret::new().expect("random bytes");
            let new = NewApiKey {
                id: safelight_domain::new_id(),
                prefix: secret.prefix().to_owned(),
                owner: "ada".parse().expect("an owner"),
                scopes: "read".parse().expect("scopes"),
                secret_sha256: secret.hash(),
                lifetime: None,
            };
            inner.create_api_key(&new).await.expect("a key");
            let (queries, gate) = (Arc::default(), Arc::new(Semaphore::new(0)));
            let plan = Gate(Arc::clone(&queries), gate.clone());
            let lookups = KeyLookups::new(Arc::new(FaultyStore { inner, plan }));
            Self { lookups, queries, gate, secret, _folder: folder }
        }

        fn start(&self, prefix: &str) -> tokio::task::JoinHandle<Option<bool>> {
            let (lookups, prefix) = (self.lookups.clone(), prefix.to_owned());
            tokio::spawn(async move {
                let found = lookups.key(&prefix).await?;
                Some(found.expect("an answer").is_some_and(|known| known.is_live))
            })
        }

        async fn until(&self, holds: impl Fn(&Self) -> bool) {
            while !holds(self) {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn flood_of_invented_keys_costs_few_queries_and_delays_no_valid_one() {
        let setting = Setting::new().await;
        let first = setting.start("sl_first");
        setting.until(|s| s.queries.load(Ordering::SeqCst) == 1).await;
        let invented: Vec<_> =
            (0..300).map(|number| setting.start(&format!("sl_{number}"))).collect();
        let valid = setting.start(setting.secret.prefix());
        setting.until(|s| s.lookups.queue().waiting.len() == 301).await;
        setting.gate.add_permits(2);
        assert_eq!(valid.await.expect("no panic"), Some(true));
        for lookup in invented.into_iter().chain([first]) {
            assert_eq!(lookup.await.expect("no panic"), Some(false));
        }
        assert_eq!(setting.queries.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn clients_that_hang_up_cut_off_nobody() {
        let setting = Setting::new().await;
        let first = setting.start("sl_first");
        setting.until(|s| s.queries.load(Ordering::SeqCst) == 1).await;
        let valid = setting.start(setting.secret.prefix());
        setting.until(|s| s.lookups.queue().waiting.len() == 1).await;
        first.abort();
        setting.gate.add_permits(2);
        assert_eq!(valid.await.expect("no panic"), Some(true));
        assert_eq!(setting.queries.load(Ordering::SeqCst), 2, "none was repeated");
        setting.gate.add_permits(1);
        let again = setting.start(setting.secret.prefix());
        assert_eq!(again.await.expect("no panic"), Some(true), "the next one starts a task");
    }

    #[tokio::test(start_paused = true)]
    async fn number_and_time_of_waiting_lookups_are_bounded() {
        let setting = Setting::new().await;
        let permits = u32::try_from(MAX_WAITING).expect("a small number");
        let taken = setting.lookups.0.permits.acquire_many(permits).await.expect("all");
        assert!(setting.lookups.key("sl_any").await.is_none(), "too many wait");
        drop(taken);
        assert!(setting.lookups.key("sl_any").await.is_none(), "it takes too long");
    }
}
