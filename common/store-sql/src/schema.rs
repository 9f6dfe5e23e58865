//! Which schema a binary and a database have.

use std::sync::Arc;

use sqlx::migrate::{MigrateError, Migrator};

use safelight_store::StoreError;

fn newest(migrations: &Migrator) -> i64 {
    migrations.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// Refuses a schema that a newer binary made.
pub fn refuse_newer(found: i64, migrations: &Migrator) -> Result<(), StoreError> {
    let known = newest(migrations);
    if found > known { Err(StoreError::SchemaNewer { found, known }) } else { Ok(()) }
}

/// Refuses any schema but the one that `migrations` end with.
pub fn check(found: i64, migrations: &Migrator) -> Result<(), StoreError> {
    refuse_newer(found, migrations)?;
    let needed = newest(migrations);
    if found < needed { Err(StoreError::SchemaOlder { found, needed }) } else { Ok(()) }
}

/// A migration that failed: for itself, or because the database went away.
pub fn failed(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) => match StoreError::from(error) {
            StoreError::Database(cause) => StoreError::Migrate(cause),
            unavailable => unavailable,
        },
        other => StoreError::Migrate(Arc::new(other)),
    }
}
