//! Cancelling running tasks.

use std::fs;

use anyhow::{Context, Result};
use reqwest::Method;
use safelight_testing::{
    audit::Ledger,
    client::{Client, TestClient as _},
    pictures,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::{FAST_RECOVERY, LIMIT, eventually, fail_point, files, test_cluster, test_server};

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
        Ok(files(&setup.data().join("blobs"))?.len() == remaining_files(&client).await?)
    })
    .await
}

/// The same promise on a fleet, where an api node receives the call and a worker runs the job.
#[tokio::test(flavor = "multi_thread")]
async fn cancel_stops_task_that_runs_on_another_node() -> Result<()> {
    let cluster = test_cluster(1, 1, &[("SAFELIGHT_LEASE_MS", "1000")]).await?;
    let client = cluster.client()?;
    assert_cancel_while_running(&client).await?;
    let bucket = cluster.fleet.s3.bucket_folder();
    eventually("its bytes are deleted", async || {
        Ok(files(&bucket)?.len() == remaining_files(&client).await?)
    })
    .await
}

/// The number of files of the images that still exist: an original and its renditions each.
async fn remaining_files(client: &Client) -> Result<usize> {
    let page = client.json("/v1/images").await?;
    let images = page["images"].as_array().context("images")?;
    let renditions =
        images.iter().map(|image| image["renditions"].as_object().map_or(0, serde_json::Map::len));
    Ok(images.len() + renditions.sum::<usize>())
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

/// Steps of a thumbnail job after which renditions, or some of them, are stored and not recorded.
const THUMBNAIL_STEPS: [&str; 3] = ["thumbnail.rendered", "thumbnail.stored", "worker.worked"];

/// Promise: an upload that is cancelled while its renditions are stored, or by a worker that then dies, leaves no
/// file.
#[tokio::test(flavor = "multi_thread")]
async fn cancel_during_thumbnails_leaves_no_file() -> Result<()> {
    let folder = TempDir::new()?;
    for step in THUMBNAIL_STEPS {
        for crash in [false, true] {
            let setup = test_server(FAST_RECOVERY)?;
            let barrier = folder.path().join(format!("{step}-{crash}"));
            let point = format!("{step}=until {}", barrier.display());
            let (mut server, client) = setup.start(&[fail_point(&point)])?;
            let task = client.upload(pictures::jpeg(320, 240, 1)?).await?;
            block_in_place(|| server.wait_for_output(&format!("fail point {step}"), LIMIT))?;
            client.cancel_task(task["id"].as_str().context("an id")?).await?;
            if crash {
                block_in_place(|| server.kill())?;
                drop(server);
                server = setup.start(&[])?.0;
            } else {
                fs::write(&barrier, "")?;
            }
            let at = || format!("at {step}, crash: {crash}");
            let blobs = setup.data().join("blobs");
            eventually("no file is left", async || Ok(files(&blobs)?.is_empty()))
                .await
                .with_context(|| format!("{}: {:?}", at(), files(&blobs)))?;
            setup.audit().run(&Ledger::default()).await?.clean().with_context(at)?;
            drop(server);
        }
    }
    Ok(())
}
