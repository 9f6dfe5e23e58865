//! Outages of Redis, which is only a cache.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::block_in_place;

use super::{
    outcome::{Outcome, Setting},
    site::{self, CLIENTS, ENV},
};
use crate::{audit::Ledger, client::Client, load::Load, redis::Redis, test_server::TestServer};

/// The full length of each outage.
const OUTAGE: Duration = Duration::from_secs(30);

/// One after the other under a load of uploads and reads: Redis is frozen, killed, and emptied.
pub(super) async fn outages(setting: Setting) -> Result<Outcome> {
    let mut redis = block_in_place(Redis::start)?;
    let url = redis.url();
    let site =
        TestServer::new(&setting.binary, &[ENV, &[("SAFELIGHT_SHARED_CACHE_URL", &url)]].concat())?;
    let (server, client) = site.start(&[])?;
    let mut outcome = Outcome::default();
    let load = Load::start(CLIENTS, &[server.url()])?;
    load.wait_for_more(10).await?;
    let backlog = site::backlog(&client).await?;
    let outage = setting.outage(OUTAGE);

    redis.stop()?;
    read_all(&client, &backlog, &mut outcome).await?;
    tokio::time::sleep(outage).await;
    redis.resume()?;
    block_in_place(|| redis.kill())?;
    read_all(&client, &backlog, &mut outcome).await?;
    tokio::time::sleep(outage).await;
    block_in_place(|| redis.start_again())?;
    redis.ask("FLUSHALL")?;
    read_all(&client, &backlog, &mut outcome).await?;

    let result = site::recover(&client, load, &mut outcome).await?;
    let none = outcome.rejections.is_empty();
    outcome.expect(none, "uploads are accepted without the shared cache");
    result.ledger.append(&backlog);
    outcome.add(site.audit().run(&result.ledger).await?);
    Ok(outcome)
}

/// Reads the originals of all uploads.
async fn read_all(client: &Client, ledger: &Ledger, outcome: &mut Outcome) -> Result<()> {
    for upload in ledger.uploads() {
        let image: uuid::Uuid = upload.image.parse()?;
        let bytes = client.bytes(&format!("/images/{image}")).await.context("a read")?;
        outcome.expect(bytes.len() as u64 == upload.bytes, "reads return the bytes sent");
    }
    Ok(())
}
