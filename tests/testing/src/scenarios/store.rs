//! Faults of an object store, behind a proxy that decides about each request.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::task::block_in_place;
use uuid::Uuid;

use super::{
    outcome::{Outcome, Setting},
    site::{self, CLIENTS, ENV},
};
use crate::{
    audit::{Audit, Ledger},
    client::{Client, TestClient as _},
    load::Load,
    s3::S3,
    s3_faults::{S3Fault, S3Faults, S3Request},
    server::Server,
    test_server::TestServer,
};

/// One process with an object store behind the proxy.
struct OnS3 {
    server: Server,
    client: Client,
    site: TestServer,
    faults: S3Faults,
    s3: S3,
}

impl OnS3 {
    fn start(setting: &Setting, settings: &[(&str, &str)]) -> Result<Self> {
        let s3 = S3::start("images")?;
        let faults = S3Faults::start(&s3)?;
        let (url, endpoint, s3_env) = (s3.url(), faults.endpoint(), s3.env());
        let mut env: Vec<(&str, &str)> = [ENV, settings].concat();
        env.extend(s3_env.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        // The last one wins.
        env.extend([("SAFELIGHT_BLOB_URL", url.as_str()), ("AWS_ENDPOINT", endpoint.as_str())]);
        let site = TestServer::new(&setting.binary, &env)?;
        let (server, client) = site.start(&[])?;
        Ok(Self { server, client, site, faults, s3 })
    }

    fn audit(&self) -> Audit<'static> {
        Audit { blobs: self.s3.bucket_folder(), ..self.site.audit() }
    }

    /// Runs a load and a backlog, which meet the faults for some time. Returns the accepted uploads.
    async fn run(
        &self,
        outcome: &mut Outcome,
        outage: Duration,
        plan: impl Fn(&S3Request) -> S3Fault + Send + Sync + 'static,
        is_unavailable: bool,
    ) -> Result<Ledger> {
        let load = Load::start(CLIENTS, &[self.server.url()])?;
        load.wait_for_more(10).await?;
        let backlog = site::backlog(&self.client).await?;
        self.faults.set(plan);
        let noticed = site::is_noticed(&self.client, outage).await;
        if is_unavailable {
            outcome.expect(noticed, "/readyz says that the blob store is unavailable");
        }
        outcome.expect(self.faults.requests() > 0, "requests met the faults");
        self.faults.clear();
        let result = site::recover(&self.client, load, outcome).await?;
        result.ledger.append(&backlog);
        Ok(result.ledger)
    }

    /// Moves uploads whose bytes the store has lost, and whose tasks say so, from the ledger to `reported`. Deletes
    /// their images.
    async fn take_reported(&self, ledger: &Ledger, outcome: &mut Outcome) -> Result<()> {
        let mut reported = Vec::new();
        for upload in ledger.uploads() {
            let task = json!({ "id": upload.task.parse::<Uuid>()? });
            let ended = self.client.finished(&task).await?;
            if is_reported(&ended) {
                let image = ended["image"]["id"].as_str().context("an image")?;
                let deletion = self.client.delete_image(image).await?;
                self.client.finished(&deletion).await?;
                reported.push(upload.task);
            }
        }
        outcome.accepted += reported.len();
        outcome.reported += reported.len();
        ledger.retain(|upload| !reported.contains(&upload.task));
        Ok(())
    }
}

/// Whether the task failed because the store does not have the bytes that it acknowledged.
fn is_reported(task: &Value) -> bool {
    let jobs = task["jobs"].as_array().into_iter().flatten();
    let codes = jobs.filter_map(|job| job["error"]["code"].as_str());
    task["status"] == "failed"
        && codes.clone().count() > 0
        && codes.clone().all(|code| ["blob_missing", "blob_damaged"].contains(&code))
}

/// Runs faults, and an audit that must find no upload lost.
async fn run(
    site: &OnS3,
    outage: Duration,
    plan: impl Fn(&S3Request) -> S3Fault + Send + Sync + 'static,
    is_unavailable: bool,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let ledger = site.run(&mut outcome, outage, plan, is_unavailable).await?;
    outcome.add(site.audit().run(&ledger).await?);
    Ok(outcome)
}

/// Every object seems to be gone, as in a bucket that was emptied or is the wrong one.
pub(super) async fn not_found(setting: Setting) -> Result<Outcome> {
    let plan = |_: &S3Request| S3Fault::Error(404, "NoSuchKey");
    let site = block_in_place(|| OnS3::start(&setting, &[]))?;
    run(&site, setting.outage(Duration::from_mins(2)), plan, true).await
}

/// Objects can be written and not be read.
pub(super) async fn reads_fail(setting: Setting) -> Result<Outcome> {
    let plan = |request: &S3Request| {
        if request.is_get() { S3Fault::Error(503, "ServiceUnavailable") } else { S3Fault::None }
    };
    let site = block_in_place(|| OnS3::start(&setting, &[]))?;
    run(&site, setting.outage(Duration::from_secs(90)), plan, true).await
}

/// Half of all reads have the right length and wrong bytes.
pub(super) async fn wrong_bytes(setting: Setting) -> Result<Outcome> {
    let plan = |request: &S3Request| {
        if request.is_get() && request.number.is_multiple_of(2) {
            S3Fault::WrongBytes
        } else {
            S3Fault::None
        }
    };
    // A read that is tried again meets wrong bytes as often, and here within milliseconds.
    let site = block_in_place(|| OnS3::start(&setting, &[("SAFELIGHT_MAX_ATTEMPTS", "50")]))?;
    run(&site, setting.outage(Duration::from_secs(30)), plan, false).await
}

/// Requests fail in the ways that S3 documents, and some responses end too early.
pub(super) async fn errors(setting: Setting) -> Result<Outcome> {
    let plan = |request: &S3Request| match request.number % 5 {
        0 => S3Fault::Error(503, "SlowDown"),
        1 => S3Fault::Error(500, "InternalError"),
        2 if request.is_get() => S3Fault::Truncated,
        _ => S3Fault::None,
    };
    let site = block_in_place(|| OnS3::start(&setting, &[]))?;
    run(&site, setting.outage(Duration::from_mins(1)), plan, false).await
}

/// The store loses a part of what it has acknowledged. Nothing can bring that back, but its task must say so.
pub(super) async fn lost_puts(setting: Setting) -> Result<Outcome> {
    bad_puts(&setting, S3Fault::Lost).await
}

/// The store keeps only half of a part of what it has acknowledged.
pub(super) async fn cut_puts(setting: Setting) -> Result<Outcome> {
    bad_puts(&setting, S3Fault::Cut).await
}

async fn bad_puts(setting: &Setting, fault: S3Fault) -> Result<Outcome> {
    let site = block_in_place(|| OnS3::start(setting, &[]))?;
    let mut outcome = Outcome::default();
    let plan = move |request: &S3Request| {
        let is_original = request.is_put("incoming/") || request.is_put("blobs/");
        if is_original && request.number.is_multiple_of(3) { fault } else { S3Fault::None }
    };
    let outage = setting.outage(Duration::from_secs(30));
    let ledger = site.run(&mut outcome, outage, plan, false).await?;
    site.take_reported(&ledger, &mut outcome).await?;
    outcome.add(site.audit().run(&ledger).await?);
    Ok(outcome)
}
