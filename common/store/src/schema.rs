//! The schema and the health of the database.

use async_trait::async_trait;

use crate::StoreError;

/// The schema and the health of the database.
#[async_trait]
pub trait Schema: Send + Sync + 'static {
    /// Brings the schema up to this binary's version. Safe to call from many processes concurrently. Fails
    /// with [`StoreError::SchemaNewer`] if a newer binary migrated the database.
    async fn migrate(&self) -> Result<(), StoreError>;

    /// Fails with [`StoreError::SchemaOlder`] or [`StoreError::SchemaNewer`] unless the schema has exactly
    /// this binary's version.
    async fn check_schema(&self) -> Result<(), StoreError>;

    /// Succeeds if the database can be read and, where that is not the same, written.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Makes this store's process the only one that works on an in-process queue over this database, for the
    /// life of the store. Returns `false` if another process holds the lock, `true` if this store holds it
    /// already. PostgreSQL releases the lock when it loses this store's connection, for example in a restart;
    /// the next call takes it again.
    async fn lock_for_embedded_queue(&self) -> Result<bool, StoreError>;
}
