//! The health of a dependency: few log lines while it fails, one when it works again, backoff between tries.

use std::{
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use safelight_domain::retry::Reconnect;
use tokio::{runtime::Handle, sync::watch, time::Instant};

/// Time between two warnings about the same dependency.
const WARNING_INTERVAL: Duration = Duration::from_mins(1);

/// A dependency that fails again sooner had not recovered: it is the same outage.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// A dependency that fails again sooner only seemed to work, for example because its probe asks for less than
/// its users do. Then delays go on growing.
const PROVEN_AFTER: Duration = Duration::from_secs(5);

/// Whether a dependency works, as far as its users know.
///
/// - A loop waits as long as [`failed`](Self::failed) says before its next try.
/// - A request that can do without the dependency asks [`is_usable`](Self::is_usable) first. One that cannot
///   only reports its failure.
/// - Where many tasks share a dependency, one of them probes it ([`probe`](Self::probe)) and the others wait
///   ([`available`](Self::available)).
///
/// One that alternates between both states gets one warning a minute, and one line when it has worked for half
/// a minute.
pub struct DependencyHealth {
    /// What fails, as in "cannot …".
    action: &'static str,
    /// What follows from it.
    consequence: &'static str,
    available: watch::Sender<bool>,
    outage: Arc<Mutex<Option<Outage>>>,
}

/// From the first failure until the dependency has worked for [`STABLE_AFTER`].
struct Outage {
    reconnect: Reconnect,
    /// When it is tried again.
    retry_at: Instant,
    warned_at: Instant,
    /// Since when it works again; `None` while it fails.
    works_since: Option<Instant>,
}

impl Outage {
    fn is_over(&self, now: Instant) -> bool {
        self.works_since.is_some_and(|since| now - since >= STABLE_AFTER)
    }
}

/// A dependency did not answer in time.
#[derive(Debug, Clone, Copy)]
pub struct NoAnswer;

impl std::fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no answer in time")
    }
}

impl Error for NoAnswer {}

impl DependencyHealth {
    /// Healthy until an error is reported. `action` is a verb phrase, as in "cannot `action`".
    pub fn new(action: &'static str) -> Self {
        Self::with_consequence(action, "trying again until it works")
    }

    /// [`DependencyHealth::new`] for a failure that does more than delay its own loop.
    pub fn with_consequence(action: &'static str, consequence: &'static str) -> Self {
        Self { action, consequence, available: watch::Sender::new(true), outage: Arc::default() }
    }

    /// Marks the dependency as unavailable. Warns once a minute.
    pub fn report(&self, error: &(dyn Error + 'static)) {
        self.failed(error);
    }

    /// [`DependencyHealth::report`]; returns how long to wait before the next try. Several failures at the
    /// same time count as one.
    pub fn failed(&self, error: &(dyn Error + 'static)) -> Duration {
        self.available.send_replace(false);
        let mut outage = self.lock();
        let now = Instant::now();
        end(self.action, &mut outage, now);
        if outage.as_ref().is_none_or(|outage| now - outage.warned_at >= WARNING_INTERVAL) {
            tracing::warn!(
                error,
                "cannot {}; {}; further errors at debug level for 1 min",
                self.action,
                self.consequence
            );
            if let Some(outage) = outage.as_mut() {
                outage.warned_at = now;
            }
        } else {
            tracing::debug!(error, "cannot {}", self.action);
        }
        let outage = outage.get_or_insert_with(|| Outage {
            reconnect: Reconnect::default(),
            retry_at: now,
            warned_at: now,
            works_since: None,
        });
        if outage.works_since.take().is_some_and(|since| now - since >= PROVEN_AFTER) {
            outage.reconnect.reset();
        }
        if outage.retry_at <= now {
            outage.retry_at = now + outage.reconnect.next_delay();
        }
        outage.retry_at - now
    }

    /// Whether to use the dependency now. While it fails, one caller at a time tries whether it works again.
    pub fn is_usable(&self) -> bool {
        let now = Instant::now();
        match self.lock().as_mut() {
            None => true,
            Some(outage) if outage.works_since.is_some() => true,
            Some(outage) if outage.retry_at > now => false,
            Some(outage) => {
                outage.retry_at = now + outage.reconnect.next_delay();
                true
            }
        }
    }

    /// Marks the dependency as available again.
    pub fn recovered(&self) {
        let now = Instant::now();
        let mut outage = self.lock();
        end(self.action, &mut outage, now);
        if let Some(outage) = outage.as_mut().filter(|outage| outage.works_since.is_none()) {
            outage.works_since = Some(now);
            self.end_later();
        }
        drop(outage);
        self.available.send_replace(true);
    }

    /// Ends the outage when the dependency has worked long enough, also if nobody uses it then. Without a runtime
    /// the next call does.
    fn end_later(&self) {
        let Ok(runtime) = Handle::try_current() else { return };
        let (action, outage) = (self.action, Arc::clone(&self.outage));
        runtime.spawn(async move {
            tokio::time::sleep(STABLE_AFTER).await;
            end(action, &mut lock(&outage), Instant::now());
        });
    }

    /// Waits until the dependency is available.
    pub async fn available(&self) {
        // The sender lives as long as `self`.
        let _ = self.available.subscribe().wait_for(|available| *available).await;
    }

    /// Asks `works`, with backoff, whenever the dependency is unavailable. Never returns.
    pub async fn probe<Works: Future<Output = bool>>(&self, works: impl Fn() -> Works) {
        let mut states = self.available.subscribe();
        loop {
            let _ = states.wait_for(|available| !*available).await;
            tokio::time::sleep(self.next_delay()).await;
            if works().await {
                self.recovered();
            }
        }
    }

    fn next_delay(&self) -> Duration {
        self.lock().as_mut().map_or(Duration::ZERO, |outage| outage.reconnect.next_delay())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Outage>> {
        lock(&self.outage)
    }
}

fn lock(outage: &Mutex<Option<Outage>>) -> MutexGuard<'_, Option<Outage>> {
    outage.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends an outage that is over.
fn end(action: &str, outage: &mut Option<Outage>, now: Instant) {
    if outage.take_if(|outage| outage.is_over(now)).is_some() {
        tracing::info!("can {action} again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_tasks_continue_when_a_probe_succeeds() {
        let health = DependencyHealth::new("reach the database");
        health.available().await;
        let first = health.failed(&std::io::Error::other("refused"));
        assert!(first <= Duration::from_millis(150), "{first:?}");
        let tries = std::cell::Cell::new(0);
        let third = || async {
            tries.set(tries.get() + 1);
            tries.get() == 3
        };
        tokio::select! {
            () = health.available() => {}
            () = health.probe(third) => unreachable!("a probe never returns"),
        }
        assert_eq!(tries.get(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn one_caller_at_a_time_tries_a_failing_dependency() {
        let health = DependencyHealth::new("use a dependency");
        assert!(health.is_usable());
        let delay = health.failed(&NoAnswer);
        assert!(!health.is_usable());
        tokio::time::advance(delay).await;
        assert!(health.is_usable());
        assert!(!health.is_usable(), "the next caller waits for the result of the first");
        health.recovered();
        assert!(health.is_usable());
    }

    #[test]
    fn failures_at_the_same_time_count_as_one() {
        let health = DependencyHealth::new("use a dependency");
        let first = health.failed(&NoAnswer);
        assert!((0..100).all(|_| health.failed(&NoAnswer) <= first));
    }

    #[tokio::test(start_paused = true)]
    async fn delays_grow_while_failures_continue() {
        let health = DependencyHealth::new("use a dependency");
        let mut waits = Vec::new();
        for _ in 0..10 {
            let wait = health.failed(&NoAnswer);
            waits.push(wait);
            tokio::time::sleep(wait).await;
        }
        assert!(waits[9] > 4 * waits[0], "{waits:?}");
    }

    /// Counts the lines that the code under test logs above the debug level.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            let text = String::from_utf8_lossy(line).into_owned();
            self.0.lock().expect("no panic").push(text);
            Ok(line.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn collect(&self) -> tracing::subscriber::DefaultGuard {
            let lines = self.clone();
            let subscriber = tracing_subscriber::fmt()
                .with_max_level(tracing::Level::INFO)
                .with_writer(move || lines.clone())
                .finish();
            tracing::subscriber::set_default(subscriber)
        }

        fn take(&self) -> Vec<String> {
            std::mem::take(&mut *self.0.lock().expect("no panic"))
        }
    }

    /// The probe of a database with a full disk succeeded while every claim failed.
    #[tokio::test(start_paused = true)]
    async fn flapping_dependency_is_one_outage() {
        let lines = Lines::default();
        let _guard = lines.collect();
        let health = DependencyHealth::new("reach the database");
        let began = Instant::now();
        let failures = std::cell::Cell::new(0);
        let flapping = async {
            while began.elapsed() < Duration::from_secs(25) {
                health.available().await;
                failures.set(failures.get() + 1);
                health.report(&NoAnswer);
            }
        };
        tokio::select! {
            () = flapping => {}
            () = health.probe(async || true) => unreachable!("a probe never returns"),
        }
        assert!(failures.get() < 16, "{} failures", failures.get());
        let logged = lines.take();
        assert!(logged.len() == 1 && logged[0].contains("cannot reach"), "{logged:?}");

        health.recovered();
        tokio::time::sleep(STABLE_AFTER / 2).await;
        assert_eq!(lines.take(), Vec::<String>::new());
        tokio::time::sleep(STABLE_AFTER).await;
        let logged = lines.take();
        assert!(
            logged.len() == 1 && logged[0].contains("can reach the database again"),
            "{logged:?}"
        );

        // The next one is a new outage.
        assert!(health.failed(&NoAnswer) <= Duration::from_millis(150));
        assert_eq!(lines.take().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn delays_start_over_after_a_proven_recovery() {
        let health = DependencyHealth::new("use a dependency");
        for _ in 0..10 {
            tokio::time::sleep(health.failed(&NoAnswer)).await;
        }
        health.recovered();
        tokio::time::sleep(PROVEN_AFTER).await;
        assert!(health.failed(&NoAnswer) <= Duration::from_millis(150));
    }
}
