//! Cancelling what runs, with everything really running.

use anyhow::{Context, Result};
use reqwest::Method;
use safelight_testing::{
    client::{Client, TestClient as _},
    pictures,
};
use serde_json::Value;

use super::{eventually, test_cluster, test_server};

/// A picture whose decoder never answers: its jobs run until somebody stops them.
fn endless() -> Result<Vec<u8>> {
    Ok(pictures::with_comment(&pictures::jpeg(64, 48, 1)?, "SAFELIGHT-FAIL:hang"))
}

/// Cancelled in the middle, a job stops, and nothing of its upload stays behind: not on one
/// process.
#[tokio::test(flavor = "multi_thread")]
async fn cancel_stops_running_task_and_deletes_its_bytes() -> Result<()> {
    let site = test_server(&[("SAFELIGHT_LEASE_MS", "1000")])?;
    let (_server, client) = site.start(&[])?;
    cancelled_while_running(&client).await?;
    eventually("its bytes are gone", async || Ok(files(&site.data().join("blobs"))? == 0)).await
}

/// And not on a fleet, where another node than the worker's is asked.
#[tokio::test(flavor = "multi_thread")]
async fn cancel_stops_task_that_runs_on_another_node() -> Result<()> {
    let cluster = test_cluster(1, 1, &[("SAFELIGHT_LEASE_MS", "1000")]).await?;
    cancelled_while_running(&cluster.client()?).await?;
    let bucket = cluster.fleet.s3.bucket_folder();
    eventually("its bytes are gone", async || Ok(files(&bucket)? == 0)).await
}

async fn cancelled_while_running(client: &Client) -> Result<()> {
    let task = client.upload(endless()?).await?;
    let path = format!("/v1/tasks/{}", task["id"].as_str().context("an id")?);
    eventually("both jobs run", async || {
        let task = client.json(&path).await?;
        let jobs = task["jobs"].as_array().cloned().unwrap_or_default();
        Ok(jobs.iter().all(|job| job["status"] == "running"))
    })
    .await?;
    let answer = client.request(Method::POST, &format!("{path}/cancel")).send().await?;
    assert_eq!(answer.status(), 202);
    let cancelled: Value = answer.json().await?;
    assert_eq!(cancelled["status"], "cancelled", "{cancelled:#}");
    let image = cancelled["image"]["url"].as_str().context("an image")?;
    assert_eq!(client.get(image).await?.status(), 410);
    // Its slots are free: both can be had again.
    let next = client.upload(pictures::jpeg(320, 240, 2)?).await?;
    assert_eq!(client.finished(&next).await?["status"], "succeeded");
    let next = next["id"].as_str().context("an id")?;
    let answer = client.request(Method::POST, &format!("/v1/tasks/{next}/cancel")).send().await?;
    assert_eq!(answer.status(), 409, "what has ended cannot be cancelled");
    assert_eq!(client.json(&path).await?, cancelled, "nothing came of it afterwards");
    Ok(())
}

/// How many files hold bytes of the endless picture.
fn files(folder: &std::path::Path) -> Result<usize> {
    let mut found = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found += files(&path)?;
        } else if let Ok(bytes) = std::fs::read(&path) {
            let marker = b"SAFELIGHT-FAIL";
            found += usize::from(bytes.windows(marker.len()).any(|window| window == marker));
        }
    }
    Ok(found)
}
