//! From a configuration to opened parts, or to one clear line why not.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use safelight_api::Tls;
use safelight_blobs::{BlobLocation, Blobs};
use safelight_config::{BlobUrl, Config, DatabaseUrl, QueueUrl, SharedCacheUrl};
use safelight_queue::{DynJobQueue, InProcessQueue, OutboxSignal};
use safelight_queue_rabbitmq::RabbitQueue;
use safelight_services::Services;
use safelight_shared_cache::{Location, SharedCache};
use safelight_store::{DynStore, StoreError};
use safelight_store_sql::{PostgresStore, SqliteStore, fs_permissions};
use tokio::net::TcpListener;

use crate::exit::Exit;

/// How long a broker may take to answer at start-up.
const BROKER_PATIENCE: Duration = Duration::from_secs(10);

/// What a process is, as far as its parts matter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything in one process.
    Alone,
    /// One of many; `command` as typed, `queue` whether it needs one.
    Fleet {
        /// The subcommand.
        command: &'static str,
        /// Whether it talks to the queue at all.
        queue: bool,
    },
}

impl Role {
    const fn needs_queue(self) -> bool {
        !matches!(self, Self::Fleet { queue: false, .. })
    }
}

/// Opens and checks everything that the configuration names.
pub async fn open(config: Config, role: Role) -> Result<Services, Exit> {
    refuse_unsafe_mixture(&config, role)?;
    make_folders(&config)?;
    let store = open_store(&config, role).await?;
    let blobs = open_blobs(&config).await?;
    warn_of_onlookers(&config);
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

/// [`open`], while whoever asks on `listener` learns that the process lives.
pub async fn open_behind(
    listener: &TcpListener,
    tls: Option<&Tls>,
    config: Config,
    role: Role,
) -> Result<Services, Exit> {
    let about = config.clone();
    let opening = Box::pin(open(config, role));
    safelight_api::while_starting(listener, tls, &about, opening).await
}

/// Connects to the database, without a look at its schema.
pub async fn connect(config: &Config) -> Result<DynStore, Exit> {
    connect_to(&config.database_url, config.database_connections).await.map_err(|error| {
        Exit::failed(format!("cannot open the database {}: {error}", config.database_url)).hint(
            match config.database_url {
                DatabaseUrl::Sqlite(_) => "is the folder writable, and the file a SQLite database?",
                DatabaseUrl::Postgres(_) => {
                    "is PostgreSQL running there, and are user, password and database right?"
                }
            },
        )
    })
}

async fn connect_to(url: &DatabaseUrl, max_connections: u32) -> Result<DynStore, StoreError> {
    Ok(match url {
        DatabaseUrl::Sqlite(path) => Arc::new(SqliteStore::open(path).await?),
        DatabaseUrl::Postgres(url) => Arc::new(PostgresStore::connect(url, max_connections).await?),
    })
}

/// Connecting happens in the background and for ever: [`safelight_queue::JobQueue::check`] tells whether it
/// has.
fn open_queue(url: &QueueUrl) -> DynJobQueue {
    match url {
        QueueUrl::Embedded => Arc::new(InProcessQueue::new()),
        QueueUrl::Amqp(url) => Arc::new(RabbitQueue::start(url)),
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

fn blob_location(url: &BlobUrl) -> BlobLocation {
    match url {
        BlobUrl::File(folder) => BlobLocation::Folder(folder.clone()),
        BlobUrl::S3 { bucket, prefix } => {
            BlobLocation::Bucket { bucket: bucket.clone(), prefix: prefix.clone() }
        }
    }
}

/// Refuses to be reached from other machines while nobody has a key: everything would be everybody's.
pub async fn refuse_open_door(config: &Config, store: &DynStore) -> Result<(), Exit> {
    if config.is_for_this_machine() || store.has_api_keys().await.map_err(Exit::failed)? {
        return Ok(());
    }
    Err(Exit::usage(format!(
        "listening on {}{} without any key would let everybody in",
        config.listen,
        if config.behind_tls { " behind a proxy" } else { "" },
    ))
    .hint(
        "make one with `safelight keys create --owner NAME --scopes upload,read,admin`, or listen on \
         127.0.0.1",
    ))
}

/// Binds an HTTP address; `variable` is where it can be changed.
pub async fn listen(address: SocketAddr, variable: &str) -> Result<TcpListener, Exit> {
    TcpListener::bind(address).await.map_err(|error| {
        Exit::failed(format!("cannot listen on {address}: {error}"))
            .hint(format!("choose another address with {variable} (port 0 takes a free one)"))
    })
}

fn refuse_unsafe_mixture(config: &Config, role: Role) -> Result<(), Exit> {
    let Role::Fleet { command, queue } = role else { return Ok(()) };
    if queue && config.queue_url == QueueUrl::Embedded {
        return Err(Exit::usage(format!(
            "`safelight {command}` cannot use the in-process queue: no other process would see it"
        ))
        .hint("set SAFELIGHT_QUEUE_URL=amqp://…, or run `safelight serve`"));
    }
    if matches!(config.database_url, DatabaseUrl::Sqlite(_)) {
        return Err(Exit::usage(format!(
            "`safelight {command}` cannot use SQLite: a fleet needs a database that it can share"
        ))
        .hint("set SAFELIGHT_DATABASE_URL=postgres://…, or run `safelight serve`"));
    }
    Ok(())
}

fn make_folders(config: &Config) -> Result<(), Exit> {
    let needs_folder = matches!(config.database_url, DatabaseUrl::Sqlite(_))
        || matches!(config.blob_url, BlobUrl::S3 { .. });
    if needs_folder {
        writable(&config.data_dir, "SAFELIGHT_DATA_DIR")?;
    }
    if let BlobUrl::File(folder) = &config.blob_url {
        writable(folder, "SAFELIGHT_BLOB_URL or SAFELIGHT_DATA_DIR")?;
    }
    Ok(())
}

/// Says which keys and private pictures every user of this machine can read. What was made before, by
/// somebody else or with other permissions, stays as it is.
fn warn_of_onlookers(config: &Config) {
    let database = match &config.database_url {
        DatabaseUrl::Sqlite(file) => Some(file),
        DatabaseUrl::Postgres(_) => None,
    };
    let blobs = match &config.blob_url {
        BlobUrl::File(folder) => Some(folder),
        BlobUrl::S3 { .. } => None,
    };
    for path in
        database.into_iter().chain(blobs).filter(|path| fs_permissions::is_open_to_all(path))
    {
        tracing::warn!(
            path = %path.display(),
            "every user of this machine can read this; close its folder: chmod 700"
        );
    }
}

/// Makes the folder and tries to write into it.
fn writable(folder: &Path, variable: &str) -> Result<(), Exit> {
    fs_permissions::make_folder(folder)
        .and_then(|()| {
            let probe = folder.join(format!(".write-test-{}", std::process::id()));
            std::fs::write(&probe, b"")?;
            std::fs::remove_file(&probe)
        })
        .map_err(|error| {
            Exit::failed(format!("cannot write to the folder {}: {error}", folder.display()))
                .hint(format!("make it writable, or choose another with {variable}"))
        })
}

async fn open_store(config: &Config, role: Role) -> Result<DynStore, Exit> {
    let store = connect(config).await?;
    let schema = match role {
        // One process has nobody to disagree with.
        Role::Alone => store.migrate().await,
        Role::Fleet { .. } => store.check_schema().await,
    };
    schema.map_err(|error| schema_problem(&error))?;
    if role == Role::Alone && config.queue_url == QueueUrl::Embedded {
        let alone = store.lock_for_embedded_queue().await.map_err(Exit::failed)?;
        if !alone {
            return Err(Exit::failed(format!(
                "another process runs an in-process queue on {}",
                config.database_url
            ))
            .hint(
                "stop it, or give this one a database of its own; for many processes use RabbitMQ",
            ));
        }
        // An earlier process that was killed may have left leases; nobody will renew them.
        store.take_over().await.map_err(Exit::failed)?;
    }
    Ok(store)
}

/// What to do about a schema that is not this binary's.
pub fn schema_problem(error: &StoreError) -> Exit {
    let exit = Exit::failed(error);
    match error {
        StoreError::SchemaOlder { .. } => exit.hint("run `safelight migrate`"),
        StoreError::SchemaNewer { .. } => exit.hint("run a newer safelight against this database"),
        _ => exit,
    }
}

async fn open_blobs(config: &Config) -> Result<Blobs, Exit> {
    let unreachable = |error| {
        Exit::failed(format!("cannot open the blob store {}: {error}", config.blob_url)).hint(
            match config.blob_url {
                BlobUrl::File(_) => "is the folder writable?",
                BlobUrl::S3 { .. } => {
                    "are AWS_ENDPOINT, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, the bucket, and this \
                     machine's clock right?"
                }
            },
        )
    };
    let blobs = Blobs::open(&blob_location(&config.blob_url), &config.data_dir.join("spool"))
        .map_err(unreachable)?;
    blobs.check().await.map_err(unreachable)?;
    Ok(blobs)
}

/// Waits until the broker answers. Once started, a process outlives any outage; but a wrong
/// address should show at once.
async fn wait_for_broker(config: &Config, queue: &DynJobQueue) -> Result<(), Exit> {
    let deadline = tokio::time::Instant::now() + BROKER_PATIENCE;
    while let Err(error) = queue.check().await {
        if tokio::time::Instant::now() > deadline {
            return Err(Exit::failed(format!(
                "cannot reach the broker {}: {error}",
                config.queue_url
            ))
            .hint("is RabbitMQ running there, and are user, password and virtual host right?"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
