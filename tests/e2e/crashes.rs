//! Crashes of processes. Accepted uploads are still processed.

use anyhow::Result;
use safelight_testing::{
    client::{Client, TestClient as _},
    fleet::Plan,
    pictures,
    wait::{LIMIT, eventually},
};
use serde_json::Value;
use tempfile::TempDir;

use super::{fleet, serve};

/// Enough uploads that some are being processed when a process is killed.
const UPLOADS: usize = 16;

#[tokio::test]
async fn other_workers_finish_jobs_of_killed_worker() -> Result<()> {
    // The broker redelivers unsettled messages immediately. Running jobs wait until their lease expires.
    let env = vec![("SAFELIGHT_LEASE_MS".to_owned(), "5000".to_owned())];
    let mut fleet = fleet(Plan { env, ..Plan::default() }).await?;
    let client = Client::new(&fleet.url())?;
    let tasks = upload_many(&client).await?;
    wait_until_one_job_runs(&client, &tasks).await?;
    fleet.workers[0].kill()?;
    all_succeed(&client, &tasks).await
}

#[tokio::test]
async fn tasks_wait_while_no_worker_runs() -> Result<()> {
    let env = vec![("SAFELIGHT_LEASE_MS".to_owned(), "5000".to_owned())];
    let mut fleet = fleet(Plan { workers: 1, env, ..Plan::default() }).await?;
    let client = Client::new(&fleet.url())?;
    let tasks = upload_many(&client).await?;
    wait_until_one_job_runs(&client, &tasks).await?;
    fleet.workers[0].kill()?;
    // Uploads are still accepted.
    let late = client.upload(pictures::jpeg(320, 240, 99)?).await?;
    fleet.add_worker()?;
    all_succeed(&client, &tasks).await?;
    all_succeed(&client, &[late]).await
}

#[tokio::test]
async fn killing_an_api_node_fails_no_request() -> Result<()> {
    let mut fleet = fleet(Plan::default()).await?;
    let client = Client::new(&fleet.url())?;
    let task = client.upload(pictures::jpeg(320, 240, 1)?).await?;
    let path = format!("/v1/tasks/{}", task["id"].as_str().unwrap_or_default());
    fleet.apis[0].kill()?;
    for _ in 0..50 {
        client.json(&path).await?;
    }
    all_succeed(&client, &[task]).await?;
    let after = client.upload(pictures::jpeg(320, 240, 2)?).await?;
    all_succeed(&client, &[after]).await
}

#[tokio::test]
async fn restarted_server_finishes_accepted_uploads() -> Result<()> {
    let data = TempDir::new()?;
    let mut server = serve(data.path()).await?;
    let client = Client::new(server.url())?;
    let tasks = upload_many(&client).await?;
    wait_until_one_job_runs(&client, &tasks).await?;
    server.kill()?;

    let server = serve(data.path()).await?;
    let client = Client::new(server.url())?;
    all_succeed(&client, &tasks).await
}

#[tokio::test]
async fn drained_server_exits_with_0_and_loses_nothing() -> Result<()> {
    let data = TempDir::new()?;
    let mut server = serve(data.path()).await?;
    let client = Client::new(server.url())?;
    let tasks = upload_many(&client).await?;
    server.signal("TERM")?;
    let (ended, server) = tokio::task::spawn_blocking(move || (server.wait(LIMIT), server)).await?;
    assert_eq!(ended?.code(), Some(0), "{}", server.output());

    let server = serve(data.path()).await?;
    all_succeed(&Client::new(server.url())?, &tasks).await
}

/// Uploads different pictures concurrently. They are large, so that processing takes longer than the uploads.
async fn upload_many(client: &Client) -> Result<Vec<Value>> {
    let photo = pictures::jpeg(1600, 1200, 1)?;
    let uploads = (0..UPLOADS)
        .map(|number| client.upload(pictures::with_comment(&photo, &format!("number {number}"))));
    Ok(futures::future::try_join_all(uploads).await?)
}

async fn wait_until_one_job_runs(client: &Client, tasks: &[Value]) -> Result<()> {
    eventually("a job is running", async || {
        for task in tasks {
            let task = client.task(task["id"].as_str().unwrap_or_default()).await?;
            let jobs = task["jobs"].as_array().map(Vec::as_slice).unwrap_or_default();
            if jobs.iter().any(|job| job["status"] == "running") {
                return Ok(true);
            }
        }
        Ok(false)
    })
    .await
}

async fn all_succeed(client: &Client, tasks: &[Value]) -> Result<()> {
    for task in tasks {
        let task = client.finished(task).await?;
        assert_eq!(task["status"], "succeeded", "{task:#}");
        let image = task["image"]["url"].as_str().unwrap_or_default();
        assert_eq!(task["image"]["bytes"], client.bytes(image).await?.len());
    }
    Ok(())
}
