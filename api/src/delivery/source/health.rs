//! A tier that fails is left alone for a while, and then tried again.

use std::{
    fmt::Display,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use safelight_domain::retry::Reconnect;

/// How one part that reads can do without is doing.
pub struct Health {
    /// Its name, for the log.
    part: &'static str,
    trouble: Mutex<Option<Trouble>>,
}

/// Since its first failure.
struct Trouble {
    reconnect: Reconnect,
    /// Until when it is left alone.
    until: Instant,
}

impl Health {
    /// Nothing has failed yet.
    pub const fn new(part: &'static str) -> Self {
        Self { part, trouble: Mutex::new(None) }
    }

    /// Whether it is to be used now. Of a part that has failed, one request at a time finds out
    /// whether it works again.
    pub fn is_usable(&self) -> bool {
        match self.lock().as_mut() {
            None => true,
            Some(trouble) if trouble.until > Instant::now() => false,
            Some(trouble) => {
                trouble.until = Instant::now() + trouble.reconnect.next_delay();
                true
            }
        }
    }

    /// Notes a failure: it is left alone for longer and longer.
    pub fn failed(&self, error: &dyn Display) {
        let mut trouble = self.lock();
        if trouble.is_none() {
            tracing::warn!(%error, "{} fails; reads do without until it works again", self.part);
            let mut reconnect = Reconnect::default();
            let until = Instant::now() + reconnect.next_delay();
            *trouble = Some(Trouble { reconnect, until });
        }
    }

    /// Notes that it works.
    pub fn works(&self) {
        if self.lock().take().is_some() {
            tracing::info!("{} works again", self.part);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a part may take to answer before a read does without it.
pub const PATIENCE: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_part_is_tried_by_one_at_a_time() {
        let health = Health::new("a part");
        assert!(health.is_usable());
        health.failed(&"broken");
        assert!(!health.is_usable());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !health.is_usable() {
            assert!(Instant::now() < deadline, "never tried again");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!health.is_usable(), "the next one waits for what the first finds out");
        health.works();
        assert!(health.is_usable());
    }
}
