//! Cancelling running tasks.

use anyhow::{Context, Result};
use reqwest::Method;
use safelight_testing::{
    client::{Client, TestClient as _},
    pictures,
};
use serde_json::Value;

use super::{eventually, test_cluster, test_server};

/// A picture whose decoder hangs, so its jobs run until they are stopped.
fn hanging_picture() -> Result<Vec<u8>> {
    Ok(pictures::with_comment(&pictures::jpeg(64, 48, 1)?, "SAFELIGHT-FAIL:hang"))
}

/// Promise: cancelling stops running jobs, and nothing of the upload remains: in one process.
#[tokio::test(flavor = "multi_thread")]
async fn cancel_stops_running_task_and_deletes_its_bytes() -> Result<()> {
    let setup = test_server(&[("SAFELIGHT_LEASE_MS", "1000")])?;
    let (_server, client) = setup.start(&[])?;
    assert_cancel_while_running(&client).await?;
    eventually("its bytes are deleted", async || {
        Ok(files_with_marker(&setup.data().join("blobs"))? == 0)
    })
    .await
}

/// The same promise on a fleet, where an api node receives the call and a worker runs the job.
#[tokio::test(flavor = "multi_thread")]
async fn cancel_stops_task_that_runs_on_another_node() -> Result<()> {
    let cluster = test_cluster(1, 1, &[("SAFELIGHT_LEASE_MS", "1000")]).await?;
    assert_cancel_while_running(&cluster.client()?).await?;
    let bucket = cluster.fleet.s3.bucket_folder();
    eventually("its bytes are deleted", async || Ok(files_with_marker(&bucket)? == 0)).await
}

async fn assert_cancel_while_running(client: &Client) -> Result<()> {
    let task = client.upload(hanging_picture()?).await?;
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
    // Both of its slots are free again.
    let next = client.upload(pictures::jpeg(320, 240, 2)?).await?;
    assert_eq!(client.finished(&next).await?["status"], "succeeded");
    let next = next["id"].as_str().context("an id")?;
    let answer = client.request(Method::POST, &format!("/v1/tasks/{next}/cancel")).send().await?;
    assert_eq!(answer.status(), 409, "an ended task was cancelled");
    assert_eq!(client.json(&path).await?, cancelled, "its late result changed the task");
    Ok(())
}

/// How many files contain bytes of the hanging picture.
fn files_with_marker(folder: &std::path::Path) -> Result<usize> {
    let mut found = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found += files_with_marker(&path)?;
        } else if let Ok(bytes) = std::fs::read(&path) {
            let marker = b"SAFELIGHT-FAIL";
            found += usize::from(bytes.windows(marker.len()).any(|window| window == marker));
        }
    }
    Ok(found)
}
