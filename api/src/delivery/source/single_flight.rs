//! Work that several requests want at the same time is done once for all of them.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};

/// The work under way, by key. Clones share it.
pub struct SingleFlight<K, V>(Arc<Mutex<InFlight<K, V>>>);

type InFlight<K, V> = HashMap<K, Shared<BoxFuture<'static, Option<V>>>>;

/// The result of the work.
pub struct FlightResult<V> {
    /// The result, errors included; `None` if the work panicked.
    pub value: Option<V>,
    /// Whether another request had started it.
    pub collapsed: bool,
}

impl<K, V> Clone for SingleFlight<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, V> SingleFlight<K, V>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Waits for the work on `key` that is under way, or starts it. It runs as a separate task, so it
    /// continues for the others if a caller is cancelled. Results are not kept.
    pub async fn join<F>(&self, key: K, begin: impl FnOnce() -> F) -> FlightResult<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (flight, collapsed) = {
            let mut flights = self.lock();
            if let Some(flight) = flights.get(&key) {
                (flight.clone(), true)
            } else {
                let flight = self.begin(key.clone(), begin());
                flights.insert(key, flight.clone());
                (flight, false)
            }
        };
        FlightResult { value: flight.await, collapsed }
    }

    /// Whether work on `key` is under way.
    pub fn is_under_way(&self, key: &K) -> bool {
        self.lock().contains_key(key)
    }

    fn begin<F>(&self, key: K, work: F) -> Shared<BoxFuture<'static, Option<V>>>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let entry = RemoveOnEnd { flights: self.clone(), key };
        let task = tokio::spawn(async move {
            // Dropped after the work, also if it panics: later requests find its effects before they can
            // start the work again.
            let _entry = entry;
            work.await
        });
        task.map(Result::ok).boxed().shared()
    }

    fn lock(&self) -> MutexGuard<'_, InFlight<K, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes a key when its work ends.
struct RemoveOnEnd<K: Hash + Eq, V> {
    flights: SingleFlight<K, V>,
    key: K,
}

impl<K: Hash + Eq, V> Drop for RemoveOnEnd<K, V> {
    fn drop(&mut self) {
        self.flights.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn concurrent_calls_share_one_run_that_survives_cancellation() {
        let flights: SingleFlight<u8, usize> = SingleFlight::default();
        let (runs, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let join = || {
            let (flights, runs, gate) = (flights.clone(), runs.clone(), gate.clone());
            tokio::spawn(async move {
                let work = || async move {
                    let run = runs.fetch_add(1, Ordering::SeqCst);
                    drop(gate.acquire().await);
                    run
                };
                flights.join(7, work).await
            })
        };
        let first = join();
        while runs.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..100).map(|_| join()).collect();
        first.abort();
        assert!(first.await.is_err_and(|error| error.is_cancelled()));
        gate.add_permits(1000);
        for other in others {
            let result = other.await.expect("no panic");
            assert_eq!((result.value, result.collapsed), (Some(0), true));
        }
        let later = join().await.expect("no panic");
        assert_eq!((later.value, later.collapsed), (Some(1), false), "results are not kept");
    }

    #[tokio::test]
    async fn panic_is_reported_and_forgotten() {
        let flights: SingleFlight<u8, ()> = SingleFlight::default();
        let result = flights.join(1, || async { panic!("on purpose") }).await;
        assert!(result.value.is_none());
        assert!(flights.join(1, || async {}).await.value.is_some());
    }
}
