//! Who waits, and how many may.

use safelight_domain::Owner;

use crate::{
    auth::Caller,
    http::problem::{Problem, ProblemCode},
    limits::NoPermit,
};

/// Of the waits for one owner's images, the part that one image may have.
pub const IMAGE_PART: usize = 2;

/// Who waits, and so who has too many waits: the others still have theirs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Waiting {
    /// The holder of a key of this owner.
    Owner(Owner),
    /// Somebody without a key, before there are any: the only client.
    Local,
    /// Anybody who wants an image of this owner. Who that is does not count: behind a proxy all clients have one
    /// address, and an image can be public.
    ImageOf(Owner),
}

impl From<&Caller> for Waiting {
    fn from(caller: &Caller) -> Self {
        if caller.has_key() { Self::Owner(caller.owner.clone()) } else { Self::Local }
    }
}

/// How many may wait.
#[derive(Debug, Clone, Copy)]
pub struct WaitLimits {
    /// In this process.
    pub all: usize,
    /// Of these, for each owner, and as many for its images.
    pub per_owner: usize,
}

/// Too many clients are waiting.
#[derive(Debug, PartialEq, Eq)]
pub struct TooManyWatchers(pub NoPermit);

impl From<TooManyWatchers> for Problem {
    fn from(TooManyWatchers(why): TooManyWatchers) -> Self {
        let detail = match why {
            NoPermit::All => "As many clients are waiting at this node as it allows.",
            NoPermit::OwnShare => "As many are waiting at this node as it allows for one owner.",
        };
        Self::new(ProblemCode::TooManyWaiting, detail).hint("poll without `Prefer: wait`")
    }
}
