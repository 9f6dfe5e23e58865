//! Crashes of api processes at each step between the last byte of an upload and its published jobs.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use futures::stream;
use reqwest::StatusCode;
use safelight_testing::{
    audit::Ledger,
    client::{Client, TestClient as _, accepted},
    pictures,
    server::Server,
};
use serde_json::json;

use super::{
    FAST_RECOVERY, fail_point, test_cluster, test_server, upload_until_accepted, wait_until_killed,
};

/// The fail points, in order.
const STEPS: [&str; 7] = [
    "upload.received",
    "upload.checked",
    "upload.stored",
    "upload.recorded",
    "upload.accepted",
    "relay.taken",
    "relay.confirmed",
];

/// Uploads to a server that crashes during the upload. Records the upload if its 202 arrived.
async fn upload_until_crash(
    server: &mut Server,
    body: &[u8],
    key: &str,
    ledger: &Ledger,
) -> Result<()> {
    let client = Client::new(server.url())?;
    let answer = client.post_image(body.to_vec(), &[("Idempotency-Key", key)]).await;
    if let Ok(answer) = answer
        && answer.status() == StatusCode::ACCEPTED
        && let Ok(task) = accepted(answer).await
    {
        ledger.record(&task, body)?;
    }
    wait_until_killed(server)
}

/// Promise: at whatever step the process crashes, an upload with a 202 is kept, and one without can be
/// repeated under its key. In the end there is exactly one image.
#[tokio::test(flavor = "multi_thread")]
async fn upload_survives_server_crash_at_every_step() -> Result<()> {
    let photo = pictures::jpeg(320, 240, 1)?;
    for step in STEPS {
        let (setup, ledger) = (test_server(FAST_RECOVERY)?, Ledger::default());
        let (mut server, _) = setup.start(&[fail_point(&format!("{step}=kill"))])?;
        upload_until_crash(&mut server, &photo, "once", &ledger).await?;
        let (_server, client) = setup.start(&[])?;
        ledger.record(&upload_until_accepted(&client, &photo, "once").await?, &photo)?;
        let report = setup.audit().run(&ledger).await?.clean().context(step)?;
        assert_eq!(report.tasks, 1, "after {step}");
        let tasks: Vec<_> = ledger.uploads().into_iter().map(|entry| entry.task).collect();
        assert!(tasks.iter().all(|task| *task == tasks[0]), "{step}: {tasks:?}");
    }
    Ok(())
}

/// The same promise on a fleet: one api node crashes, and the client repeats the upload on another one.
#[tokio::test(flavor = "multi_thread")]
async fn upload_survives_api_node_crash_at_every_step() -> Result<()> {
    let cluster = test_cluster(1, 1, FAST_RECOVERY).await?;
    let (ledger, client) = (Ledger::default(), cluster.client()?);
    for (number, step) in (1..).zip(STEPS) {
        // The relays of the other nodes would publish the jobs first.
        let fleet = &cluster.fleet;
        for relay in fleet.apis.iter().chain(&fleet.workers).filter(|_| step.starts_with("relay")) {
            relay.signal("STOP")?;
        }
        let photo = pictures::jpeg(320, 240, number)?;
        let mut crashing = cluster.start_node(&["api"], &[fail_point(&format!("{step}=kill"))])?;
        upload_until_crash(&mut crashing, &photo, step, &ledger).await.context(step)?;
        for node in fleet.apis.iter().chain(&fleet.workers) {
            node.signal("CONT")?;
        }
        let task = upload_until_accepted(&client, &photo, step).await?;
        ledger.record(&task, &photo)?;
        // Otherwise the next node would publish these jobs and crash before its own upload.
        client.finished(&task).await?;
    }
    let report = cluster.audit()?.run(&ledger).await?.clean()?;
    assert_eq!(report.tasks, STEPS.len());
    Ok(())
}

/// Promise: the janitor deletes the bytes of an upload that crashed before it was complete and checked; a collection
/// of garbage takes those that were stored and not recorded. A recorded upload is processed, even if its client got no
/// answer.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_crashed_uploads_are_removed() -> Result<()> {
    let photo = pictures::jpeg(320, 240, 1)?;
    for (step, unfinished, stored, tasks) in [
        ("upload.received", 1, 0, 0),
        ("upload.checked", 1, 0, 0),
        ("upload.stored", 0, 1, 0),
        ("upload.recorded", 0, 1, 1),
        ("upload.accepted", 0, 1, 1),
    ] {
        let setup = test_server(FAST_RECOVERY)?;
        let (mut server, client) = setup.start(&[fail_point(&format!("{step}=kill"))])?;
        assert!(client.upload(photo.clone()).await.is_err());
        wait_until_killed(&mut server)?;
        let incoming = setup.data().join("blobs/incoming");
        assert_eq!(std::fs::read_dir(&incoming)?.count(), unfinished, "{step}");
        let blob = blob_file(&setup.data().join("blobs"), &photo);
        assert_eq!(usize::from(blob.exists()), stored, "{step}");
        make_old(&blob)?;
        let (_server, client) = setup.start(&[])?;
        collect_garbage(&client).await?;
        assert_eq!(usize::from(blob.exists()), tasks, "{step}");
        // The audit waits until nothing is staged.
        let report = setup.audit().run(&Ledger::default()).await?.clean().context(step)?;
        // The collection is a task, too.
        assert_eq!(report.tasks, tasks + 1, "after {step}");
    }
    Ok(())
}

/// Promise: the janitor keeps the bytes of an upload in progress, however long it takes.
#[tokio::test(flavor = "multi_thread")]
async fn janitor_keeps_bytes_of_slow_upload() -> Result<()> {
    let setup = test_server(FAST_RECOVERY)?;
    let (server, client) = setup.start(&[])?;
    let photo = pictures::jpeg(1600, 1200, 1)?;
    // Real time has to pass: the upload takes three times the grace time. Each piece is written immediately.
    let pieces: Vec<_> = photo.chunks(photo.len().div_ceil(12)).map(<[u8]>::to_vec).collect();
    let slow_body = stream::unfold(pieces.into_iter(), async |mut pieces| {
        tokio::time::sleep(Duration::from_millis(250)).await;
        Some((Ok::<_, std::io::Error>(pieces.next()?), pieces))
    });
    let answer = client.post_image(reqwest::Body::wrap_stream(slow_body), &[]).await?;
    let ledger = Ledger::default();
    ledger.record(&accepted(answer).await?, &photo)?;
    setup.audit().run(&ledger).await?.clean()?;
    drop(server);
    Ok(())
}

/// Promise: if a process is frozen between storing the bytes and recording them, and a collection of garbage takes them
/// meanwhile, the upload stores them again before its 202.
#[tokio::test(flavor = "multi_thread")]
async fn upload_frozen_past_grace_time_keeps_its_bytes() -> Result<()> {
    let cluster = test_cluster(1, 1, FAST_RECOVERY).await?;
    let mut frozen = cluster.start_node(&["api"], &[fail_point("upload.stored=stop")])?;
    let client = Client::new(frozen.url())?;
    let photo = pictures::jpeg(320, 240, 1)?;
    let upload = tokio::spawn({
        let (client, photo) = (client.clone(), photo.clone());
        async move { client.post_image(photo, &[("Idempotency-Key", "slept")]).await }
    });
    super::wait_until_stopped(&mut frozen).await?;
    let blob = blob_file(&cluster.fleet.s3.bucket_folder(), &photo);
    make_old(&blob)?;
    collect_garbage(&cluster.client()?).await?;
    assert!(!blob.exists());
    frozen.signal("CONT")?;
    let ledger = Ledger::default();
    ledger.record(&accepted(upload.await??).await?, &photo)?;
    let report = cluster.audit()?.run(&ledger).await?.clean()?;
    assert_eq!(report.tasks, 2, "the upload and the collection");
    Ok(())
}

fn blob_file(blobs: &Path, photo: &[u8]) -> PathBuf {
    let hash = safelight_domain::ContentHash::of(photo).to_string();
    blobs.join("blobs").join(&hash[..2]).join(hash)
}

/// Makes a file old enough to be garbage, if it exists.
fn make_old(file: &Path) -> Result<()> {
    let two_hours_ago = SystemTime::now() - Duration::from_hours(2);
    if file.exists() {
        std::fs::File::options().append(true).open(file)?.set_modified(two_hours_ago)?;
    }
    Ok(())
}

async fn collect_garbage(client: &Client) -> Result<()> {
    let collection = client.start_backfill(&json!({ "kind": "gc", "force": true })).await?;
    let done = client.finished(&collection).await?;
    anyhow::ensure!(done["status"] == "succeeded", "{done:#}");
    Ok(())
}
