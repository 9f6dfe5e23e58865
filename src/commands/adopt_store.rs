//! `safelight adopt-store`: tie a blob store to the database, after one of them was replaced on purpose.

use clap::Args;
use safelight_blobs::{BlobError, WrongStore};
use safelight_config::Config;
use safelight_store::DynStore;

use crate::{
    bootstrap::{installation, runtime, services},
    error::CommandError,
    output::status,
};

/// Options of `safelight adopt-store`.
#[derive(Args)]
pub struct AdoptStoreArgs {
    /// Take the store even if it belongs to another installation, which can no longer use it
    #[arg(long)]
    force: bool,
}

/// Marks the configured blob store as that of the configured database.
pub async fn run(config: Config, args: AdoptStoreArgs) -> Result<(), CommandError> {
    runtime::init(&config, "adopt-store")?;
    let store = services::connect_store(&config).await?;
    let adopted = adopt(&config, &store, args.force).await;
    services::close_store(&store).await;
    adopted?;
    status!("the blob store {} belongs to the database {}", config.blob_url, config.database_url);
    status!("`safelight backfill verify` reports what it lacks");
    Ok(())
}

async fn adopt(config: &Config, store: &DynStore, force: bool) -> Result<(), CommandError> {
    store.check_schema().await.map_err(|error| services::schema_error(&error))?;
    let id = store.installation().await.map_err(CommandError::failed)?.id;
    let blobs = services::open_blobs(config)?;
    let unusable = |error| installation::unusable(&config.blob_url, &error);
    match blobs.read_mark().await {
        Ok(Some(found)) if found == id => {}
        Ok(Some(found)) if !force => return Err(unusable(WrongStore::Foreign(found).into())),
        Ok(_) => blobs.replace_mark(id).await.map_err(unusable)?,
        Err(BlobError::WrongStore(WrongStore::Damaged)) if force => {
            blobs.replace_mark(id).await.map_err(unusable)?;
        }
        Err(error) => return Err(unusable(error)),
    }
    store.record_mark().await.map_err(CommandError::failed)
}
