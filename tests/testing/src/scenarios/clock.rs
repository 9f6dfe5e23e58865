//! Clocks that are put back: that of a single process, which is also the clock of its database, and that of
//! PostgreSQL.

use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::{
    outcome::{Outcome, Setting},
    site::{self, CLIENTS, ENV},
};
use crate::{
    client::Client, faketime::FakeClock, fleet::Engines, load::Load, postgres::Postgres,
    rabbitmq::RabbitMq, server::Server, test_cluster::TestCluster, test_server::TestServer,
};

/// How long uploads go on after the clock was put back.
const AFTER: Duration = Duration::from_secs(20);

/// Starts a server with this clock.
fn start(site: &TestServer, clock: &FakeClock) -> Result<(Server, Client)> {
    let env = clock.env()?;
    site.start(&env.each_ref().map(|(key, value)| (*key, value.as_str())))
}

/// A machine whose clock is a day ahead crashes with queued work, and comes back with the right time.
pub(super) async fn back_at_restart(setting: Setting) -> Result<Outcome> {
    let (site, folder) = (TestServer::new(&setting.binary, ENV)?, TempDir::new()?);
    let clock = FakeClock::new(folder.path(), "+1d")?;
    let ledger = {
        let (mut server, client) = start(&site, &clock)?;
        let ledger = site::backlog(&client).await?;
        block_in_place(|| server.kill())?;
        ledger
    };
    let (_server, _client) = site.start(&[])?;
    let mut outcome = Outcome::default();
    outcome.add(site.audit().run(&ledger).await?);
    Ok(outcome)
}

/// The clock is put back by an hour under load.
pub(super) async fn back_while_running(setting: Setting) -> Result<Outcome> {
    let (site, folder) = (TestServer::new(&setting.binary, ENV)?, TempDir::new()?);
    let clock = FakeClock::new(folder.path(), "+1h")?;
    let (server, client) = start(&site, &clock)?;
    let mut outcome = Outcome::default();
    let load = Load::start(CLIENTS, &[server.url()])?;
    load.wait_for_more(10).await?;
    let backlog = site::backlog(&client).await?;
    clock.set("+0")?;
    tokio::time::sleep(setting.outage(AFTER)).await;
    let result = site::recover(&client, load, &mut outcome).await?;
    result.ledger.append(&backlog);
    outcome.add(site.audit().run(&result.ledger).await?);
    Ok(outcome)
}

/// PostgreSQL's clock is put back by an hour under load, as by a fail-over to a machine with another clock.
pub(super) async fn of_database_back(setting: Setting) -> Result<Outcome> {
    let postgres = block_in_place(|| Postgres::start_with_clock("+1h"))?;
    block_in_place(|| postgres.create_database("safelight"))?;
    let queue_url = block_in_place(|| RabbitMq::shared()?.fresh_vhost())?;
    let engines = Engines { database_url: postgres.url("safelight"), queue_url };
    let cluster = TestCluster::start_on(engines, &setting.binary, 1, 1, ENV)?;
    let client = cluster.client()?;
    let mut outcome = Outcome::default();
    let load = Load::start(CLIENTS, &[cluster.fleet.apis[0].url()])?;
    load.wait_for_more(10).await?;
    let backlog = site::backlog(&client).await?;
    postgres.set_clock("+0")?;
    tokio::time::sleep(setting.outage(AFTER)).await;
    let result = site::recover(&client, load, &mut outcome).await?;
    result.ledger.append(&backlog);
    outcome.add(cluster.audit()?.run(&result.ledger).await?);
    Ok(outcome)
}
