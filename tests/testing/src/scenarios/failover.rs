//! PostgreSQL's primary dies, and its standby becomes the primary. Nodes know both.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use reqwest::StatusCode;
use tokio::task::block_in_place;

use super::{
    outcome::{Outcome, Setting},
    site::{self, CLIENTS, ENV},
};
use crate::{
    audit::{Audit, Database, Ledger},
    client::Client,
    fleet::Engines,
    load::Load,
    postgres::Postgres,
    rabbitmq::RabbitMq,
    test_cluster::TestCluster,
};

const DATABASE: &str = "safelight";

/// How far an asynchronous standby is behind.
const LAG: Duration = Duration::from_secs(2);

/// Longer than the grace time of staged bytes: the janitor of the promoted database has looked at all bytes.
const JANITOR: Duration = Duration::from_secs(12);

/// A primary, its standby, and nodes that know both.
struct Replicated {
    primary: Postgres,
    standby: Postgres,
    cluster: TestCluster,
}

impl Replicated {
    fn start(setting: &Setting, synchronous: bool) -> Result<Self> {
        let primary = block_in_place(Postgres::start)?;
        block_in_place(|| primary.create_database(DATABASE))?;
        let standby = block_in_place(|| primary.start_standby())?;
        if synchronous {
            block_in_place(|| primary.set("synchronous_standby_names", "*"))?;
        }
        let engines = Engines {
            database_url: format!("{},{}", primary.url(DATABASE), standby.url(DATABASE)),
            queue_url: block_in_place(|| RabbitMq::shared()?.fresh_vhost())?,
        };
        // Whatever the promoted database does not know is kept until the audit.
        let env = [ENV, &[("SAFELIGHT_RECOVERY_GRACE_MS", "3600000")]].concat();
        let cluster = TestCluster::start_on(engines, &setting.binary, 1, 2, &env)?;
        Ok(Self { primary, standby, cluster })
    }

    /// Runs a load during which the primary dies, when the standby has been cut off for `lag`. Returns the uploads
    /// that were accepted by either.
    async fn fail_over(&self, lag: Duration, outcome: &mut Outcome) -> Result<Ledger> {
        let client = self.cluster.client()?;
        let load = Load::start(CLIENTS, &[self.cluster.fleet.apis[0].url()])?;
        load.wait_for_more(20).await?;
        if !lag.is_zero() {
            // One that was only frozen would find everything in the buffers of its connection.
            block_in_place(|| self.standby.set("primary_conninfo", ""))?;
            tokio::time::sleep(lag).await;
        }
        block_in_place(|| self.primary.kill())?;
        block_in_place(|| self.standby.promote())?;
        Ok(site::recover(&client, load, outcome).await?.ledger)
    }

    fn audit(&self) -> Result<Audit<'_>> {
        Ok(Audit {
            database: Database::Postgres(self.standby.url(DATABASE)),
            blobs: self.cluster.fleet.s3.bucket_folder(),
            broker: Some((RabbitMq::shared()?, &self.cluster.engines.queue_url)),
        })
    }
}

/// The standby has every transaction that was answered.
pub(super) async fn synchronous(setting: Setting) -> Result<Outcome> {
    let site = Replicated::start(&setting, true)?;
    let mut outcome = Outcome::default();
    let ledger = site.fail_over(Duration::ZERO, &mut outcome).await?;
    outcome.add(site.audit()?.run(&ledger).await?);
    Ok(outcome)
}

/// The standby does not have the last transactions: what it does not know is lost to readers, but its bytes must
/// stay, so that they can be imported.
pub(super) async fn asynchronous(setting: Setting) -> Result<Outcome> {
    let site = Replicated::start(&setting, false)?;
    let mut outcome = Outcome::default();
    let ledger = site.fail_over(LAG, &mut outcome).await?;
    tokio::time::sleep(JANITOR).await;
    let kept = take_forgotten(&site.cluster, &ledger, &mut outcome).await?;
    let mut report = site.audit()?.run(&ledger).await?;
    // What is kept belongs to nobody in this database.
    report.left.retain(|left| !kept.iter().any(|name| left.contains(name)));
    outcome.add(report);
    Ok(outcome)
}

/// Moves uploads that the promoted database does not know, and whose bytes are kept, from the ledger to `reported`.
/// Returns the names of their bytes.
async fn take_forgotten(
    cluster: &TestCluster,
    ledger: &Ledger,
    outcome: &mut Outcome,
) -> Result<Vec<String>> {
    let client: Client = cluster.client()?;
    let bucket = cluster.fleet.s3.bucket_folder();
    let (mut kept, mut forgotten) = (Vec::new(), Vec::new());
    for upload in ledger.uploads() {
        let task: uuid::Uuid = upload.task.parse().context("an id")?;
        match client.get(&format!("/v1/tasks/{task}")).await?.status() {
            StatusCode::OK => continue,
            StatusCode::NOT_FOUND => {}
            other => bail!("{task}: {other}"),
        }
        let image: uuid::Uuid = upload.image.parse().context("an id")?;
        let blob = Path::new("blobs").join(&upload.sha256[..2]).join(&upload.sha256);
        if bucket.join(blob).exists() {
            forgotten.push(upload.task);
            kept.push(upload.sha256);
        } else {
            outcome.broken.push(format!("the bytes of the forgotten image {image} are gone"));
        }
    }
    outcome.accepted += forgotten.len();
    outcome.reported += forgotten.len();
    ledger.retain(|upload| !forgotten.contains(&upload.task));
    Ok(kept)
}
