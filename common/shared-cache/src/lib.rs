//! The Redis or Valkey that nodes share, if there is one: how it is reached, how objects are called there,
//! and how they are forgotten. What else is done with it is its users' own business.

mod redis;

use std::{sync::Arc, time::Duration};

use ::redis::{Cmd, FromRedisValue, RedisError, RedisResult, aio::ConnectionLike};
use safelight_domain::CacheKey;

use self::redis::Connections;

/// How long it may take to forget one image's objects, connecting included.
const FORGET_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the cache is.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// One server, as a `redis://` or `rediss://` URL.
    Single(String),
    /// A cluster, by the URLs of some of its nodes: it places the keys itself.
    Cluster(Vec<String>),
}

/// A handle to the cache. Clones share its connection, which is made when it is first used.
#[derive(Clone)]
pub struct SharedCache(Arc<Connections>);

impl SharedCache {
    /// The cache at `location`. Does not connect yet.
    pub fn new(location: Location) -> Self {
        Self(Arc::new(Connections::new(location)))
    }

    /// Runs a command. An error also if the answer takes more than 250 ms: callers do without.
    pub async fn run<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        self.0.run(command).await
    }

    /// Removes objects, over a connection of its own. Takes 5 s at most.
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

/// The key of an object. All keys of an object lie in the same slot of a cluster.
pub fn object_key(object: &CacheKey) -> String {
    format!("safelight:{{{object}}}:bytes")
}

async fn remove(
    connection: &mut impl ConnectionLike,
    objects: &[CacheKey],
) -> Result<(), RedisError> {
    for object in objects {
        // One by one: those of one image lie in different slots of a cluster.
        ::redis::cmd("DEL").arg(object_key(object)).exec_async(connection).await?;
    }
    Ok(())
}

fn timed_out() -> RedisError {
    RedisError::from((::redis::ErrorKind::Io, "it does not answer"))
}
