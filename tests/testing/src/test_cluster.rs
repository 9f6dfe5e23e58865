//! A fleet whose database, queues and blobs can be audited.

use std::path::Path;

use anyhow::Result;
use tokio::task::block_in_place;

use crate::{
    audit::{Audit, Database},
    client::Client,
    fleet::{Engines, Fleet, Plan},
    rabbitmq::RabbitMq,
    server::{Server, owned},
};

/// A fleet with its own database, virtual host and object store.
pub struct TestCluster {
    /// The database and the virtual host, accessed directly.
    pub engines: Engines,
    /// The nodes and the object store.
    pub fleet: Fleet,
}

impl TestCluster {
    /// Starts nodes on the servers that this process shares.
    pub async fn start(
        binary: &Path,
        apis: usize,
        workers: usize,
        env: &[(&str, &str)],
    ) -> Result<Self> {
        Self::start_on(Engines::shared().await?, binary, apis, workers, env)
    }

    /// Starts nodes on `engines`.
    pub fn start_on(
        engines: Engines,
        binary: &Path,
        apis: usize,
        workers: usize,
        env: &[(&str, &str)],
    ) -> Result<Self> {
        let plan = Plan { apis, workers, env: owned(env) };
        let fleet = block_in_place(|| Fleet::start(binary, &engines, &plan))?;
        Ok(Self { engines, fleet })
    }

    /// Starts another node. `args` are `api` or `worker`, with options; `env` are additional variables.
    pub fn start_node(&self, args: &[&str], env: &[(&str, &str)]) -> Result<Server> {
        block_in_place(|| self.fleet.start_node(args, env))
    }

    /// A client for the first api node.
    pub fn client(&self) -> Result<Client> {
        Ok(Client::new(self.fleet.apis[0].url())?)
    }

    /// Its database.
    pub fn database(&self) -> Database {
        Database::Postgres(self.engines.database_url.clone())
    }

    /// An audit of this cluster, whose virtual host is on the shared RabbitMQ node.
    pub fn audit(&self) -> Result<Audit<'_>> {
        Ok(self.audit_with(RabbitMq::shared()?))
    }

    /// An audit of this cluster, whose virtual host is on `node`.
    pub fn audit_with<'a>(&'a self, node: &'a RabbitMq) -> Audit<'a> {
        Audit {
            database: self.database(),
            blobs: self.fleet.s3.bucket_folder(),
            broker: Some((node, &self.engines.queue_url)),
        }
    }
}
