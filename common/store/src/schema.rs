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

    /// Succeeds if a transaction can be committed now. A server can fail that and still answer queries: one that
    /// is read-only, has no space left, or waits for a standby.
    async fn ping(&self) -> Result<(), StoreError>;

    /// How the database is set up such that what it has committed can be lost, each with what to do about it.
    async fn durability_warnings(&self) -> Result<Vec<String>, StoreError>;

    /// Makes this store's process the only one that works on an in-process queue over this database, for the
    /// life of the store. Returns `false` if another process holds the lock, `true` if this store holds it
    /// already. PostgreSQL releases the lock when it loses this store's connection, for example in a restart;
    /// the next call takes it again.
    async fn lock_for_embedded_queue(&self) -> Result<bool, StoreError>;

    /// Ends the work of this store, even if handles to it remain: calls that wait are finished, later ones
    /// fail. Afterwards a database in a file is complete in that one file. Closing it again changes nothing.
    async fn close(&self) -> Result<(), StoreError>;
}
