//! Nodes behind a load balancer that are away.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::block_in_place;

use super::{
    outcome::{Outcome, Setting},
    site::{self, CLIENTS, ENV},
};
use crate::{client::Client, load::Load, server::Server, test_cluster::TestCluster};

/// The full length of the time without any node.
const OUTAGE: Duration = Duration::from_secs(30);

/// Each node is killed and started again, then all at once. Clients see only the balancer, also in its errors.
pub(super) async fn nodes_away(setting: Setting) -> Result<Outcome> {
    let mut cluster =
        TestCluster::start_on(crate::fleet::Engines::shared().await?, &setting.binary, 2, 1, ENV)?;
    let (url, outage) = (cluster.fleet.url(), setting.outage(OUTAGE));
    let client = Client::new(&url)?;
    let mut outcome = Outcome::default();
    let load = Load::start(CLIENTS, &[&url])?;
    load.wait_for_more(10).await?;
    for number in 0..cluster.fleet.apis.len() {
        block_in_place(|| cluster.fleet.apis[number].kill())?;
        load.wait_for_more(5).await.context("one node is away")?;
        start_again(&mut cluster, number)?;
    }
    for api in &mut cluster.fleet.apis {
        block_in_place(|| api.kill())?;
    }
    let noticed = site::is_noticed(&client, outage).await;
    outcome.expect(noticed, "the balancer says that no node is ready");
    for number in 0..cluster.fleet.apis.len() {
        start_again(&mut cluster, number)?;
    }
    let result = site::recover(&client, load, &mut outcome).await?;
    outcome.add(cluster.audit()?.run(&result.ledger).await?);
    Ok(outcome)
}

/// Starts a killed api node on its address.
fn start_again(cluster: &mut TestCluster, number: usize) -> Result<()> {
    let apis = &mut cluster.fleet.apis;
    let address = apis[number].url().strip_prefix("http://").context("an address")?.to_owned();
    let node: Server = cluster.start_node(&["api"], &[("SAFELIGHT_LISTEN", &address)])?;
    cluster.fleet.apis[number] = node;
    Ok(())
}
