//! Places among the uploads in flight: so many in all, and of each owner no more than its share, so that
//! whoever sends many bodies, or slow ones, leaves places to others.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use safelight_domain::Owner;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Those of a process.
pub struct Places {
    all: Arc<Semaphore>,
    held: Arc<Held>,
}

/// How many each owner holds that holds any.
#[derive(Default)]
struct Held(Mutex<HashMap<Owner, usize>>);

/// One place, until this is dropped.
pub struct Place {
    owner: Owner,
    held: Arc<Held>,
    _one: OwnedSemaphorePermit,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The owner holds its share.
    Share,
    /// All are taken.
    All,
}

impl Places {
    /// `limit` places, all free.
    pub fn new(limit: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(limit)), held: Arc::default() }
    }

    /// A place for `owner`, which may hold `share` of them.
    pub fn take(&self, owner: &Owner, share: usize) -> Result<Place, Full> {
        // First, so that a share which is all of them is never what is used up.
        let one = self.all.clone().try_acquire_owned().map_err(|_| Full::All)?;
        let mut held = self.held.lock();
        if held.get(owner).is_some_and(|count| *count >= share) {
            return Err(Full::Share);
        }
        *held.entry(owner.clone()).or_default() += 1;
        Ok(Place { owner: owner.clone(), held: self.held.clone(), _one: one })
    }
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, HashMap<Owner, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.held.lock().entry(self.owner.clone()) {
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
    fn nobody_takes_more_than_its_share_and_all_come_back() {
        let (ada, bob): (Owner, Owner) = ("ada".parse().expect("ada"), "bob".parse().expect("bob"));
        let places = Places::new(4);
        let take = |owner: &Owner| places.take(owner, 3);
        let mut taken: Vec<Place> = (0..3).map(|_| take(&ada).expect("within its share")).collect();
        assert_eq!(take(&ada).err(), Some(Full::Share));
        taken.push(take(&bob).expect("a place is left for others"));
        assert_eq!(take(&bob).err(), Some(Full::All));
        drop(taken.remove(0));
        taken.push(take(&ada).expect("one came back"));
        drop(taken);
        assert!(places.held.lock().is_empty(), "nothing is remembered");
        assert_eq!(places.all.available_permits(), 4);
    }
}
