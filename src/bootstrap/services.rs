//! Opens what the configuration names.

use std::{path::Path, sync::Arc, time::Duration};

use safelight_api::{ApiParts, Tls};
use safelight_blobs::{BlobLocation, Blobs};
use safelight_config::{BlobUrl, Config, DatabaseUrl, QueueUrl, SharedCacheUrl, import_roots};
use safelight_queue::{DynJobQueue, InProcessQueue, OutboxSignal, QueueError};
use safelight_queue_rabbitmq::RabbitQueue;
use safelight_shared_cache::{Location, SharedCache};
use safelight_store::{DynStore, StoreError};
use safelight_store_sql::{PostgresStore, SqliteStore};
use safelight_workers::WorkerParts;
use tokio::net::TcpListener;

use super::{checks, installation};
use crate::error::CommandError;

/// How long a broker may take to answer at startup.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two checks of the broker.
const BROKER_POLL: Duration = Duration::from_millis(50);

/// The role of a process, as far as it decides what is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything in one process.
    Standalone,
    /// One of many processes.
    Fleet {
        /// The subcommand, as typed.
        command: &'static str,
        /// Whether it uses the queue.
        queue: bool,
    },
}

impl Role {
    const fn needs_queue(self) -> bool {
        !matches!(self, Self::Fleet { queue: false, .. })
    }
}

/// What the configuration names, opened. [`ApiParts`] and [`WorkerParts`] have the same fields, because both
/// halves make jobs and read bytes, and neither sees the other or this type.
pub struct Services {
    /// The configuration.
    pub config: Arc<Config>,
    /// The database.
    pub store: DynStore,
    /// The job queue.
    pub queue: DynJobQueue,
    blobs: Blobs,
    shared_cache: Option<SharedCache>,
    /// From the parts that make jobs to the outbox relay of this process.
    outbox_signal: OutboxSignal,
}

impl Services {
    /// Closes the queue and the database, even if handles to them remain.
    pub async fn close(&self) {
        self.queue.close().await;
        close_store(&self.store).await;
    }

    /// What the HTTP API uses.
    pub fn for_api(&self) -> ApiParts {
        ApiParts {
            config: self.config.clone(),
            store: self.store.clone(),
            blobs: self.blobs.clone(),
            queue: self.queue.clone(),
            shared_cache: self.shared_cache.clone(),
            outbox_signal: self.outbox_signal.clone(),
            local_key: None,
        }
    }

    /// What workers and background services use.
    pub fn for_workers(&self) -> WorkerParts {
        WorkerParts {
            config: self.config.clone(),
            store: self.store.clone(),
            queue: self.queue.clone(),
            blobs: self.blobs.clone(),
            shared_cache: self.shared_cache.clone(),
            outbox_signal: self.outbox_signal.clone(),
        }
    }
}

/// Opens and checks everything that the configuration names.
pub async fn open(mut config: Config, role: Role) -> Result<Services, CommandError> {
    if let Role::Fleet { command, queue } = role {
        checks::require_shared_engines(&config, command, queue)?;
    }
    checks::require_writable_folders(&config)?;
    config.import_roots = import_roots::resolved(&config.import_roots);
    let store = open_store(&config, role).await?;
    checks::warn_about_durability(&store).await;
    let blobs = installation::join(open_blobs(&config)?, &store, &config.blob_url).await?;
    // Not before the store was looked at: a server without space starts, so that images can be deleted.
    let blobs = blobs.with_reserve(config.min_free_bytes, database_folder(&config));
    checks::warn_about_readable_files(&config);
    let queue = open_queue(&config.queue_url);
    if role.needs_queue() {
        wait_for_broker(&config, &queue).await?;
    }
    Ok(Services {
        shared_cache: shared_cache(&config.shared_cache_url),
        config: Arc::new(config),
        store,
        queue,
        blobs,
        outbox_signal: OutboxSignal::default(),
    })
}

/// [`open`], while `listener` answers that the process is alive and not ready.
pub async fn open_behind(
    listener: &TcpListener,
    tls: Option<&Tls>,
    config: Config,
    role: Role,
) -> Result<Services, CommandError> {
    let config_of_probes = config.clone();
    let opening = Box::pin(open(config, role));
    safelight_api::while_starting(listener, tls, &config_of_probes, opening).await
}

/// Connects to the database. Does not change its schema.
pub async fn connect_store(config: &Config) -> Result<DynStore, CommandError> {
    connect(&config.database_url, config.database_connections).await.map_err(|error| {
        CommandError::failed(format!("cannot open the database {}: {error}", config.database_url))
            .hint(match (&error, &config.database_url) {
                (StoreError::SharedConnections, _) => {
                    "let the pooler keep a connection for each client (pgbouncer: pool_mode = session), or \
                     connect to PostgreSQL directly"
                }
                (_, DatabaseUrl::Sqlite(_)) => {
                    "is the folder writable, and the file a SQLite database?"
                }
                (_, DatabaseUrl::Postgres(_)) => {
                    "is PostgreSQL running there, and are user, password and database right?"
                }
            })
    })
}

async fn connect(url: &DatabaseUrl, max_connections: u32) -> Result<DynStore, StoreError> {
    Ok(match url {
        DatabaseUrl::Sqlite(path) => Arc::new(SqliteStore::open(path).await?),
        DatabaseUrl::Postgres(urls) => {
            Arc::new(PostgresStore::connect_to(urls, max_connections).await?)
        }
    })
}

/// Closes the database, which leaves a complete file behind. What was committed is safe without.
pub async fn close_store(store: &DynStore) {
    if let Err(error) = store.close().await {
        tracing::warn!(%error, "the database did not close cleanly");
    }
}

/// A queue connects in the background and reconnects without limit: [`safelight_queue::JobQueue::check`]
/// reports whether it is connected.
fn open_queue(url: &QueueUrl) -> DynJobQueue {
    match url {
        QueueUrl::Embedded => Arc::new(InProcessQueue::new()),
        QueueUrl::Amqp(urls) => Arc::new(RabbitQueue::start_on(urls)),
    }
}

fn shared_cache(url: &SharedCacheUrl) -> Option<SharedCache> {
    let location = match url {
        SharedCacheUrl::Off => return None,
        SharedCacheUrl::Single(url) => Location::Single(url.clone()),
        SharedCacheUrl::Cluster(nodes) => Location::Cluster(nodes.clone()),
    };
    Some(SharedCache::new(location))
}

pub fn blob_location(url: &BlobUrl) -> BlobLocation {
    match url {
        BlobUrl::File(folder) => BlobLocation::Folder(folder.clone()),
        BlobUrl::S3 { bucket, prefix } => {
            BlobLocation::Bucket { bucket: bucket.clone(), prefix: prefix.clone() }
        }
    }
}

async fn open_store(config: &Config, role: Role) -> Result<DynStore, CommandError> {
    let store = connect_store(config).await?;
    let schema = match role {
        // No other process uses the database with another schema.
        Role::Standalone => store.migrate().await,
        Role::Fleet { .. } => store.check_schema().await,
    };
    schema.map_err(|error| schema_error(&error))?;
    if role == Role::Standalone && config.queue_url == QueueUrl::Embedded {
        lock_for_embedded_queue(config, &store).await?;
    }
    Ok(store)
}

async fn lock_for_embedded_queue(config: &Config, store: &DynStore) -> Result<(), CommandError> {
    if !store.lock_for_embedded_queue().await.map_err(CommandError::failed)? {
        return Err(CommandError::failed(format!(
            "another process runs an in-process queue on {}",
            config.database_url
        ))
        .hint("stop it, or give this one its own database; for many processes use RabbitMQ"));
    }
    // An earlier process that was killed may have left leases that no process renews.
    store.take_over().await.map_err(CommandError::failed)?;
    Ok(())
}

/// A schema that this binary cannot work with, and what to do about it.
pub fn schema_error(error: &StoreError) -> CommandError {
    let failed = CommandError::failed(error);
    match error {
        StoreError::SchemaOlder { .. } => failed.hint("run `safelight migrate`"),
        StoreError::SchemaNewer { .. } => {
            failed.hint("run a newer safelight against this database")
        }
        _ => failed,
    }
}

/// The folder of a database that is a file.
fn database_folder(config: &Config) -> Option<&Path> {
    match &config.database_url {
        DatabaseUrl::Sqlite(file) => file.parent(),
        DatabaseUrl::Postgres(_) => None,
    }
}

/// Opens the blob store. Does not look whose it is.
pub fn open_blobs(config: &Config) -> Result<Blobs, CommandError> {
    let blobs = Blobs::open(&blob_location(&config.blob_url), &config.data_dir.join("spool"))
        .map_err(|error| installation::unusable(&config.blob_url, &error))?;
    Ok(blobs.with_grace(Duration::from_millis(config.staged_grace_ms)))
}

/// Waits until the broker answers. A running process survives any outage; at startup a wrong address should
/// fail early.
async fn wait_for_broker(config: &Config, queue: &DynJobQueue) -> Result<(), CommandError> {
    let deadline = tokio::time::Instant::now() + BROKER_TIMEOUT;
    while let Err(error) = queue.check().await {
        let cannot = |what: &str| {
            CommandError::failed(format!("cannot {what} the broker {}: {error}", config.queue_url))
        };
        if let QueueError::OtherArguments(_) = error {
            return Err(cannot("use").hint(
                "delete that queue (its jobs are in the database and are published again), or use another \
                 virtual host; and look for a policy that changes queues named safelight.*",
            ));
        }
        if tokio::time::Instant::now() > deadline {
            return Err(cannot("reach").hint(
                "is RabbitMQ running there, and are user, password and virtual host right?",
            ));
        }
        tokio::time::sleep(BROKER_POLL).await;
    }
    Ok(())
}
