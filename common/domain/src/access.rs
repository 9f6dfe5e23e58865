//! Who may do what: keys, their scopes, and who may see an image.

use std::{collections::BTreeSet, fmt, ops::RangeInclusive, str::FromStr, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Owner, UnknownName, text_enum::text_enum};

text_enum! {
    /// What a key may be used for.
    "scope" Scope {
        /// Upload, delete, cancel and try again: change what is its owner's.
        Upload = "upload",
        /// Read what is its owner's.
        Read = "read",
        /// Operate the installation: keys, workers, queues, backfills, other owners by name.
        Admin = "admin",
        /// Read `/metrics`, and nothing else.
        Metrics = "metrics",
    }
}

text_enum! {
    /// Who may read an image's bytes.
    "visibility" Visibility {
        /// Whoever knows its id, which cannot be guessed.
        Public = "public",
        /// Its owner's keys, and whoever has a signed URL.
        Private = "private",
    }
}

/// The scopes of a key, at least one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Scopes(BTreeSet<Scope>);

impl Scopes {
    /// Every scope there is.
    pub fn all() -> Self {
        Self(Scope::ALL.iter().copied().collect())
    }

    /// Whether this is one of them. An admin may also read metrics.
    pub fn allow(&self, scope: Scope) -> bool {
        let is_operator = scope == Scope::Metrics && self.0.contains(&Scope::Admin);
        is_operator || self.0.contains(&scope)
    }

    /// They, in order.
    pub fn iter(&self) -> impl Iterator<Item = Scope> {
        self.0.iter().copied()
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|scope| scope.as_str()).collect();
        f.pad(&names.join(","))
    }
}

impl FromStr for Scopes {
    type Err = UnknownName;

    /// Names separated by commas.
    fn from_str(names: &str) -> Result<Self, UnknownName> {
        names.split(',').map(|name| name.trim().parse()).collect::<Result<_, _>>().map(Self)
    }
}

/// A key as it is kept: all but the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id.
    pub id: Uuid,
    /// How its secret begins, by which it is found; in itself worth nothing.
    pub prefix: String,
    /// Whose it is.
    pub owner: Owner,
    /// What it may be used for.
    pub scopes: Scopes,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// From when on it is not accepted any more; `None` for never.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
    /// When it was last used, a minute or so behind.
    pub last_used_at: Option<DateTime<Utc>>,
}

impl ApiKey {
    /// How long a key may be good that is not good for ever: long enough to be used, and at most 100 years.
    pub const LIFETIME: RangeInclusive<Duration> =
        Duration::from_secs(1)..=Duration::from_hours(100 * 8766);
}

/// A key with which URLs of private images are signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningKey {
    /// How URLs name it.
    pub id: String,
    /// Whose images it opens.
    pub owner: Owner,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// What an owner has stored; counted when an upload is accepted, and off again when its image is
/// discarded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Images.
    pub images: u64,
    /// Bytes of their originals, each image's in full also where equal ones share them.
    pub bytes: u64,
}

/// What an owner may store at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Images; `None` for any number.
    pub images: Option<u64>,
    /// Bytes of originals; `None` for any number.
    pub bytes: Option<u64>,
}

impl Quota {
    /// Whether it limits anything.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    /// Whether one more image of `bytes` bytes fits beside what is `used`.
    pub fn has_room(&self, used: Usage, bytes: u64) -> bool {
        let images = self.images.is_none_or(|most| used.images < most);
        images && self.bytes.is_none_or(|most| used.bytes.saturating_add(bytes) <= most)
    }

    /// [`Quota::has_room`], and counts the image if there is.
    pub fn take(&self, used: &mut Usage, bytes: u64) -> bool {
        let has_room = self.has_room(*used, bytes);
        if has_room {
            used.images += 1;
            used.bytes = used.bytes.saturating_add(bytes);
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_as_they_are_written() {
        let scopes: Scopes = "read, upload".parse().expect("scopes");
        assert_eq!(scopes.to_string(), "upload,read");
        assert!(scopes.allow(Scope::Read) && !scopes.allow(Scope::Admin));
        assert!(!scopes.allow(Scope::Metrics));
        let admin: Scopes = "admin".parse().expect("scopes");
        assert!(admin.allow(Scope::Metrics) && !admin.allow(Scope::Read));
        for bad in ["", "read,", "everything", "Read"] {
            assert!(bad.parse::<Scopes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_quota_is_full_exactly_at_its_limit() {
        let quota = Quota { images: Some(2), bytes: Some(100) };
        let used = |images, bytes| Usage { images, bytes };
        assert!(quota.has_room(used(1, 60), 40));
        assert!(!quota.has_room(used(1, 60), 41));
        assert!(!quota.has_room(used(2, 0), 1));
        assert!(!quota.has_room(used(0, 1), u64::MAX));
        assert!(Quota::default().has_room(used(u64::MAX, u64::MAX), u64::MAX));

        let mut stored = used(1, 60);
        assert!(!quota.take(&mut stored, 41));
        assert_eq!(stored, used(1, 60), "what has no room is not counted");
        assert!(quota.take(&mut stored, 40));
        assert_eq!(stored, used(2, 100));
    }
}
