//! `safelight migrate`: migrate the schema, once per release, before the nodes are restarted.

use safelight_config::Config;

use crate::{
    bootstrap::{runtime, services},
    error::CommandError,
    output::status,
};

/// Migrates the schema.
pub async fn run(config: Config) -> Result<(), CommandError> {
    runtime::init(&config, "migrate")?;
    let store = services::connect_store(&config).await?;
    let migrated = store.migrate().await.map_err(|error| services::schema_error(&error));
    services::close_store(&store).await;
    migrated?;
    status!("the schema of {} is up to date", config.database_url);
    status!("nodes of the previous release keep working with it: now restart them one by one");
    Ok(())
}
