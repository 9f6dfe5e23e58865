//! No decoder reads pictures of two owners.

use anyhow::{Context, Result, ensure};
use safelight_testing::{
    client::{Client, TestClient as _},
    pictures,
    server::{Server, safelight},
};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    access::{create_key, secret},
    binary, embedded_env,
};

#[tokio::test]
async fn decoder_that_a_picture_took_over_reads_no_other_owners_pictures() -> Result<()> {
    let data = TempDir::new()?;
    let mut env = embedded_env(data.path());
    for (key, value) in [("CONCURRENCY", "1"), ("BACKOFF_BASE_MS", "10"), ("BACKOFF_CAP_MS", "50")]
    {
        env.push((format!("SAFELIGHT_{key}"), value.to_owned()));
    }
    let ada = create_key(&env, "ada", "upload,read").await?;
    let bob = create_key(&env, "bob", "upload,read").await?;
    let command = safelight(binary(), ["serve"], &env);
    let server = tokio::task::spawn_blocking(move || Server::start(command)).await??;
    let ada = Client::with_key(server.url(), secret(&ada)?)?;
    let bob = Client::with_key(server.url(), secret(&bob)?)?;
    for round in 0..3 {
        // Its decoders abort on the next picture that they receive.
        let stain = format!("SAFELIGHT-FAIL:stain {round}");
        let stain = pictures::with_comment(&pictures::jpeg(64, 48, round)?, &stain);
        ada.finished(&ada.upload(stain).await?).await?;
        let task = bob.finished(&bob.upload(pictures::jpeg(320, 240, round)?).await?).await?;
        ensure!(attempts(&task)? == 1, "a decoder of ada's read bob's picture: {task:#}");
    }
    let task = ada.finished(&ada.upload(pictures::jpeg(320, 240, 9)?).await?).await?;
    ensure!(attempts(&task)? > 1, "no decoder was taken over: {task:#}");
    Ok(())
}

/// The most attempts that a job of a successful task needed.
fn attempts(task: &Value) -> Result<u64> {
    ensure!(task["status"] == "succeeded", "{task:#}");
    let jobs = task["jobs"].as_array().context("no jobs")?;
    jobs.iter().filter_map(|job| job["attempt"].as_u64()).max().context("no attempt")
}
