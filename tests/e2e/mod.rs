//! Tests of the whole program through its HTTP API and its commands. Many scenarios run on two deployments: a
//! single process, and a fleet on real engines behind a load balancer.

mod access;
mod backfill;
mod backup;
mod commands;
mod crashes;
mod decoder_owners;
mod delivery;
mod installation;
mod keyless;
mod lanes;
mod metrics;
mod openapi;
mod pipeline;
mod public;
mod startup;
mod tls;
mod traces;

use std::{path::Path, process::Command};

use anyhow::Result;
use safelight_testing::{
    client::Client,
    fleet::{Engines, Fleet, Plan},
    server::{Server, safelight},
};
use tempfile::TempDir;

/// The program under test.
pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_safelight"))
}

/// Starts `safelight serve` on a folder and waits until it is ready.
pub(crate) async fn serve(data: &Path) -> Result<Server> {
    let command = safelight(binary(), ["serve"], &embedded_env(data));
    tokio::task::spawn_blocking(move || Server::start(command)).await?
}

/// The configuration of a process with SQLite and the in-process queue in `data`.
pub(crate) fn embedded_env(data: &Path) -> Vec<(String, String)> {
    vec![
        ("SAFELIGHT_DATA_DIR".to_owned(), data.to_string_lossy().into_owned()),
        ("SAFELIGHT_LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
    ]
}

/// A fleet with its own database and virtual host.
async fn fleet(plan: Plan) -> Result<Fleet> {
    let engines = Engines::shared().await?;
    tokio::task::spawn_blocking(move || Fleet::start(binary(), &engines, &plan)).await?
}

/// A running Safelight.
enum Deployment {
    /// One process.
    Embedded { server: Server, _data: TempDir },
    /// Two api nodes and two workers.
    Fleet(Box<Fleet>),
}

impl Deployment {
    async fn embedded() -> Result<Self> {
        let data = TempDir::new()?;
        Ok(Self::Embedded { server: serve(data.path()).await?, _data: data })
    }

    async fn fleet() -> Result<Self> {
        Ok(Self::Fleet(Box::new(fleet(Plan::default()).await?)))
    }

    fn url(&self) -> String {
        match self {
            Self::Embedded { server, .. } => server.url().to_owned(),
            Self::Fleet(fleet) => fleet.url(),
        }
    }

    fn client(&self) -> Result<Client> {
        Ok(Client::new(&self.url())?)
    }

    /// A client for each api node, without the load balancer.
    fn nodes(&self) -> Result<Vec<Client>> {
        let apis = match self {
            Self::Embedded { server, .. } => std::slice::from_ref(server),
            Self::Fleet(fleet) => &fleet.apis,
        };
        Ok(apis.iter().map(|api| Client::new(api.url())).collect::<Result<_, _>>()?)
    }

    /// A `safelight` command that connects to the deployment.
    fn command(&self, args: &[&str]) -> Command {
        safelight(binary(), args, &[("SAFELIGHT_URL".to_owned(), self.url())])
    }
}

/// Runs each scenario on every deployment.
macro_rules! on_every_deployment {
    ($($scenario:ident),+ $(,)?) => {
        mod embedded {
            use super::super::Deployment;

            $(#[tokio::test]
            async fn $scenario() -> anyhow::Result<()> {
                super::$scenario(&Deployment::embedded().await?).await
            })+
        }

        mod fleet {
            use super::super::Deployment;

            $(#[tokio::test]
            async fn $scenario() -> anyhow::Result<()> {
                super::$scenario(&Deployment::fleet().await?).await
            })+
        }
    };
}
use on_every_deployment;
