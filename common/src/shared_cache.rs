//! The cache that all delivery nodes share: how objects are called there, and how they are forgotten.
//! What else is done with it is delivery's own business.

use std::time::Duration;

use redis::{RedisError, aio::ConnectionLike, cluster::ClusterClient};

use crate::{config::SharedCacheUrl, domain::CacheKey};

/// How long it may take to forget one image's objects, connecting included.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The key of an object. All keys of an object lie in the same slot of a cluster.
pub fn object_key(object: &CacheKey) -> String {
    format!("safelight:{{{object}}}:bytes")
}

/// Removes objects from the cache, if there is one.
pub async fn forget(url: &SharedCacheUrl, objects: &[CacheKey]) -> Result<(), RedisError> {
    let forget = async {
        match url {
            SharedCacheUrl::Off => Ok(()),
            SharedCacheUrl::Single(url) => {
                let client = redis::Client::open(url.as_str())?;
                remove(&mut client.get_multiplexed_async_connection().await?, objects).await
            }
            SharedCacheUrl::Cluster(nodes) => {
                let client = ClusterClient::new(nodes.iter().map(String::as_str))?;
                remove(&mut client.get_async_connection().await?, objects).await
            }
        }
    };
    let late = |_| RedisError::from((redis::ErrorKind::Io, "it does not answer"));
    tokio::time::timeout(TIMEOUT, forget).await.map_err(late)?
}

async fn remove(
    connection: &mut impl ConnectionLike,
    objects: &[CacheKey],
) -> Result<(), RedisError> {
    for object in objects {
        // One by one: those of one image lie in different slots of a cluster.
        redis::cmd("DEL").arg(object_key(object)).exec_async(connection).await?;
    }
    Ok(())
}
