//! The decoders that wait for a picture. None that has read a picture is given one of another owner: a picture that
//! took over its decoder would see it, and could answer for it.

use std::time::{Duration, Instant};

use safelight_domain::Owner;

/// A decoder idle for this long is stopped when another one is returned.
const MAX_IDLE: Duration = Duration::from_mins(2);

/// Waiting decoders, ordered by last use.
pub(super) struct IdleDecoders<D> {
    decoders: Vec<Idle<D>>,
}

struct Idle<D> {
    decoder: D,
    /// Whose pictures it has read; `None` if it has read none.
    owner: Option<Owner>,
    since: Instant,
}

impl<D> Default for IdleDecoders<D> {
    fn default() -> Self {
        Self { decoders: Vec::new() }
    }
}

impl<D> IdleDecoders<D> {
    /// The decoder that this owner used last, or else one that has read no picture.
    pub fn take(&mut self, owner: &Owner) -> Option<D> {
        let used = |idle: &Idle<D>| idle.owner.as_ref() == Some(owner);
        let unused = |idle: &Idle<D>| idle.owner.is_none();
        let at = self.decoders.iter().rposition(used);
        let at = at.or_else(|| self.decoders.iter().rposition(unused))?;
        Some(self.decoders.remove(at).decoder)
    }

    /// Keeps a decoder that has read pictures of `owner`, or none.
    pub fn put(&mut self, decoder: D, owner: Option<Owner>) {
        self.decoders.retain(|idle| idle.since.elapsed() < MAX_IDLE);
        self.decoders.push(Idle { decoder, owner, since: Instant::now() });
    }

    /// Stops those that were used least recently, until `count` are left.
    pub fn shrink_to(&mut self, count: usize) {
        let excess = self.decoders.len().saturating_sub(count);
        self.decoders.drain(..excess);
    }

    /// Whether a decoder that has read no picture will be needed: others are idle, and cannot be given to everybody.
    pub fn needs_unused(&self, owner: &Owner) -> bool {
        let others = |idle: &Idle<D>| idle.owner.as_ref().is_some_and(|other| other != owner);
        self.decoders.iter().any(others) && self.decoders.iter().all(|idle| idle.owner.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> Owner {
        name.parse().expect("a name")
    }

    #[test]
    fn decoder_that_read_a_picture_serves_its_owner_only() {
        let [ada, bob, eve] = ["ada", "bob", "eve"].map(owner);
        let mut idle = IdleDecoders::default();
        idle.put("of ada", Some(ada.clone()));
        idle.put("newer of ada", Some(ada.clone()));
        idle.put("of bob", Some(bob.clone()));
        assert_eq!(idle.take(&eve), None);
        idle.put("unused", None);
        assert_eq!(idle.take(&ada), Some("newer of ada"), "her own are preferred");
        assert_eq!(idle.take(&eve), Some("unused"));
        assert_eq!(idle.take(&eve), None);
        assert_eq!(idle.take(&bob), Some("of bob"));
        assert_eq!(idle.take(&Owner::local()), None, "the local owner is one like others");
        assert_eq!(idle.take(&ada), Some("of ada"));
    }

    #[test]
    fn unused_decoder_is_prepared_once_there_are_several_owners() {
        let [ada, bob] = ["ada", "bob"].map(owner);
        let mut idle = IdleDecoders::default();
        assert!(!idle.needs_unused(&ada));
        idle.put((), Some(ada.clone()));
        assert!(!idle.needs_unused(&ada), "one owner needs none");
        assert!(idle.needs_unused(&bob));
        idle.put((), None);
        assert!(!idle.needs_unused(&bob), "one is enough");
    }

    #[test]
    fn least_recently_used_decoders_are_stopped_first() {
        let [ada, bob] = ["ada", "bob"].map(owner);
        let mut idle = IdleDecoders::default();
        idle.put(1, Some(ada.clone()));
        idle.put(2, Some(bob.clone()));
        idle.put(3, None);
        idle.shrink_to(2);
        assert_eq!((idle.take(&ada), idle.take(&bob)), (Some(3), Some(2)));
        idle.shrink_to(0);
    }
}
