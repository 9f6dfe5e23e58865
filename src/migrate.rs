//! `safelight migrate`: the schema, once per release, before the fleet.

use safelight_config::Config;

use crate::{exit::Exit, process, say::tell, startup};

/// Migrates and says so.
pub async fn run(config: Config) -> Result<(), Exit> {
    process::prepare(&config, "migrate")?;
    let store = startup::connect(&config).await?;
    store.migrate().await.map_err(|error| startup::schema_problem(&error))?;
    tell!("the schema of {} is up to date", config.database_url);
    tell!("nodes of the release before go on beside it: now restart them one by one");
    Ok(())
}
