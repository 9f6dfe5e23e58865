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

    /// The database is behind a pooler that gives its connections to other clients after each transaction.
    #[error("the database is behind a pooler that shares connections between transactions")]
    SharedConnections,

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
                | Error::BeginFailed
                | Error::Protocol(_) => Self::Unavailable,
                Error::Database(error) => match error.code() {
                    Some(code) if code.len() == 5 => Self::of_postgres(&code),
                    Some(code) => code.parse().map_or(Self::Other, Self::of_sqlite),
                    None => Self::Other,
                },
                _ => Self::Other,
            }
        }

        /// From the manual, "PostgreSQL Error Codes". An outage is what ends without a change of this program or
        /// of the data: a server that is away, overloaded, read-only (also during a fail-over, or because a
        /// provider saw its disk fill up), or that canceled a statement after a time or by hand; and one that
        /// does not let us in, for example while a password is changed. A damaged page (class XX) is none: one
        /// row must not stop all work.
        fn of_postgres(code: &str) -> Self {
            match code {
                // disk_full
                "53100" => Self::Full,
                // read_only_sql_transaction, and sessions ended after a time
                "25006" | "25P03" | "25P04"
                // lock_not_available, and a database that takes no connections now
                | "55P03" | "55000"
                // prepared statements that another client of a pooler dropped or made
                | "26000" | "42P05"
                // no permission, no such table, no such schema: the role or the search path was changed, or the
                // database is being restored
                | "42501" | "42P01" | "3F000" => Self::Unavailable,
                _ => match &code[..2] {
                    // connection; authorization; no such database; serialization and deadlock; resources;
                    // operator intervention, also a canceled statement; errors of the system; old snapshot
                    "08" | "28" | "3D" | "40" | "53" | "57" | "58" | "72" => Self::Unavailable,
                    _ => Self::Other,
                },
            }
        }

        /// In its low byte: 5 (busy), 6 (locked), 7 (no memory), 8 (read-only), 9 (interrupted), 10 (disk I/O),
        /// 13 (disk full), 14 (cannot open), 15 (locking protocol). Source: sqlite.org/rescode.html.
        const fn of_sqlite(code: i32) -> Self {
            match code & 0xFF {
                13 => Self::Full,
                5..=10 | 14 | 15 => Self::Unavailable,
                _ => Self::Other,
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use std::{borrow::Cow, error::Error as StdError, fmt};

        use sqlx_core::error::{DatabaseError, ErrorKind};

        use super::*;

        /// The error of a server, which has nothing but a code.
        #[derive(Debug)]
        struct Coded(&'static str);

        impl fmt::Display for Coded {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.0)
            }
        }

        impl StdError for Coded {}

        impl DatabaseError for Coded {
            fn message(&self) -> &str {
                self.0
            }

            fn code(&self) -> Option<Cow<'_, str>> {
                Some(self.0.into())
            }

            fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
                self
            }

            fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
                self
            }

            fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
                self
            }

            fn kind(&self) -> ErrorKind {
                ErrorKind::Other
            }
        }

        fn of(code: &'static str) -> StoreError {
            Error::Database(Box::new(Coded(code))).into()
        }

        #[test]
        fn outages_are_told_from_errors_by_their_code() {
            let outages = [
                ("08006", "connection_failure"),
                ("08P01", "protocol_violation, which poolers use for all their errors"),
                ("25006", "cannot execute UPDATE in a read-only transaction"),
                ("25P03", "idle_in_transaction_session_timeout"),
                ("25P04", "transaction_timeout"),
                ("26000", "prepared statement does not exist"),
                ("28000", "no pg_hba.conf entry"),
                ("28P01", "invalid_password"),
                ("3D000", "database does not exist"),
                ("40001", "serialization_failure"),
                ("40P01", "deadlock_detected"),
                ("42P05", "prepared statement already exists"),
                ("53000", "insufficient_resources"),
                ("53200", "out_of_memory"),
                ("53300", "too_many_connections"),
                ("55000", "database is not currently accepting connections"),
                ("55P03", "canceling statement due to lock timeout"),
                ("57014", "canceling statement due to statement timeout or user request"),
                ("57P01", "admin_shutdown"),
                ("57P02", "crash_shutdown"),
                ("57P03", "cannot_connect_now"),
                ("57P04", "database_dropped"),
                ("57P05", "idle_session_timeout"),
                ("58000", "system_error"),
                ("58030", "io_error"),
                ("58P01", "undefined_file: its disk is gone"),
                ("72000", "snapshot_too_old"),
                ("42501", "permission denied for a table"),
                ("42P01", "undefined_table: another search path, or a database that is restored"),
                ("3F000", "invalid_schema_name"),
                ("5", "SQLITE_BUSY"),
                ("8", "SQLITE_READONLY"),
                ("1032", "SQLITE_READONLY_DBMOVED"),
                ("10", "SQLITE_IOERR"),
                ("14", "SQLITE_CANTOPEN"),
            ];
            for (code, meaning) in outages {
                assert!(of(code).is_unavailable() && !of(code).is_full(), "{code}: {meaning}");
            }
            for full in ["53100", "13"] {
                assert!(of(full).is_unavailable() && of(full).is_full(), "{full}");
            }
            let errors = [
                ("0A000", "feature_not_supported"),
                ("22P02", "invalid_text_representation"),
                ("23505", "unique_violation"),
                ("25P02", "in_failed_sql_transaction"),
                ("42601", "syntax_error"),
                ("54000", "program_limit_exceeded"),
                ("P0001", "raise_exception"),
                ("XX000", "internal_error"),
                ("XX001", "data_corrupted"),
                ("XX002", "index_corrupted"),
                ("1", "SQLITE_ERROR"),
                ("11", "SQLITE_CORRUPT"),
                ("19", "SQLITE_CONSTRAINT"),
                ("26", "SQLITE_NOTADB"),
            ];
            for (code, meaning) in errors {
                assert!(matches!(of(code), StoreError::Database(_)), "{code}: {meaning}");
            }
        }
    }
}
