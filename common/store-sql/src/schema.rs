//! Which schema a binary and a database have.

use std::sync::Arc;

use sqlx::{
    SqlSafeStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};

use safelight_store::StoreError;

/// The migrations that `build.rs` found, each with its version, description and SQL.
pub fn migrator<const N: usize>(migrations: [(i64, &'static str, &'static str); N]) -> Migrator {
    Migrator::with_migrations(
        migrations
            .into_iter()
            .map(|(version, description, sql)| {
                // As `sqlx::migrate!` has it: for statements such as `create index concurrently`.
                let outside_transaction = sql.starts_with("-- no-transaction");
                let (kind, sql) = (MigrationType::Simple, sql.into_sql_str());
                Migration::new(version, description.into(), kind, sql, outside_transaction)
            })
            .collect(),
    )
}

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
