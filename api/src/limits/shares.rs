//! A number of permits in all, and no more than a share of them per holder, so that a holder with many, slow or
//! large things leaves permits to others.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// The permits of a process for one kind of thing. Clones share them.
pub struct Shares<K>(Arc<Inner<K>>);

struct Inner<K> {
    limit: usize,
    taken: Mutex<Taken<K>>,
    returned: Notify,
}

/// What is taken. Holders without permits have no entry, so there are never more entries than permits.
struct Taken<K> {
    all: usize,
    by_holder: HashMap<K, usize>,
}

/// Permits of one holder, until this is dropped.
pub struct Permit<K: Hash + Eq> {
    holder: K,
    number: usize,
    shares: Arc<Inner<K>>,
}

/// Why there is no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPermit {
    /// The holder has its share.
    OwnShare,
    /// All are taken.
    All,
}

impl<K> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Hash + Eq + Clone> Shares<K> {
    /// `limit` permits.
    pub fn new(limit: usize) -> Self {
        let taken = Mutex::new(Taken { all: 0, by_holder: HashMap::new() });
        Self(Arc::new(Inner { limit, taken, returned: Notify::new() }))
    }

    /// How many there are.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// `number` permits for `holder`, which may have `share` of them at a time. A holder without any gets at least
    /// what it asks for if that is free, even beyond its share: one large thing is not too many.
    pub fn acquire(&self, holder: &K, number: usize, share: usize) -> Result<Permit<K>, NoPermit> {
        let mut taken = self.0.taken();
        // Checked first, so that a share of all permits never counts as the reason.
        if taken.all.saturating_add(number) > self.0.limit && taken.all > 0 {
            return Err(NoPermit::All);
        }
        let own = taken.by_holder.get(holder).copied().unwrap_or(0);
        if own.saturating_add(number) > share && own > 0 {
            return Err(NoPermit::OwnShare);
        }
        taken.all += number;
        *taken.by_holder.entry(holder.clone()).or_default() += number;
        drop(taken);
        Ok(Permit { holder: holder.clone(), number, shares: self.0.clone() })
    }

    /// [`Shares::acquire`], which waits in turn until there are so many. Fails if the holder has its share by then.
    pub async fn acquire_later(
        &self,
        holder: &K,
        number: usize,
        share: usize,
    ) -> Result<Permit<K>, NoPermit> {
        loop {
            let returned = self.0.returned.notified();
            match self.acquire(holder, number, share) {
                Err(NoPermit::All) => returned.await,
                Err(NoPermit::OwnShare) => {
                    // What was returned is for the next.
                    self.0.returned.notify_one();
                    return Err(NoPermit::OwnShare);
                }
                acquired => return acquired,
            }
        }
    }

    /// How many are taken.
    #[cfg(test)]
    pub fn taken(&self) -> usize {
        self.0.taken().all
    }
}

impl<K> Inner<K> {
    fn taken(&self) -> MutexGuard<'_, Taken<K>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut taken = self.shares.taken();
        taken.all -= self.number;
        if let Some(own) = taken.by_holder.get_mut(&self.holder) {
            *own -= self.number;
            if *own == 0 {
                taken.by_holder.remove(&self.holder);
            }
        }
        drop(taken);
        self.shares.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn holder_gets_at_most_its_share_and_permits_return() {
        let shares = Shares::new(4);
        let take = |holder: &&'static str| shares.acquire(holder, 1, 3);
        let mut taken: Vec<_> = (0..3).map(|_| take(&"ada").expect("within its share")).collect();
        assert_eq!(take(&"ada").err(), Some(NoPermit::OwnShare));
        taken.push(take(&"bob").expect("a permit is left for others"));
        assert_eq!(take(&"bob").err(), Some(NoPermit::All));
        drop(taken.remove(0));
        taken.push(take(&"ada").expect("a permit was returned"));
        drop(taken);
        assert!(shares.0.taken().by_holder.is_empty(), "holders without permits are removed");
        assert_eq!(shares.taken(), 0);
    }

    #[tokio::test]
    async fn returned_permits_go_to_those_that_wait_in_turn() {
        let shares = Shares::new(1);
        let taken = shares.acquire(&"ada", 1, 1).expect("free");
        let mut first = Box::pin(shares.acquire_later(&"bob", 1, 1));
        let mut second = Box::pin(shares.acquire_later(&"eve", 1, 1));
        assert!(futures::poll!(&mut first).is_pending());
        assert!(futures::poll!(&mut second).is_pending());
        drop(taken);
        assert!(futures::poll!(&mut second).is_pending(), "it is not its turn");
        let taken = first.now_or_never().expect("its turn").expect("returned");
        drop(taken);
        drop(second.now_or_never().expect("its turn").expect("returned"));
        let taken = shares.acquire(&"ada", 1, 1).expect("free");
        let leaves = shares.acquire_later(&"bob", 1, 1);
        assert!(futures::poll!(Box::pin(leaves)).is_pending());
        let stays = shares.acquire_later(&"eve", 1, 1);
        drop(taken);
        let stays = stays.now_or_never().expect("the one that left does not take it along");
        drop(stays.expect("returned"));
    }

    #[test]
    fn one_large_thing_is_admitted_and_a_second_is_not() {
        let shares = Shares::new(100);
        let large = shares.acquire(&"ada", 80, 50).expect("the first");
        assert_eq!(shares.acquire(&"ada", 1, 50).err(), Some(NoPermit::OwnShare));
        let small = shares.acquire(&"bob", 20, 50).expect("what is left");
        assert_eq!(shares.acquire(&"eve", 1, 50).err(), Some(NoPermit::All));
        drop((large, small));
        let whole = shares.acquire(&"ada", 200, 50).expect("the only one");
        assert_eq!(shares.acquire(&"bob", 1, 50).err(), Some(NoPermit::All));
        drop(whole);
        assert_eq!(shares.taken(), 0);
    }
}
