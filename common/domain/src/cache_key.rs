//! The keys of caches.

use std::{fmt, str::FromStr};

use super::{ContentHash, ContentHasher, InvalidHash, Owner};

/// Identifies an object of one owner in every cache of bytes and wherever concurrent reads are combined. Equal
/// bytes of two owners have different keys, so that neither owner can detect the other's bytes by a cache hit, a
/// combined read, or the time of a response. The blob store keeps such bytes only once.
///
/// It is a hash of owner and content, so that it is small, cheap to compare, and reveals neither to the cache
/// server. Its text form is 64 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheKey(ContentHash);

/// The domain separator: no other input of SHA-256 here starts like this.
const PURPOSE: &[u8] = b"safelight-cache-v1\n";

impl CacheKey {
    /// The key of `owner`'s object with this content.
    pub fn of(owner: &Owner, content: &ContentHash) -> Self {
        let mut hasher = ContentHasher::default();
        hasher.update(PURPOSE);
        hasher.update(owner.storage_name().as_bytes());
        // No name contains it, so no two pairs have the same input.
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
    fn equal_bytes_share_a_key_only_within_one_owner() {
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
