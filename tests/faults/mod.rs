//! What may fail, fails here: over real engines, by fail points and signals. Every test ends with
//! an audit of the books (`tests/harness/src/books`).

mod accept;
mod broker;
mod cancel;
mod clock;
mod database;
mod delete;
mod disk;
mod drain;
mod links;
mod poison;
mod stale;
mod work;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reqwest::StatusCode;
use safelight_harness::{
    books::{Books, Database, Ledger},
    client::{Client, accepted},
    fleet::{Engines, Fleet, Plan},
    rabbitmq::RabbitMq,
    server::{Server, safelight},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::block_in_place;

use crate::wait::{LIMIT, eventually};

/// Configuration under which lost work is found at once rather than in half a minute.
const HASTY: &[(&str, &str)] = &[
    ("SAFELIGHT_LEASE_MS", "1500"),
    ("SAFELIGHT_BACKOFF_BASE_MS", "20"),
    ("SAFELIGHT_STAGED_GRACE_MS", "1000"),
    ("SAFELIGHT_IDEMPOTENCY_HOLD_MS", "500"),
];

/// Bytes of refused uploads are collected while a test waits, and not while an upload is slow.
const TIDY: (&str, &str) = ("SAFELIGHT_STAGED_GRACE_MS", "5000");

/// The program under test.
fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_safelight"))
}

fn owned(env: &[(&str, &str)]) -> Vec<(String, String)> {
    env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A fail point's variable.
fn armed(point: &str) -> (&'static str, &str) {
    ("SAFELIGHT_FAIL_POINTS", point)
}

/// One process on embedded parts, to be started again on the same folder.
struct Alone {
    data: TempDir,
    env: Vec<(String, String)>,
}

impl Alone {
    fn new(env: &[(&str, &str)]) -> Result<Self> {
        let data = TempDir::new()?;
        let mut all = owned(&[
            ("SAFELIGHT_DATA_DIR", &data.path().to_string_lossy()),
            ("SAFELIGHT_LISTEN", "127.0.0.1:0"),
        ]);
        all.extend(owned(env));
        Ok(Self { data, env: all })
    }

    /// Starts the server with further variables.
    fn start(&self, env: &[(&str, &str)]) -> Result<(Server, Client)> {
        let mut command = safelight(binary(), ["serve"], &self.env);
        command.envs(env.iter().copied());
        let server = block_in_place(|| Server::start(command))?;
        let client = Client::new(server.url())?;
        Ok((server, client))
    }

    fn books(&self) -> Books<'static> {
        Books {
            database: Database::Sqlite(self.data.path().join("safelight.db")),
            blobs: self.data.path().join("blobs"),
            broker: None,
        }
    }
}

/// Nodes on an object store, and on a database and a virtual host of their own.
struct Cluster {
    engines: Engines,
    fleet: Fleet,
}

impl Cluster {
    async fn start(apis: usize, workers: usize, env: &[(&str, &str)]) -> Result<Self> {
        Self::on(Engines::shared().await?, apis, workers, env)
    }

    fn on(engines: Engines, apis: usize, workers: usize, env: &[(&str, &str)]) -> Result<Self> {
        let plan = Plan { apis, workers, env: owned(env) };
        let fleet = block_in_place(|| Fleet::start(binary(), &engines, &plan))?;
        Ok(Self { engines, fleet })
    }

    /// Starts one more node.
    fn node(&self, args: &[&str], env: &[(&str, &str)]) -> Result<Server> {
        block_in_place(|| self.fleet.start_node(args, env))
    }

    /// A client of the first api node.
    fn client(&self) -> Result<Client> {
        Client::new(self.fleet.apis[0].url())
    }

    fn database(&self) -> Database {
        Database::Postgres(self.engines.database_url.clone())
    }

    /// The books, if the virtual host is one of the shared node's.
    fn books(&self) -> Result<Books<'_>> {
        Ok(self.books_with(RabbitMq::shared()?))
    }

    fn books_with<'a>(&'a self, node: &'a RabbitMq) -> Books<'a> {
        Books {
            database: self.database(),
            blobs: self.fleet.s3.bucket_folder(),
            broker: Some((node, &self.engines.queue_url)),
        }
    }
}

/// Waits for a process that a fail point kills.
fn dies(server: &mut Server) -> Result<()> {
    let status = block_in_place(|| server.wait(LIMIT))?;
    ensure!(status.code().is_none(), "ended with {status} rather than by a signal");
    Ok(())
}

/// Waits until every thread of a process stands still.
async fn stops(server: &mut Server) -> Result<()> {
    let id = server.id();
    eventually("the process has stopped", async || {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
        let state = stat.rsplit(')').next().context("a state")?.trim_start().chars().next();
        Ok(state == Some('T'))
    })
    .await
}

/// Sends an upload again until it is accepted, as a client does that got no answer.
async fn upload_until_accepted(client: &Client, body: &[u8], key: &str) -> Result<Value> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let answer = client.post_image(body.to_vec(), &[("Idempotency-Key", key)]).await;
        match answer {
            // The key of a dead upload is still held.
            Ok(answer) if answer.status() == StatusCode::CONFLICT => {}
            Ok(answer) => return accepted(answer).await,
            Err(error) => ensure!(Instant::now() < deadline, "no answer: {error}"),
        }
        ensure!(Instant::now() < deadline, "never accepted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Uploads `bodies` and notes them.
async fn upload_all(client: &Client, bodies: &[Vec<u8>]) -> Result<Ledger> {
    let ledger = Ledger::default();
    for body in bodies {
        ledger.record(&client.upload(body.clone()).await?, body)?;
    }
    Ok(ledger)
}
