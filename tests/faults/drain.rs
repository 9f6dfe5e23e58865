//! Drains of processes, and signals that interrupt them.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use futures::{StreamExt, channel::mpsc};
use reqwest::StatusCode;
use safelight_testing::{
    audit::Ledger,
    client::{Client, accepted},
    pictures,
    server::Server,
};
use tempfile::TempDir;
use tokio::{net::TcpStream, task::block_in_place};

use super::{
    FAST_RECOVERY, LIMIT, TestServer, eventually, fail_point, test_cluster, test_server, upload_all,
};

/// A job that does not end before its process does.
const HANGING_JOB: (&str, &str) = ("SAFELIGHT_FAIL_POINTS", "thumbnail.rendered=hang");

/// A drain that gives up after a short time.
const SHORT_DRAIN: (&str, &str) = ("SAFELIGHT_DRAIN_TIMEOUT_MS", "300");

/// What the process logs when the job hangs.
const HANG_MESSAGE: &str = "fail point thumbnail.rendered";

/// Waits until the process ends.
fn exit_code(server: &mut Server) -> Result<Option<i32>> {
    Ok(block_in_place(|| server.wait(LIMIT))?.code())
}

/// Promise: SIGTERM and Ctrl-C end a process with exit code 0 when the drain timeout is over. Its running job
/// continues in another process, and the interrupted attempt does not count.
#[tokio::test(flavor = "multi_thread")]
async fn drain_interrupts_job_without_counting_attempt() -> Result<()> {
    let photo = [pictures::jpeg(320, 240, 1)?];
    let setup = test_server(FAST_RECOVERY)?;
    let (mut server, client) = setup.start(&[HANGING_JOB, SHORT_DRAIN])?;
    let ledger = upload_all(&client, &photo).await?;
    block_in_place(|| server.wait_for_output(HANG_MESSAGE, LIMIT))?;
    server.signal("TERM")?;
    assert_eq!(exit_code(&mut server)?, Some(0), "{}", server.output());
    let _server = setup.start(&[])?;
    let report = setup.audit().run(&ledger).await?.clean()?;
    assert_eq!(report.repeated(), 0);

    let cluster = test_cluster(1, 0, FAST_RECOVERY).await?;
    let mut worker = cluster.start_node(&["worker"], &[HANGING_JOB, SHORT_DRAIN])?;
    let ledger = upload_all(&cluster.client()?, &photo).await?;
    block_in_place(|| worker.wait_for_output(HANG_MESSAGE, LIMIT))?;
    worker.signal("INT")?;
    assert_eq!(exit_code(&mut worker)?, Some(0), "{}", worker.output());
    let _worker = cluster.start_node(&["worker"], &[])?;
    let report = cluster.audit()?.run(&ledger).await?.clean()?;
    assert_eq!(report.repeated(), 0);
    Ok(())
}

/// Promise: a node publishes the outbox rows that it has taken before it ends. Other nodes would not take
/// these rows until the hold expires.
#[tokio::test(flavor = "multi_thread")]
async fn drain_publishes_jobs_taken_by_relay() -> Result<()> {
    let folder = TempDir::new()?;
    let barrier = folder.path().join("go-on");
    let point = format!("relay.taken=until {}", barrier.display());
    let mut cluster = test_cluster(1, 0, &[FAST_RECOVERY, &[fail_point(&point)]].concat()).await?;
    let ledger = upload_all(&cluster.client()?, &[pictures::jpeg(320, 240, 1)?]).await?;
    let api = &mut cluster.fleet.apis[0];
    block_in_place(|| api.wait_for_output("fail point relay.taken", LIMIT))?;
    api.signal("TERM")?;
    block_in_place(|| api.wait_for_output("draining", LIMIT))?;
    fs::write(&barrier, "")?;
    assert_eq!(exit_code(api)?, Some(0), "{}", api.output());
    let audit = cluster.audit()?;
    assert_eq!(audit.database.published().await?, 2, "both jobs have their messages");
    let _worker = cluster.start_node(&["worker"], &[])?;
    audit.run(&ledger).await?.clean()?;
    Ok(())
}

/// Promise: a second signal ends a process immediately, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn second_signal_ends_process_and_loses_nothing() -> Result<()> {
    let setup = test_server(FAST_RECOVERY)?;
    let (mut server, client) = setup.start(&[HANGING_JOB])?;
    let ledger = upload_all(&client, &[pictures::jpeg(320, 240, 1)?]).await?;
    block_in_place(|| server.wait_for_output(HANG_MESSAGE, LIMIT))?;
    server.signal("TERM")?;
    block_in_place(|| server.wait_for_output("draining", LIMIT))?;
    server.signal("INT")?;
    assert_eq!(exit_code(&mut server)?, Some(130), "{}", server.output());
    let _server = setup.start(&[])?;
    setup.audit().run(&ledger).await?.clean()?;
    Ok(())
}

/// Promise: a draining process completes uploads in flight and accepts no new connections.
#[tokio::test(flavor = "multi_thread")]
async fn drain_completes_upload_in_flight() -> Result<()> {
    let setup = test_server(FAST_RECOVERY)?;
    let (mut server, client) = setup.start(&[])?;
    let photo = pictures::jpeg(640, 480, 1)?;
    let (pieces, body) = mpsc::unbounded::<Vec<u8>>();
    let upload = start_upload(client, body);
    let (first, rest) = photo.split_at(photo.len() / 2);
    pieces.unbounded_send(first.to_vec())?;
    wait_until_bytes_are_staged(&setup).await?;

    server.signal("TERM")?;
    wait_until_connections_fail(&server).await?;
    pieces.unbounded_send(rest.to_vec())?;
    drop(pieces);
    let answer = upload.await??;
    let ledger = Ledger::default();
    ledger.record(&accepted(answer).await?, &photo)?;
    assert_eq!(exit_code(&mut server)?, Some(0), "{}", server.output());
    let _server = setup.start(&[])?;
    setup.audit().run(&ledger).await?.clean()?;
    Ok(())
}

/// Promise: an upload that does not complete within the drain timeout is not accepted and leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn upload_that_outlasts_drain_leaves_no_bytes() -> Result<()> {
    let setup = test_server(FAST_RECOVERY)?;
    let (mut server, client) = setup.start(&[SHORT_DRAIN])?;
    let (pieces, body) = mpsc::unbounded::<Vec<u8>>();
    let upload = start_upload(client, body);
    pieces.unbounded_send(pictures::jpeg(640, 480, 1)?)?;
    wait_until_bytes_are_staged(&setup).await?;
    server.signal("TERM")?;
    assert_eq!(exit_code(&mut server)?, Some(0), "{}", server.output());
    let result = upload.await?;
    assert!(!result.is_ok_and(|answer| answer.status() == StatusCode::ACCEPTED));
    let _server = setup.start(&[])?;
    let report = setup.audit().run(&Ledger::default()).await?.clean()?;
    assert_eq!(report.tasks, 0);
    Ok(())
}

fn start_upload(
    client: Client,
    body: mpsc::UnboundedReceiver<Vec<u8>>,
) -> tokio::task::JoinHandle<Result<reqwest::Response>> {
    let body = reqwest::Body::wrap_stream(body.map(Ok::<_, std::io::Error>));
    tokio::spawn(async move { Ok(client.post_image(body, &[]).await?) })
}

async fn wait_until_bytes_are_staged(setup: &TestServer) -> Result<()> {
    let incoming = setup.data().join("blobs/incoming");
    eventually("bytes arrive", async || Ok(std::fs::read_dir(&incoming)?.count() > 0)).await
}

async fn wait_until_connections_fail(server: &Server) -> Result<()> {
    let address = server.url().strip_prefix("http://").context("an address")?.to_owned();
    eventually("connections are rejected", async || Ok(TcpStream::connect(&address).await.is_err()))
        .await
}

/// Promise: a drain ends even if an attempt cannot be interrupted. When the lease expires, another process
/// takes over the job.
#[tokio::test(flavor = "multi_thread")]
async fn drain_ends_despite_uninterruptible_attempt() -> Result<()> {
    let setup = test_server(FAST_RECOVERY)?;
    let (mut server, client) = setup.start(&[fail_point("worker.claimed=hang"), SHORT_DRAIN])?;
    let ledger = upload_all(&client, &[pictures::jpeg(320, 240, 1)?]).await?;
    block_in_place(|| server.wait_for_output("fail point worker.claimed", LIMIT))?;
    server.signal("TERM")?;
    let limit = Duration::from_secs(20);
    assert_eq!(block_in_place(|| server.wait(limit))?.code(), Some(0), "{}", server.output());
    let _server = setup.start(&[])?;
    let report = setup.audit().run(&ledger).await?.clean()?;
    assert_eq!(report.repeated(), 1);
    Ok(())
}
