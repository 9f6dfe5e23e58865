//! The last runs of the services of this process.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chrono::Utc;
use safelight_store::ServiceRun;

/// The last runs of a process's services. Clones share them.
#[derive(Clone, Default)]
pub struct ServiceStatuses(Arc<Mutex<BTreeMap<&'static str, ServiceRun>>>);

impl ServiceStatuses {
    /// The last run of every service that was started, by name.
    pub fn snapshot(&self) -> Vec<ServiceRun> {
        self.lock().values().cloned().collect()
    }

    /// Adds a service that has not run yet.
    pub(super) fn register(&self, name: &'static str) {
        self.update(name, |_| {});
    }

    pub(super) fn started(&self, name: &'static str) {
        self.update(name, |run| run.last_run_at = Some(Utc::now()));
    }

    pub(super) fn finished(&self, name: &'static str, error: Option<&str>) {
        self.update(name, |run| {
            if error.is_none() {
                run.last_success_at = Some(Utc::now());
            }
            run.last_error = error.map(without_details);
        });
    }

    fn update(&self, name: &'static str, change: impl FnOnce(&mut ServiceRun)) {
        let mut runs = self.lock();
        change(runs.entry(name).or_insert_with(|| ServiceRun {
            name: name.to_owned(),
            last_run_at: None,
            last_success_at: None,
            last_error: None,
        }));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, ServiceRun>> {
        // No code that holds the lock can leave it half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The text after a colon is a driver's: it may contain hosts and users, and goes to the log only.
fn without_details(error: &str) -> String {
    error.split_once(": ").map_or(error, |(what, _)| what).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_omits_error_details() {
        let statuses = ServiceStatuses::default();
        statuses.finished("relay", Some("the database is unavailable: no route to db-1"));
        let error = statuses.snapshot().remove(0).last_error;
        assert_eq!(error.as_deref(), Some("the database is unavailable"));
    }
}
