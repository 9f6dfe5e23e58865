//! The leases that a worker holds, all renewed in one statement.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use safelight_store::{Jobs, Lease};
use tokio_util::sync::CancellationToken;

use super::breaker::Breaker;

/// How long a cancelled job may continue.
const NOTICE_CANCEL: Duration = Duration::from_secs(2);

/// Leases of running attempts.
#[derive(Default)]
pub(super) struct HeldLeases(Mutex<HashMap<Lease, LeaseState>>);

struct LeaseState {
    /// Cancelled when the lease is lost.
    lost: CancellationToken,
    /// Its settling has started: if it is no longer held, it may just be settled.
    settling: bool,
}

/// One lease among those held, until it is dropped.
pub(super) struct HeldLease<'a> {
    held: &'a HeldLeases,
    lease: Lease,
    /// Cancelled when the lease is lost.
    pub lost: CancellationToken,
}

impl HeldLeases {
    /// Keeps a lease until the returned value is dropped.
    pub fn hold(&self, lease: Lease) -> HeldLease<'_> {
        let lost = CancellationToken::new();
        self.lock().insert(lease, LeaseState { lost: lost.clone(), settling: false });
        HeldLease { held: self, lease, lost }
    }

    /// Renews every third of the lease time, but so often that a cancelled job is stopped soon; after
    /// a failure more often. Never returns.
    pub async fn keep(&self, jobs: &dyn Jobs, duration: Duration, breaker: &Breaker) {
        let third = duration / 3;
        let period = third.min(NOTICE_CANCEL);
        let mut pause = period;
        loop {
            tokio::time::sleep(pause).await;
            pause = period;
            let mut leases: Vec<Lease> = self.lock().keys().copied().collect();
            if leases.is_empty() {
                continue;
            }
            // All workers use the same order, so that their statements do not deadlock.
            leases.sort_unstable_by_key(|lease| (lease.job, lease.fence));
            let renewal = jobs.renew(&leases, duration);
            match tokio::time::timeout(third, renewal).await {
                Ok(Ok(renewed)) => self.give_up(&leases, &renewed.held),
                Ok(Err(error)) => {
                    if error.is_unavailable() {
                        breaker.database_failed(&error);
                    } else {
                        tracing::error!(error = &error as &dyn std::error::Error, "cannot renew");
                    }
                    pause = (period / 4).min(Duration::from_secs(1));
                }
                // The timeout was long enough.
                Err(_) => pause = Duration::ZERO,
            }
        }
    }

    fn give_up(&self, renewed: &[Lease], held: &[Lease]) {
        let held: HashSet<&Lease> = held.iter().collect();
        let states = self.lock();
        for lease in renewed.iter().filter(|lease| !held.contains(lease)) {
            if let Some(state) = states.get(lease).filter(|state| !state.settling) {
                state.lost.cancel();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Lease, LeaseState>> {
        // Nothing can panic half-way through a change of the map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldLease<'_> {
    /// From now on a lease that is no longer held does not count as lost: the result of settling decides. It
    /// is still renewed, because settling may have to wait for the database.
    pub fn settling(&self) {
        if let Some(state) = self.held.lock().get_mut(&self.lease) {
            state.settling = true;
        }
    }
}

impl Drop for HeldLease<'_> {
    fn drop(&mut self) {
        self.held.lock().remove(&self.lease);
    }
}
