//! What can go wrong with the database, in terms that callers act on.

use std::{io, sync::Arc};

use crate::domain::UnknownName;

/// A failed store call. The text of a database error is for the log, never for a client.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached, or not now: trying again later can help.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] sqlx::Error),

    /// The database answered, but not as it should: a bug or a damaged database.
    #[error("the database failed: {0}")]
    Database(#[source] sqlx::Error),

    /// A row that this binary cannot read.
    #[error("unreadable row: {0}")]
    Corrupt(String),

    /// The schema lacks migrations.
    #[error("the database's schema is at version {found}, this binary needs {needed}")]
    SchemaOlder {
        /// The newest migration applied, 0 for none.
        found: i64,
        /// The newest that this binary has.
        needed: i64,
    },

    /// The schema was migrated by a newer binary.
    #[error("the database's schema is at version {found}, newer than this binary's {known}")]
    SchemaNewer {
        /// The newest migration applied.
        found: i64,
        /// The newest that this binary has.
        known: i64,
    },

    /// A migration failed.
    #[error("cannot migrate the database: {0}")]
    Migrate(#[source] sqlx::migrate::MigrateError),
}

impl StoreError {
    /// Whether the database was out of reach, so that the caller should wait rather than give up.
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// The same failure for one more caller.
    pub(super) fn copy_of(error: &Arc<sqlx::Error>) -> Self {
        let copy = sqlx::Error::Io(io::Error::other(error.clone()));
        if is_unavailable(error) { Self::Unavailable(copy) } else { Self::Database(copy) }
    }

    /// Whether the database has no space left.
    pub fn is_full(&self) -> bool {
        let (Self::Unavailable(error) | Self::Database(error)) = self else { return false };
        // PostgreSQL's disk_full; SQLite's full, in its low byte.
        error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| {
            code == "53100"
                || code.len() < 5 && code.parse::<i32>().is_ok_and(|code| code & 0xFF == 13)
        })
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if is_unavailable(&error) { Self::Unavailable(error) } else { Self::Database(error) }
    }
}

impl From<UnknownName> for StoreError {
    fn from(error: UnknownName) -> Self {
        Self::Corrupt(error.to_string())
    }
}

/// Whether an error means that the database is out of reach or overloaded, not that it objects.
fn is_unavailable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Protocol(_) => true,
        // PostgreSQL classes 08 (connection), 53 (resources), 57P (shut down, starting up),
        // 40 (serialization, deadlock), 25P03 (idle in transaction); SQLite 5 (busy), 6
        // (locked), 10 (disk I/O), 13 (disk full), 14 (cannot open), each in its low byte.
        sqlx::Error::Database(database) => database.code().is_some_and(|code| {
            let postgres = code.len() == 5
                && (["08", "53", "40"].iter().any(|class| code.starts_with(class))
                    || code.starts_with("57P")
                    || code == "25P03");
            let sqlite = code.len() < 5
                && code.parse::<i32>().is_ok_and(|c| matches!(c & 0xFF, 5 | 6 | 10 | 13 | 14));
            postgres || sqlite
        }),
        _ => false,
    }
}
