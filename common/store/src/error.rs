//! Errors of the database, in terms that callers act on.

use std::{error::Error, sync::Arc};

use safelight_domain::UnknownName;

/// The error of a driver. For the log, never for a client.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// A failed store call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached now: trying again later can help.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] Cause),

    /// The database has no space left. Trying again later can help.
    #[error("the database is unavailable: {0}")]
    Full(#[source] Cause),

    /// The database answered with an unexpected error: a bug or a damaged database.
    #[error("the database failed: {0}")]
    Database(#[source] Cause),

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
    Migrate(#[source] Cause),
}

impl StoreError {
    /// Whether the database was unavailable, so that the caller should wait rather than give up.
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Full(_))
    }

    /// Whether the database has no space left.
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Full(_))
    }
}

impl From<UnknownName> for StoreError {
    fn from(error: UnknownName) -> Self {
        Self::Corrupt(error.to_string())
    }
}

/// Here and not in the backends, because neither the trait nor the error is theirs.
#[cfg(feature = "sqlx")]
mod from_sqlx {
    use std::sync::Arc;

    use sqlx_core::error::Error;

    use super::StoreError;

    impl From<Error> for StoreError {
        fn from(error: Error) -> Self {
            let kind = Kind::of(&error);
            let cause = Arc::new(error);
            match kind {
                Kind::Full => Self::Full(cause),
                Kind::Unavailable => Self::Unavailable(cause),
                Kind::Other => Self::Database(cause),
            }
        }
    }

    /// What a driver's error means to callers.
    enum Kind {
        /// No space left.
        Full,
        /// Out of reach or overloaded.
        Unavailable,
        /// The database rejects the statement.
        Other,
    }

    impl Kind {
        fn of(error: &Error) -> Self {
            match error {
                Error::Io(_)
                | Error::Tls(_)
                | Error::PoolTimedOut
                | Error::PoolClosed
                | Error::WorkerCrashed
                | Error::Protocol(_) => Self::Unavailable,
                Error::Database(error) => match error.code() {
                    Some(code) if code.len() == 5 => Self::of_postgres(&code),
                    Some(code) => code.parse().map_or(Self::Other, Self::of_sqlite),
                    None => Self::Other,
                },
                _ => Self::Other,
            }
        }

        /// Classes 08 (connection), 53 (resources), 57P (shut down, starting up), 40 (serialization,
        /// deadlock), 25P03 (idle in transaction); 53100 is `disk_full`.
        fn of_postgres(code: &str) -> Self {
            match code {
                "53100" => Self::Full,
                "25P03" => Self::Unavailable,
                _ if ["08", "53", "40", "57P"].iter().any(|class| code.starts_with(class)) => {
                    Self::Unavailable
                }
                _ => Self::Other,
            }
        }

        /// In its low byte: 5 (busy), 6 (locked), 10 (disk I/O), 13 (disk full), 14 (cannot open).
        const fn of_sqlite(code: i32) -> Self {
            match code & 0xFF {
                13 => Self::Full,
                5 | 6 | 10 | 14 => Self::Unavailable,
                _ => Self::Other,
            }
        }
    }
}
