//! Access control: keys, their scopes, and the visibility of images.

use std::{collections::BTreeSet, fmt, ops::RangeInclusive, str::FromStr, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Owner, UnknownName, text_enum::text_enum};

text_enum! {
    /// What a key may be used for.
    "scope" Scope {
        /// Upload, delete, cancel and retry: change the owner's objects.
        Upload = "upload",
        /// Read the owner's objects.
        Read = "read",
        /// Operate the installation: keys, workers, queues and backfills, for any owner.
        Admin = "admin",
        /// Read `/metrics` only.
        Metrics = "metrics",
    }
}

text_enum! {
    /// Who may read an image's bytes.
    "visibility" Visibility {
        /// Everyone who knows the id, which cannot be guessed.
        Public = "public",
        /// Its owner's keys, and everyone with a signed URL.
        Private = "private",
    }
}

/// The scopes of a key, at least one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Scopes(BTreeSet<Scope>);

impl Scopes {
    /// Every scope.
    pub fn all() -> Self {
        Self(Scope::ALL.iter().copied().collect())
    }

    /// Whether the key may use this scope. An admin may also read metrics.
    pub fn allow(&self, scope: Scope) -> bool {
        let is_operator = scope == Scope::Metrics && self.0.contains(&Scope::Admin);
        is_operator || self.0.contains(&scope)
    }

    /// The scopes, in order.
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

/// A key as it is stored: everything but the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id.
    pub id: Uuid,
    /// The first characters of the secret, which identify the key and are not confidential.
    pub prefix: String,
    /// The owner for whom it acts.
    pub owner: Owner,
    /// What it may be used for.
    pub scopes: Scopes,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it expires; `None` for never.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
    /// When it was last used, up to about a minute behind.
    pub last_used_at: Option<DateTime<Utc>>,
}

impl ApiKey {
    /// The possible lifetimes of a key that expires: at most 100 years.
    pub const LIFETIME: RangeInclusive<Duration> =
        Duration::from_secs(1)..=Duration::from_hours(100 * 8766);
}

/// A key with which URLs of private images are signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningKey {
    /// The id that URLs contain.
    pub id: String,
    /// The owner of the images to which it gives access.
    pub owner: Owner,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// An owner's usage. Increases when an upload is accepted, and decreases when its image is discarded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Images.
    pub images: u64,
    /// Bytes of their originals. Each image counts in full, even if several share the same bytes.
    pub bytes: u64,
}

/// The limit on an owner's usage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Images; `None` for no limit.
    pub images: Option<u64>,
    /// Bytes of originals; `None` for no limit.
    pub bytes: Option<u64>,
}

impl Quota {
    /// Whether it sets no limit.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    /// Whether one more image of `bytes` bytes fits on top of `used`.
    pub fn has_room(&self, used: Usage, bytes: u64) -> bool {
        let images = self.images.is_none_or(|most| used.images < most);
        images && self.bytes.is_none_or(|most| used.bytes.saturating_add(bytes) <= most)
    }

    /// Counts one more image if [`Quota::has_room`].
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
    fn scopes_parse_back() {
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
    fn quota_is_full_exactly_at_its_limit() {
        let quota = Quota { images: Some(2), bytes: Some(100) };
        let used = |images, bytes| Usage { images, bytes };
        assert!(quota.has_room(used(1, 60), 40));
        assert!(!quota.has_room(used(1, 60), 41));
        assert!(!quota.has_room(used(2, 0), 1));
        assert!(!quota.has_room(used(0, 1), u64::MAX));
        assert!(Quota::default().has_room(used(u64::MAX, u64::MAX), u64::MAX));

        let mut stored = used(1, 60);
        assert!(!quota.take(&mut stored, 41));
        assert_eq!(stored, used(1, 60), "an image over the quota is not counted");
        assert!(quota.take(&mut stored, 40));
        assert_eq!(stored, used(2, 100));
    }
}
