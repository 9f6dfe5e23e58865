//! The database's clock: the system clock, unless a test sets one by hand.

use chrono::Utc;

/// Where the store reads the time, once per decision.
#[derive(Clone, Default)]
pub struct Clock {
    #[cfg(any(test, feature = "testing"))]
    manual: Option<std::sync::Arc<std::sync::atomic::AtomicI64>>,
}

impl Clock {
    /// Microseconds since 1970, as this database stores times.
    #[cfg_attr(not(feature = "testing"), allow(clippy::unused_self))] // only a test has a choice
    pub fn now(&self) -> i64 {
        #[cfg(any(test, feature = "testing"))]
        if let Some(manual) = &self.manual {
            return manual.load(std::sync::atomic::Ordering::SeqCst);
        }
        Utc::now().timestamp_micros()
    }

    /// A clock that shows the time in `manual`.
    #[cfg(any(test, feature = "testing"))]
    pub fn manual(manual: std::sync::Arc<std::sync::atomic::AtomicI64>) -> Self {
        Self { manual: Some(manual) }
    }
}
