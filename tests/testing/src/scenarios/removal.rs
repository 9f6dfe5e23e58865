//! Images that are deleted, and uploads that are cancelled, while their thumbnails are made.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::Method;

use super::{
    outcome::{Outcome, Setting},
    site::ENV,
};
use crate::{
    audit::Ledger,
    client::{Client, TestClient as _},
    pictures,
    test_server::TestServer,
    wait::eventually_within,
};

/// The number of uploads, one in five of which is cancelled instead of deleted.
const UPLOADS: u32 = 40;

/// The time between an upload and its removal grows from nothing to about this: as long as a thumbnail job takes.
const LATEST: Duration = Duration::from_millis(300);

/// How long everything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(90);

/// Nothing of an image is left once its removal has ended: neither files on record nor others.
pub(super) async fn during_thumbnails(setting: Setting) -> Result<Outcome> {
    let site = TestServer::new(&setting.binary, ENV)?;
    let (_server, client) = site.start(&[])?;
    let (mut outcome, photo) = (Outcome::default(), pictures::jpeg(1280, 960, 1)?);
    let mut deletions = Vec::new();
    for number in 0..UPLOADS {
        let body = pictures::with_comment(&photo, &format!("{number}"));
        let task = client.upload(body).await?;
        outcome.accepted += 1;
        tokio::time::sleep(LATEST * number / UPLOADS).await;
        if number % 5 == 0 {
            cancel(&client, task["id"].as_str().context("an id")?).await?;
        } else {
            let image = task["image"]["id"].as_str().context("an image")?;
            deletions.push(client.delete_image(image).await?);
        }
    }
    for deletion in &deletions {
        let ended = client.finished(deletion).await?;
        let is_receipt = ended["receipt"]["removed_at"].is_string();
        outcome.expect(ended["status"] == "succeeded" && is_receipt, "each deletion has a receipt");
    }
    let report = site.audit().run(&Ledger::default()).await?;
    outcome.add(report);
    // The audit knows where files belong; this counts everything.
    let folders = ["blobs", "renditions", "incoming", "trash", "probe"];
    let mut left = Vec::new();
    let gone = eventually_within(LIMIT, "no file is left", async || {
        left.clear();
        for folder in folders {
            collect(&site.data().join("blobs").join(folder), &mut left)?;
        }
        // What is cancelled too late stays.
        Ok(left.len() <= kept(&client).await? * 4)
    });
    if gone.await.is_err() {
        outcome.left.extend(left);
    }
    Ok(outcome)
}

/// The number of images that still exist: those whose tasks had ended before they were cancelled.
async fn kept(client: &Client) -> Result<usize> {
    let images = client.json("/v1/images?limit=100").await?;
    Ok(images["images"].as_array().context("images")?.len())
}

/// Cancels a task, unless it has ended.
async fn cancel(client: &Client, task: &str) -> Result<()> {
    let path = format!("/v1/tasks/{task}/cancel");
    let answer = client.request(Method::POST, &path).send().await?;
    let status = answer.status().as_u16();
    ensure!([202, 409].contains(&status), "cancel: {status}");
    Ok(())
}

fn collect(folder: &std::path::Path, found: &mut Vec<String>) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, found)?;
        } else {
            found.push(path.display().to_string());
        }
    }
    Ok(())
}
