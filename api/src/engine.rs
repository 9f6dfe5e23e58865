//! The Redis or Valkey that nodes share, if there is one.

use std::{sync::OnceLock, time::Duration};

use redis::{
    Cmd, FromRedisValue, RedisResult,
    aio::{ConnectionManager, ConnectionManagerConfig},
    cluster::{ClusterClient, ClusterConfig},
    cluster_async::ClusterConnection,
};
use safelight_common::config::SharedCacheUrl;

/// How long an answer may take before the caller does without.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(1);

/// A handle to the engine; connects when it is first used.
pub struct Engine {
    url: SharedCacheUrl,
    connection: OnceLock<Connection>,
}

#[derive(Clone)]
enum Connection {
    Single(ConnectionManager),
    Cluster(ClusterConnection),
}

impl Engine {
    /// The engine at `url`; `None` for none.
    pub fn new(url: &SharedCacheUrl) -> Option<Self> {
        let used = *url != SharedCacheUrl::Off;
        used.then(|| Self { url: url.clone(), connection: OnceLock::new() })
    }

    /// Has it do something; an error also if it takes long.
    pub async fn run<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        let answer = async {
            match self.connection()? {
                Connection::Single(mut connection) => command.query_async(&mut connection).await,
                Connection::Cluster(mut connection) => command.query_async(&mut connection).await,
            }
        };
        let late = |_| redis::RedisError::from((redis::ErrorKind::Io, "it does not answer"));
        tokio::time::timeout(PATIENCE, answer).await.map_err(late)?
    }

    /// A handle to the connection, which is made, and made again, in the background.
    fn connection(&self) -> RedisResult<Connection> {
        if let Some(connection) = self.connection.get() {
            return Ok(connection.clone());
        }
        let made = match &self.url {
            SharedCacheUrl::Cluster(nodes) => {
                let config = ClusterConfig::new()
                    .set_response_timeout(PATIENCE)
                    .set_connection_timeout(CONNECT);
                let client = ClusterClient::new(nodes.iter().map(String::as_str))?;
                Connection::Cluster(client.get_pending_async_connection_with_config(config))
            }
            SharedCacheUrl::Single(url) => {
                let config = ConnectionManagerConfig::new()
                    .set_response_timeout(Some(PATIENCE))
                    .set_connection_timeout(Some(CONNECT))
                    .set_number_of_retries(0);
                let client = redis::Client::open(url.as_str())?;
                Connection::Single(ConnectionManager::new_lazy_with_config(client, config)?)
            }
            SharedCacheUrl::Off => {
                return Err((redis::ErrorKind::InvalidClientConfig, "there is none").into());
            }
        };
        Ok(self.connection.get_or_init(|| made).clone())
    }
}
