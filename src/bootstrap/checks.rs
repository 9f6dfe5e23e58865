//! Checks at startup: a configuration that would lose or expose something is an error with a hint.

use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt, path::Path};

use safelight_config::{BlobUrl, Config, DatabaseUrl, QueueUrl};
use safelight_store::DynStore;

use super::fs_permissions::is_open_to_all;
use crate::error::CommandError;

/// Rejects a server that other machines can reach while there is no key: every client could do everything.
pub async fn require_key_for_remote_clients(
    config: &Config,
    store: &DynStore,
) -> Result<(), CommandError> {
    if config.is_for_this_machine() || store.has_api_keys().await.map_err(CommandError::failed)? {
        return Ok(());
    }
    Err(CommandError::usage(format!(
        "listening on {}{} without any key would give everybody access",
        config.listen,
        if config.behind_tls { " behind a proxy" } else { "" },
    ))
    .hint(
        "make one with `safelight keys create --owner NAME --scopes upload,read,admin`, or listen on \
         127.0.0.1",
    ))
}

/// Rejects a process of a fleet on a queue or a database that other processes cannot use.
pub fn require_shared_engines(
    config: &Config,
    command: &str,
    queue: bool,
) -> Result<(), CommandError> {
    if queue && config.queue_url == QueueUrl::Embedded {
        return Err(CommandError::usage(format!(
            "`safelight {command}` cannot use the in-process queue: no other process would see it"
        ))
        .hint("set SAFELIGHT_QUEUE_URL=amqp://…, or run `safelight serve`"));
    }
    if matches!(config.database_url, DatabaseUrl::Sqlite(_)) {
        return Err(CommandError::usage(format!(
            "`safelight {command}` cannot use SQLite: a fleet needs a database that it can share"
        ))
        .hint("set SAFELIGHT_DATABASE_URL=postgres://…, or run `safelight serve`"));
    }
    Ok(())
}

/// Makes the configured folders, and rejects those that cannot be written.
pub fn require_writable_folders(config: &Config) -> Result<(), CommandError> {
    let needs_folder = matches!(config.database_url, DatabaseUrl::Sqlite(_))
        || matches!(config.blob_url, BlobUrl::S3 { .. });
    if needs_folder {
        require_writable(&config.data_dir, "SAFELIGHT_DATA_DIR")?;
    }
    if let BlobUrl::File(folder) = &config.blob_url {
        require_writable(folder, "SAFELIGHT_BLOB_URL or SAFELIGHT_DATA_DIR")?;
    }
    Ok(())
}

fn require_writable(folder: &Path, variable: &str) -> Result<(), CommandError> {
    // Only this user may enter it, independent of the umask. An existing folder stays as it is.
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.and_then(|()| {
        let probe = folder.join(format!(".write-test-{}", std::process::id()));
        std::fs::write(&probe, b"")?;
        std::fs::remove_file(&probe)
    })
    .map_err(|error| {
        CommandError::failed(format!("cannot write to the folder {}: {error}", folder.display()))
            .hint(format!("make it writable, or choose another with {variable}"))
    })
}

/// Warns about keys and private pictures that every user of this machine can read. Permissions of files that
/// exist are left as they are.
pub fn warn_about_readable_files(config: &Config) {
    let database = match &config.database_url {
        DatabaseUrl::Sqlite(file) => Some(file),
        DatabaseUrl::Postgres(_) => None,
    };
    let blobs = match &config.blob_url {
        BlobUrl::File(folder) => Some(folder),
        BlobUrl::S3 { .. } => None,
    };
    for path in database.into_iter().chain(blobs).filter(|path| is_open_to_all(path)) {
        tracing::warn!(
            path = %path.display(),
            "every user of this machine can read this; close its folder: chmod 700"
        );
    }
}

/// Warns about a database that can lose what it has committed.
pub async fn warn_about_durability(store: &DynStore) {
    match store.durability_warnings().await {
        Ok(warnings) => warnings.iter().for_each(|warning| tracing::warn!("{warning}")),
        // A role without the right to see this is no reason not to start.
        Err(error) => tracing::debug!(%error, "the database does not tell how durable it is"),
    }
}
