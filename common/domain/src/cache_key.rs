//! By what caches know an object.

use std::{fmt, str::FromStr};

use super::{ContentHash, ContentHasher, InvalidHash, Owner};

/// What every cache of bytes, and everything that joins reads of the same bytes, goes by: an object of one
/// owner. Equal bytes of two owners are two objects here, so that neither can see by a hit, by a read that
/// was joined, or by the time of one, that the other has them. In the store they are one.
///
/// A hash of both, so that it is as small and as cheap to compare as the content's, and tells an engine that
/// holds it neither. Its text form is 64 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheKey(ContentHash);

/// What is hashed before an owner's name: no other use of SHA-256 here begins like this.
const PURPOSE: &[u8] = b"safelight-cache-v1\n";

impl CacheKey {
    /// That of `owner`'s object with this content.
    pub fn of(owner: &Owner, content: &ContentHash) -> Self {
        let mut hasher = ContentHasher::default();
        hasher.update(PURPOSE);
        hasher.update(owner.stored().as_bytes());
        // No name has it, so no two pairs read alike.
        hasher.update(b"\n");
        hasher.update(content.as_bytes());
        Self(hasher.finish())
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for CacheKey {
    type Err = InvalidHash;

    fn from_str(text: &str) -> Result<Self, InvalidHash> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bytes_of_two_owners_have_two_keys_and_those_of_one_have_one() {
        let (ada, bob): (Owner, Owner) = ("ada".parse().expect("ada"), "bob".parse().expect("bob"));
        let content = ContentHash::of(b"x");
        let key = CacheKey::of(&ada, &content);
        assert_eq!(key, CacheKey::of(&ada, &content));
        for other in [
            CacheKey::of(&bob, &content),
            CacheKey::of(&Owner::local(), &content),
            CacheKey::of(&ada, &ContentHash::of(b"y")),
            CacheKey(content),
        ] {
            assert_ne!(key, other);
        }
        assert_eq!(key.to_string().parse::<CacheKey>().expect("its text"), key);
    }
}
