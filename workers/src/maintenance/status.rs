//! What the services of this process did last.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, Utc};

/// The last runs of a process's services. Clones share them.
#[derive(Clone, Default)]
pub struct ServiceStatuses(Arc<Mutex<BTreeMap<&'static str, ServiceStatus>>>);

/// What one service did last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceStatus {
    /// When its last run began, by this machine's clock.
    pub last_run_at: Option<DateTime<Utc>>,
    /// When its last successful run ended.
    pub last_success_at: Option<DateTime<Utc>>,
    /// Why its last finished run failed; `None` if that succeeded.
    pub last_error: Option<String>,
}

impl ServiceStatuses {
    /// The status of every service that was started, by name.
    pub fn snapshot(&self) -> BTreeMap<&'static str, ServiceStatus> {
        self.lock().clone()
    }

    /// Adds a service that has not run yet.
    pub(super) fn register(&self, name: &'static str) {
        self.lock().entry(name).or_default();
    }

    pub(super) fn started(&self, name: &'static str) {
        self.lock().entry(name).or_default().last_run_at = Some(Utc::now());
    }

    pub(super) fn finished(&self, name: &'static str, error: Option<String>) {
        let mut statuses = self.lock();
        let status = statuses.entry(name).or_default();
        if error.is_none() {
            status.last_success_at = Some(Utc::now());
        }
        status.last_error = error.map(|text| without_details(&text));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, ServiceStatus>> {
        // No code that holds the lock can leave it half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What follows a colon is the text of a driver: it may name hosts and users, and goes to the log only.
fn without_details(error: &str) -> String {
    error.split_once(": ").map_or(error, |(what, _)| what).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_of_errors_are_left_to_the_log() {
        let statuses = ServiceStatuses::default();
        statuses
            .finished("relay", Some("the database is unavailable: no route to db-1".to_owned()));
        let status = statuses.snapshot().remove("relay").expect("recorded");
        assert_eq!(status.last_error.as_deref(), Some("the database is unavailable"));
    }
}
