//! Opens the database, queue and blob store of a configuration like the program.

use std::sync::Arc;

use safelight_blobs::BlobLocation;
use safelight_config::{BlobUrl, DatabaseUrl, QueueUrl};
use safelight_queue::{DynJobQueue, InProcessQueue};
use safelight_queue_rabbitmq::RabbitQueue;
use safelight_store::{DynStore, StoreError};
use safelight_store_sql::{PostgresStore, SqliteStore};

/// Connects to the database at `url`, without migrating it.
pub async fn store(url: &DatabaseUrl, max_connections: u32) -> Result<DynStore, StoreError> {
    Ok(match url {
        DatabaseUrl::Sqlite(path) => Arc::new(SqliteStore::open(path).await?),
        DatabaseUrl::Postgres(urls) => {
            Arc::new(PostgresStore::connect_to(urls, max_connections).await?)
        }
    })
}

/// The job queue at `url`, which connects in the background.
pub fn queue(url: &QueueUrl) -> DynJobQueue {
    match url {
        QueueUrl::Embedded => Arc::new(InProcessQueue::new()),
        QueueUrl::Amqp(urls) => Arc::new(RabbitQueue::start_on(urls)),
    }
}

/// The blob location that `url` names.
pub fn blob_location(url: &BlobUrl) -> BlobLocation {
    match url {
        BlobUrl::File(folder) => BlobLocation::Folder(folder.clone()),
        BlobUrl::S3 { bucket, prefix } => {
            BlobLocation::Bucket { bucket: bucket.clone(), prefix: prefix.clone() }
        }
    }
}
