//! Api processes that die at each step between the last byte of an upload and its published jobs.

use anyhow::{Context, Result};
use futures::stream;
use reqwest::StatusCode;
use safelight_testing::{
    audit::Ledger,
    client::{Client, TestClient as _, accepted},
    pictures,
    server::Server,
};

use super::{
    FAST_RECOVERY, armed, dies, eventually, test_cluster, test_server, upload_until_accepted,
};

/// The steps, in order.
const STEPS: [&str; 5] =
    ["upload.received", "upload.staged", "upload.accepted", "relay.taken", "relay.confirmed"];

/// Uploads to a server that dies of it; notes the upload if its 202 arrived.
async fn upload_to_death(
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
    dies(server)
}

/// Promise: an upload that was answered is kept, and one that was not can be sent again under its
/// key, whatever step the process died at; there is one image in the end, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_while_accepting_keeps_an_upload_once() -> Result<()> {
    let photo = pictures::jpeg(320, 240, 1)?;
    for step in STEPS {
        let (site, ledger) = (test_server(FAST_RECOVERY)?, Ledger::default());
        let (mut server, _) = site.start(&[armed(&format!("{step}=kill"))])?;
        upload_to_death(&mut server, &photo, "once", &ledger).await?;
        let (_server, client) = site.start(&[])?;
        ledger.record(&upload_until_accepted(&client, &photo, "once").await?, &photo)?;
        let report = site.audit().run(&ledger).await?.clean().context(step)?;
        assert_eq!(report.tasks, 1, "after {step}");
        let tasks: Vec<_> = ledger.uploads().into_iter().map(|entry| entry.task).collect();
        assert!(tasks.iter().all(|task| *task == tasks[0]), "{step}: {tasks:?}");
    }
    Ok(())
}

/// The same promise on a fleet: one api node dies, and the client turns to the other.
#[tokio::test(flavor = "multi_thread")]
async fn an_api_node_that_dies_while_accepting_leaves_the_rest_to_the_others() -> Result<()> {
    let cluster = test_cluster(1, 1, FAST_RECOVERY).await?;
    let (ledger, client) = (Ledger::default(), cluster.client()?);
    for (number, step) in (1..).zip(STEPS) {
        // The other nodes' relays would be quicker than the doomed one.
        let paused = &cluster.fleet;
        for relay in paused.apis.iter().chain(&paused.workers).filter(|_| step.starts_with("relay"))
        {
            relay.signal("STOP")?;
        }
        let photo = pictures::jpeg(320, 240, number)?;
        let mut doomed = cluster.start_node(&["api"], &[armed(&format!("{step}=kill"))])?;
        upload_to_death(&mut doomed, &photo, step, &ledger).await.context(step)?;
        for node in paused.apis.iter().chain(&paused.workers) {
            node.signal("CONT")?;
        }
        let task = upload_until_accepted(&client, &photo, step).await?;
        ledger.record(&task, &photo)?;
        // Or the next doomed node would find its work before its own upload, and die too early.
        client.finished(&task).await?;
    }
    let report = cluster.audit()?.run(&ledger).await?.clean()?;
    assert_eq!(report.tasks, STEPS.len());
    Ok(())
}

/// Promise: bytes of an upload that died before it was recorded are collected; one that was
/// recorded goes on, though nobody knows of it.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_dead_uploads_are_collected() -> Result<()> {
    let photo = pictures::jpeg(320, 240, 1)?;
    for (step, tasks) in [("upload.received", 0), ("upload.staged", 0), ("upload.accepted", 1)] {
        let site = test_server(FAST_RECOVERY)?;
        let (mut server, client) = site.start(&[armed(&format!("{step}=kill"))])?;
        assert!(client.upload(photo.clone()).await.is_err());
        dies(&mut server)?;
        let incoming = site.data().join("blobs/incoming");
        assert_eq!(std::fs::read_dir(&incoming)?.count(), 1, "{step}");
        let _server = site.start(&[])?;
        // The audit waits until nothing is staged.
        let report = site.audit().run(&Ledger::default()).await?.clean().context(step)?;
        assert_eq!(report.tasks, tasks, "after {step}");
    }
    Ok(())
}

/// Promise: bytes of an upload in progress are not collected, however long it takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_upload_is_not_taken_for_a_dead_one() -> Result<()> {
    let site = test_server(FAST_RECOVERY)?;
    let (server, client) = site.start(&[])?;
    let photo = pictures::jpeg(1600, 1200, 1)?;
    // Three times the grace time, in pieces that are each written at once.
    let pieces: Vec<_> = photo.chunks(photo.len().div_ceil(12)).map(<[u8]>::to_vec).collect();
    let slowly = stream::unfold(pieces.into_iter(), async |mut pieces| {
        tokio::time::sleep(std::time::Duration::from_millis(250)).await;
        Some((Ok::<_, std::io::Error>(pieces.next()?), pieces))
    });
    let answer = client.post_image(reqwest::Body::wrap_stream(slowly), &[]).await?;
    let ledger = Ledger::default();
    ledger.record(&accepted(answer).await?, &photo)?;
    site.audit().run(&ledger).await?.clean()?;
    drop(server);
    Ok(())
}

/// Promise: an upload whose process was frozen for longer than the grace time, so that its bytes
/// were collected, is not answered with 202.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_frozen_past_its_grace_time_is_rejected() -> Result<()> {
    let cluster = test_cluster(1, 1, FAST_RECOVERY).await?;
    let mut frozen = cluster.start_node(&["api"], &[armed("upload.staged=stop")])?;
    let client = Client::new(frozen.url())?;
    let photo = pictures::jpeg(320, 240, 1)?;
    let upload = tokio::spawn({
        let (client, photo) = (client.clone(), photo.clone());
        async move { client.post_image(photo, &[("Idempotency-Key", "slept")]).await }
    });
    super::stops(&mut frozen).await?;
    let incoming = cluster.fleet.s3.bucket_folder().join("incoming");
    assert_eq!(std::fs::read_dir(&incoming)?.count(), 1);
    eventually("its bytes are collected", async || Ok(std::fs::read_dir(&incoming)?.count() == 0))
        .await?;
    frozen.signal("CONT")?;
    let answer = upload.await??;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text().await?);

    let ledger = Ledger::default();
    ledger.record(&upload_until_accepted(&client, &photo, "slept").await?, &photo)?;
    let report = cluster.audit()?.run(&ledger).await?.clean()?;
    assert_eq!(report.tasks, 1);
    Ok(())
}
