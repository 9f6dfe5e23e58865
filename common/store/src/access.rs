//! API keys, keys for signed URLs, usage, and the audit log.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use safelight_domain::{ApiKey, ContentHash, Owner, Scopes, SigningKey, Usage};
use uuid::Uuid;

use crate::{PageRequest, StoreError};

/// API keys, keys for signed URLs, usage, and the audit log.
#[async_trait]
pub trait Access: Send + Sync + 'static {
    /// Records an API key. Recording it again changes nothing.
    async fn create_api_key(&self, new: &NewApiKey) -> Result<(), StoreError>;

    /// The API keys whose secrets start with these prefixes, in any order.
    async fn api_keys(&self, prefixes: &[String]) -> Result<Vec<KnownApiKey>, StoreError>;

    /// The API key whose secret starts with `prefix`.
    async fn api_key(&self, prefix: &str) -> Result<Option<KnownApiKey>, StoreError> {
        Ok(self.api_keys(&[prefix.to_owned()]).await?.pop())
    }

    /// Whether an API key exists or ever existed: revoked and expired ones count.
    async fn has_api_keys(&self) -> Result<bool, StoreError>;

    /// API keys of one owner, or of all, newest first.
    async fn list_api_keys(
        &self,
        owner: Option<&Owner>,
        page: &PageRequest<Uuid>,
    ) -> Result<Vec<ApiKey>, StoreError>;

    /// Revokes an API key immediately; does not change a revoked key. `None` if the key does not exist.
    async fn revoke_api_key(&self, id: Uuid) -> Result<Option<ApiKey>, StoreError>;

    /// Records that an API key was used now.
    async fn note_key_use(&self, id: Uuid) -> Result<(), StoreError>;

    /// Records a key for signed URLs, unless its owner has `at_most` other live ones. Recording it again
    /// changes nothing.
    async fn create_signing_key(
        &self,
        new: &NewSigningKey,
        at_most: u32,
    ) -> Result<bool, StoreError>;

    /// The live key for signed URLs with this id.
    async fn signing_key(&self, id: &str) -> Result<Option<LiveSigningKey>, StoreError>;

    /// The newest live key for signed URLs of an owner.
    async fn newest_signing_key(&self, owner: &Owner)
    -> Result<Option<LiveSigningKey>, StoreError>;

    /// Keys for signed URLs of one owner, or of all, newest first.
    async fn list_signing_keys(&self, owner: Option<&Owner>)
    -> Result<Vec<SigningKey>, StoreError>;

    /// Revokes a key for signed URLs immediately. `None` if the key does not exist.
    async fn revoke_signing_key(&self, id: &str) -> Result<Option<SigningKey>, StoreError>;

    /// What an owner stores.
    async fn usage(&self, owner: &Owner) -> Result<Usage, StoreError>;

    /// Adds an entry to the audit log.
    async fn audit(&self, entry: &AuditEntry) -> Result<(), StoreError>;

    /// The audit log, newest entry first.
    async fn list_audit(&self, page: &PageRequest<Uuid>) -> Result<Vec<AuditEntry>, StoreError>;
}

/// An API key to record. Its secret was shown to the person who asked for it and is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewApiKey {
    /// Its id.
    pub id: Uuid,
    /// The start of its secret.
    pub prefix: String,
    /// Its owner.
    pub owner: Owner,
    /// What it permits.
    pub scopes: Scopes,
    /// The hash of its secret.
    pub secret_sha256: ContentHash,
    /// How long it is valid from now on; `None` for no limit.
    pub lifetime: Option<Duration>,
}

/// An API key with the data to check a request that presents it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownApiKey {
    /// The key.
    pub key: ApiKey,
    /// The hash of its secret.
    pub secret_sha256: ContentHash,
    /// Whether it is neither revoked nor expired, by the database's clock.
    pub is_live: bool,
}

/// A key for signed URLs to record.
#[derive(Clone, PartialEq, Eq)]
pub struct NewSigningKey {
    /// How URLs name it.
    pub id: String,
    /// The owner whose images it opens.
    pub owner: Owner,
    /// Its secret.
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for NewSigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewSigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A key for signed URLs that is valid now.
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

/// An entry of the audit log: something that an admin did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// Its id; later entries have greater ids.
    pub id: Uuid,
    /// When; [`Access::audit`] sets it by the database's clock.
    pub at: DateTime<Utc>,
    /// The prefix of the API key that was used, if any.
    pub key: Option<String>,
    /// The owner of that key.
    pub owner: Owner,
    /// The action, for example `keys.create`.
    pub action: String,
    /// Its target.
    pub target: String,
}
