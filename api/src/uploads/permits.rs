//! Permits for uploads in flight: a number in all, and no more than a share of them per owner, so that an owner
//! with many bodies, or slow ones, leaves permits to others.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use safelight_domain::Owner;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The permits of a process.
pub struct UploadPermits {
    all: Arc<Semaphore>,
    per_owner: Arc<PerOwner>,
}

/// How many permits each owner holds; owners without any have no entry.
#[derive(Default)]
struct PerOwner(Mutex<HashMap<Owner, usize>>);

/// A permit for one upload, until this is dropped.
pub struct UploadPermit {
    owner: Owner,
    per_owner: Arc<PerOwner>,
    _permit: OwnedSemaphorePermit,
}

/// Why there is no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPermit {
    /// The owner holds its share.
    OwnerShare,
    /// All are taken.
    All,
}

impl UploadPermits {
    /// `limit` permits.
    pub fn new(limit: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(limit)), per_owner: Arc::default() }
    }

    /// A permit for `owner`, which may hold `share` of them.
    pub fn acquire(&self, owner: &Owner, share: usize) -> Result<UploadPermit, NoPermit> {
        // Checked first, so that a share of all permits never counts as the reason.
        let permit = self.all.clone().try_acquire_owned().map_err(|_| NoPermit::All)?;
        let mut held = self.per_owner.lock();
        if held.get(owner).is_some_and(|count| *count >= share) {
            return Err(NoPermit::OwnerShare);
        }
        *held.entry(owner.clone()).or_default() += 1;
        Ok(UploadPermit {
            owner: owner.clone(),
            per_owner: self.per_owner.clone(),
            _permit: permit,
        })
    }
}

impl PerOwner {
    fn lock(&self) -> MutexGuard<'_, HashMap<Owner, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UploadPermit {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.per_owner.lock().entry(self.owner.clone()) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_gets_at_most_its_share_and_permits_return() {
        let (ada, bob): (Owner, Owner) = ("ada".parse().expect("ada"), "bob".parse().expect("bob"));
        let permits = UploadPermits::new(4);
        let take = |owner: &Owner| permits.acquire(owner, 3);
        let mut taken: Vec<UploadPermit> =
            (0..3).map(|_| take(&ada).expect("within its share")).collect();
        assert_eq!(take(&ada).err(), Some(NoPermit::OwnerShare));
        taken.push(take(&bob).expect("a permit is left for others"));
        assert_eq!(take(&bob).err(), Some(NoPermit::All));
        drop(taken.remove(0));
        taken.push(take(&ada).expect("a permit was returned"));
        drop(taken);
        assert!(permits.per_owner.lock().is_empty(), "owners without permits are removed");
        assert_eq!(permits.all.available_permits(), 4);
    }
}
