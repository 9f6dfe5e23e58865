//! What goes into and comes out of the store for keys and the audit log.

use std::time::Duration;

use chrono::{DateTime, Utc};
use safelight_domain::{ApiKey, ContentHash, Owner, Scopes, SigningKey};
use uuid::Uuid;

/// A key to record; its secret has been told to whoever asked for it and is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewApiKey {
    /// Its id.
    pub id: Uuid,
    /// How its secret begins.
    pub prefix: String,
    /// Whose it is.
    pub owner: Owner,
    /// What it may be used for.
    pub scopes: Scopes,
    /// The hash of its secret.
    pub secret_sha256: ContentHash,
    /// How long it is accepted from now on; `None` for ever.
    pub lifetime: Option<Duration>,
}

/// A key, and what a request that presents it is held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownApiKey {
    /// The key.
    pub key: ApiKey,
    /// The hash of its secret.
    pub secret_sha256: ContentHash,
    /// Neither revoked nor expired, by the database's clock.
    pub is_live: bool,
}

/// A key for signed URLs to record.
#[derive(Clone, PartialEq, Eq)]
pub struct NewSigningKey {
    /// How URLs name it.
    pub id: String,
    /// Whose images it opens.
    pub owner: Owner,
    /// Its secret.
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for NewSigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewSigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A key for signed URLs that is accepted now.
#[derive(Clone, PartialEq, Eq)]
pub struct LiveSigningKey {
    /// The key.
    pub key: SigningKey,
    /// Its secret.
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for LiveSigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveSigningKey").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Something that an admin did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// Its id; later ones are greater.
    pub id: Uuid,
    /// When; [`super::Store::audit`] sets it by the database's clock.
    pub at: DateTime<Utc>,
    /// The prefix of the key that was used; `None` where none was.
    pub key: Option<String>,
    /// Whose key.
    pub owner: Owner,
    /// What was done: `keys.create`.
    pub action: String,
    /// To what.
    pub target: String,
}
