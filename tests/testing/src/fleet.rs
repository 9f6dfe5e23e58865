//! The deployment of `compose.yaml` without Docker: several nodes on real engines behind a load balancer,
//! all on free ports.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    haproxy::HaProxy,
    postgres::Postgres,
    rabbitmq::RabbitMq,
    s3::S3,
    server::{Server, run, safelight},
    test_server::RECOVERY_GRACE,
};

/// How long the migration of an empty database may take on a busy machine.
const MIGRATE: Duration = Duration::from_mins(1);

/// The engines of a fleet that other fleets may share.
pub struct Engines {
    /// An empty database (`postgres://…`).
    pub database_url: String,
    /// An empty virtual host (`amqp://…`).
    pub queue_url: String,
}

impl Engines {
    /// Creates a new database and a new virtual host on the servers that this process shares.
    pub async fn shared() -> Result<Self> {
        let database_url = Postgres::fresh_database().await?;
        let queue_url = tokio::task::spawn_blocking(|| RabbitMq::shared()?.fresh_vhost()).await??;
        Ok(Self { database_url, queue_url })
    }
}

/// The number of nodes, and their configuration.
pub struct Plan {
    /// The number of api nodes.
    pub apis: usize,
    /// The number of workers.
    pub workers: usize,
    /// Additional variables of every node, such as `SAFELIGHT_LEASE_MS`.
    pub env: Vec<(String, String)>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { apis: 2, workers: 2, env: Vec::new() }
    }
}

/// A running fleet. Dropping it ends all its processes in the order of the fields: clients before the engines
/// that they use.
pub struct Fleet {
    balancer: HaProxy,
    /// The api nodes.
    pub apis: Vec<Server>,
    /// The workers.
    pub workers: Vec<Server>,
    /// The object store.
    pub s3: S3,
    binary: PathBuf,
    env: Vec<(String, String)>,
    _folder: tempfile::TempDir,
}

impl Fleet {
    /// Migrates the database and starts all nodes of `plan`; returns when the fleet accepts uploads. Blocks
    /// the thread for a second or two.
    pub fn start(binary: &Path, engines: &Engines, plan: &Plan) -> Result<Self> {
        Self::start_with_s3(S3::start("images")?, binary, engines, plan)
    }

    /// Like [`Fleet::start`], with an object store that already runs.
    pub fn start_with_s3(s3: S3, binary: &Path, engines: &Engines, plan: &Plan) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("safelight-fleet-").tempdir()?;
        let mut env = s3.env();
        env.extend(
            [
                ("SAFELIGHT_DATABASE_URL", engines.database_url.as_str()),
                ("SAFELIGHT_QUEUE_URL", engines.queue_url.as_str()),
                ("SAFELIGHT_BLOB_URL", s3.url().as_str()),
                ("SAFELIGHT_DATA_DIR", &folder.path().to_string_lossy()),
                ("SAFELIGHT_LISTEN", "127.0.0.1:0"),
                RECOVERY_GRACE,
                ("SAFELIGHT_WORKER_LISTEN", "127.0.0.1:0"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        env.extend(plan.env.iter().cloned());

        run(safelight(binary, ["migrate"], &env), MIGRATE)?.success().context("migrate")?;
        let command = |role: &str| safelight(binary, [role], &env);
        let apis: Vec<Server> =
            (0..plan.apis).map(|_| Server::start(command("api"))).collect::<Result<_>>()?;
        let workers =
            (0..plan.workers).map(|_| Server::start(command("worker"))).collect::<Result<_>>()?;
        let urls: Vec<&str> = apis.iter().map(Server::url).collect();
        let balancer = HaProxy::start(&urls)?;
        let binary = binary.to_owned();
        Ok(Self { balancer, apis, workers, s3, binary, env, _folder: folder })
    }

    /// The URL of the load balancer.
    pub fn url(&self) -> String {
        self.balancer.url()
    }

    /// The load balancer.
    pub fn balancer(&self) -> &HaProxy {
        &self.balancer
    }

    /// A `safelight` command with the configuration of this fleet.
    pub fn command(&self, args: &[&str]) -> Command {
        safelight(&self.binary, args, &self.env)
    }

    /// Starts a node that the caller owns. `args` are `api` or `worker`, with options; `env` are additional
    /// variables.
    pub fn start_node(&self, args: &[&str], env: &[(&str, &str)]) -> Result<Server> {
        let mut command = self.command(args);
        command.envs(env.iter().copied());
        Server::start(command)
    }

    /// Starts one more worker.
    pub fn add_worker(&mut self) -> Result<()> {
        self.workers.push(Server::start(self.command(&["worker"]))?);
        Ok(())
    }
}
