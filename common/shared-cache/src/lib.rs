//! The Redis or Valkey cache that nodes share, if configured: its connection, the keys of objects, and their
//! removal. Its users send all other commands themselves.

mod redis;

use std::{sync::Arc, time::Duration};

use ::redis::{Cmd, FromRedisValue, RedisError, RedisResult, aio::ConnectionLike};
use safelight_domain::CacheKey;

use self::redis::Connections;

/// How long the removal of one image's objects may take, including the connection.
const FORGET_TIMEOUT: Duration = Duration::from_secs(5);

/// The address of the cache.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// One server, as a `redis://` or `rediss://` URL.
    Single(String),
    /// A cluster, by the URLs of some of its nodes.
    Cluster(Vec<String>),
}

/// A handle to the cache. Clones share its connection, which is opened on first use.
#[derive(Clone)]
pub struct SharedCache(Arc<Connections>);

impl SharedCache {
    /// The cache at `location`. Does not connect yet.
    pub fn new(location: Location) -> Self {
        Self(Arc::new(Connections::new(location)))
    }

    /// Runs a command. Fails after 250 ms without a response, and callers continue without the cache.
    pub async fn run<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        self.0.run(command).await
    }

    /// Removes objects, over a separate connection. Takes at most 5 s.
    pub async fn forget(&self, objects: &[CacheKey]) -> RedisResult<()> {
        let forget = async {
            match self.0.location() {
                Location::Single(url) => {
                    let client = ::redis::Client::open(url.as_str())?;
                    remove(&mut client.get_multiplexed_async_connection().await?, objects).await
                }
                Location::Cluster(nodes) => {
                    let nodes = nodes.iter().map(String::as_str);
                    let client = ::redis::cluster::ClusterClient::new(nodes)?;
                    remove(&mut client.get_async_connection().await?, objects).await
                }
            }
        };
        tokio::time::timeout(FORGET_TIMEOUT, forget).await.map_err(|_| timed_out())?
    }
}

/// The key of an object. All keys of an object are in the same slot of a cluster.
pub fn object_key(object: &CacheKey) -> String {
    format!("safelight:{{{object}}}:bytes")
}

async fn remove(
    connection: &mut impl ConnectionLike,
    objects: &[CacheKey],
) -> Result<(), RedisError> {
    for object in objects {
        // One by one, because the objects of an image are in different slots of a cluster.
        ::redis::cmd("DEL").arg(object_key(object)).exec_async(connection).await?;
    }
    Ok(())
}

fn timed_out() -> RedisError {
    RedisError::from((::redis::ErrorKind::Io, "the shared cache does not respond"))
}
