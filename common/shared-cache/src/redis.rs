//! The connection that commands share.

use std::{sync::OnceLock, time::Duration};

use redis::{
    Cmd, FromRedisValue, RedisResult,
    aio::{ConnectionManager, ConnectionManagerConfig},
    cluster::{ClusterClient, ClusterConfig},
    cluster_async::ClusterConnection,
};

use super::{Location, timed_out};

/// How long a response may take.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(250);

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection to one server or to a cluster, opened on first use.
pub(super) struct Connections {
    location: Location,
    connection: OnceLock<Connection>,
}

#[derive(Clone)]
enum Connection {
    Single(ConnectionManager),
    Cluster(ClusterConnection),
}

impl Connections {
    pub const fn new(location: Location) -> Self {
        Self { location, connection: OnceLock::new() }
    }

    pub const fn location(&self) -> &Location {
        &self.location
    }

    /// Runs a command with a timeout.
    pub async fn run<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        let answer = async {
            match self.connection()? {
                Connection::Single(mut connection) => command.query_async(&mut connection).await,
                Connection::Cluster(mut connection) => command.query_async(&mut connection).await,
            }
        };
        tokio::time::timeout(ANSWER_TIMEOUT, answer).await.map_err(|_| timed_out())?
    }

    /// A handle to the connection, which connects and reconnects in the background.
    fn connection(&self) -> RedisResult<Connection> {
        if let Some(connection) = self.connection.get() {
            return Ok(connection.clone());
        }
        let connection = match &self.location {
            Location::Cluster(nodes) => {
                let config = ClusterConfig::new()
                    .set_response_timeout(ANSWER_TIMEOUT)
                    .set_connection_timeout(CONNECT_TIMEOUT);
                let client = ClusterClient::new(nodes.iter().map(String::as_str))?;
                Connection::Cluster(client.get_pending_async_connection_with_config(config))
            }
            Location::Single(url) => {
                let config = ConnectionManagerConfig::new()
                    .set_response_timeout(Some(ANSWER_TIMEOUT))
                    .set_connection_timeout(Some(CONNECT_TIMEOUT))
                    .set_number_of_retries(0);
                let client = redis::Client::open(url.as_str())?;
                Connection::Single(ConnectionManager::new_lazy_with_config(client, config)?)
            }
        };
        Ok(self.connection.get_or_init(|| connection).clone())
    }
}
