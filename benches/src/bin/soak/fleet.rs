//! A fleet with private engines.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use safelight_testing::{
    audit::{Audit, Database},
    fleet::{Engines, Fleet, Plan},
    postgres::Postgres,
    rabbitmq::RabbitMq,
    server::Server,
};
use tokio::task::block_in_place;

use crate::{Deployment, ENV, random::Random};

/// How long an engine stays unavailable, at least and at most.
const OUTAGE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(4));

/// Two api nodes, two workers, and their engines.
pub struct FleetUnderTest {
    fleet: Fleet,
    engines: Engines,
    postgres: Postgres,
    rabbitmq: RabbitMq,
}

impl FleetUnderTest {
    /// Starts the engines and the nodes.
    pub fn start(binary: &Path) -> Result<Self> {
        block_in_place(|| {
            let postgres = Postgres::start()?;
            postgres.create_database("safelight")?;
            let rabbitmq = RabbitMq::start()?;
            let engines = Engines {
                database_url: postgres.url("safelight"),
                queue_url: rabbitmq.fresh_vhost()?,
            };
            let env = ENV.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let fleet = Fleet::start(binary, &engines, &Plan { env, ..Plan::default() })?;
            Ok(Self { fleet, engines, postgres, rabbitmq })
        })
    }

    /// A command with the fleet's configuration.
    pub fn command(&self, args: &[&str]) -> Command {
        self.fleet.command(args)
    }

    /// Kills a node (`role` is `api` or `worker`) and starts it again on its address.
    pub fn kill_node(&mut self, role: &str, number: usize) -> Result<()> {
        let nodes = if role == "api" { &mut self.fleet.apis } else { &mut self.fleet.workers };
        let variable = if role == "api" { "SAFELIGHT_LISTEN" } else { "SAFELIGHT_WORKER_LISTEN" };
        nodes[number].kill()?;
        let address = nodes[number].url().strip_prefix("http://").context("an address")?.to_owned();
        let node = self.fleet.start_node(&[role], &[(variable, &address)])?;
        let nodes = if role == "api" { &mut self.fleet.apis } else { &mut self.fleet.workers };
        nodes[number] = node;
        Ok(())
    }

    fn delete_queues(&self) -> Result<()> {
        let vhost = self.engines.queue_url.rsplit('/').next().context("a virtual host")?;
        let queues = ["list_queues", "--no-table-headers", "-p", vhost, "name"];
        for queue in self.rabbitmq.ctl(&queues)?.split_whitespace() {
            // A publisher may have declared a deleted queue again, so errors do not matter.
            let _ = self.rabbitmq.ctl(&["delete_queue", "-p", vhost, queue]);
        }
        Ok(())
    }
}

async fn freeze(node: &Server, random: &mut Random) -> Result<()> {
    node.signal("STOP")?;
    tokio::time::sleep(random.between(Duration::from_secs(1), Duration::from_secs(8))).await;
    node.signal("CONT")
}

impl Deployment for FleetUnderTest {
    fn url(&self) -> String {
        self.fleet.url()
    }

    fn database(&self) -> Database {
        Database::Postgres(self.engines.database_url.clone())
    }

    async fn inject_fault(&mut self, random: &mut Random) -> Result<&'static str> {
        let number = random.index(2);
        let outage = random.between(OUTAGE.0, OUTAGE.1);
        match random.index(10) {
            0..=1 => {
                block_in_place(|| self.kill_node("api", number))?;
                Ok("api killed")
            }
            2..=4 => {
                block_in_place(|| self.kill_node("worker", number))?;
                Ok("worker killed")
            }
            5 => {
                freeze(&self.fleet.apis[number], random).await?;
                Ok("api frozen")
            }
            6 => {
                freeze(&self.fleet.workers[number], random).await?;
                Ok("worker frozen")
            }
            7 => {
                self.rabbitmq.kill()?;
                tokio::time::sleep(outage).await;
                block_in_place(|| self.rabbitmq.start_node())?;
                Ok("RabbitMQ killed")
            }
            8 => {
                block_in_place(|| self.postgres.crash())?;
                tokio::time::sleep(outage).await;
                block_in_place(|| self.postgres.start_again())?;
                Ok("PostgreSQL killed")
            }
            _ => {
                block_in_place(|| self.delete_queues())?;
                Ok("queues deleted")
            }
        }
    }

    fn audit(&self) -> Audit<'_> {
        Audit {
            database: self.database(),
            blobs: self.fleet.s3.bucket_folder(),
            broker: Some((&self.rabbitmq, &self.engines.queue_url)),
        }
    }
}
