//! Processes that are asked to end.

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
    FAST_RECOVERY, LIMIT, TestServer, armed, eventually, test_cluster, test_server, upload_all,
};

/// A job that does not end before its process does.
const HANGING: (&str, &str) = ("SAFELIGHT_FAIL_POINTS", "thumbnail.rendered=hang");

/// A drain that gives up soon.
const SHORT: (&str, &str) = ("SAFELIGHT_DRAIN_TIMEOUT_MS", "300");

/// Where the job hangs, as the process says it.
const HANGS: &str = "fail point thumbnail.rendered";

fn ends(server: &mut Server) -> Result<Option<i32>> {
    Ok(block_in_place(|| server.wait(LIMIT))?.code())
}

/// Promise: SIGTERM and Ctrl-C end a process with 0 when its grace time is over; the job that it
/// had in hand goes on without an attempt having counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_a_drain_cuts_short_costs_no_attempt() -> Result<()> {
    let photo = [pictures::jpeg(320, 240, 1)?];
    let site = test_server(FAST_RECOVERY)?;
    let (mut server, client) = site.start(&[HANGING, SHORT])?;
    let ledger = upload_all(&client, &photo).await?;
    block_in_place(|| server.wait_for_output(HANGS, LIMIT))?;
    server.signal("TERM")?;
    assert_eq!(ends(&mut server)?, Some(0), "{}", server.output());
    let _server = site.start(&[])?;
    let report = site.audit().run(&ledger).await?.clean()?;
    assert_eq!(report.repeated(), 0);

    let cluster = test_cluster(1, 0, FAST_RECOVERY).await?;
    let mut worker = cluster.start_node(&["worker"], &[HANGING, SHORT])?;
    let ledger = upload_all(&cluster.client()?, &photo).await?;
    block_in_place(|| worker.wait_for_output(HANGS, LIMIT))?;
    worker.signal("INT")?;
    assert_eq!(ends(&mut worker)?, Some(0), "{}", worker.output());
    let _worker = cluster.start_node(&["worker"], &[])?;
    let report = cluster.audit()?.run(&ledger).await?.clean()?;
    assert_eq!(report.repeated(), 0);
    Ok(())
}

/// Promise: what a node has taken from the outbox when its drain begins is published before it ends. Others
/// would not see it until the hold is over.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_relay_has_taken_is_published_before_its_node_ends() -> Result<()> {
    let folder = TempDir::new()?;
    let go_on = folder.path().join("go-on");
    let point = format!("relay.taken=until {}", go_on.display());
    let mut cluster = test_cluster(1, 0, &[FAST_RECOVERY, &[armed(&point)]].concat()).await?;
    let ledger = upload_all(&cluster.client()?, &[pictures::jpeg(320, 240, 1)?]).await?;
    let api = &mut cluster.fleet.apis[0];
    block_in_place(|| api.wait_for_output("fail point relay.taken", LIMIT))?;
    api.signal("TERM")?;
    block_in_place(|| api.wait_for_output("draining", LIMIT))?;
    fs::write(&go_on, "")?;
    assert_eq!(ends(api)?, Some(0), "{}", api.output());
    let audit = cluster.audit()?;
    assert_eq!(audit.database.published().await?, 2, "both jobs have their messages");
    let _worker = cluster.start_node(&["worker"], &[])?;
    audit.run(&ledger).await?.clean()?;
    Ok(())
}

/// Promise: a second signal ends a process at once, and even that loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once_and_loses_nothing() -> Result<()> {
    let site = test_server(FAST_RECOVERY)?;
    let (mut server, client) = site.start(&[HANGING])?;
    let ledger = upload_all(&client, &[pictures::jpeg(320, 240, 1)?]).await?;
    block_in_place(|| server.wait_for_output(HANGS, LIMIT))?;
    server.signal("TERM")?;
    block_in_place(|| server.wait_for_output("draining", LIMIT))?;
    server.signal("INT")?;
    assert_eq!(ends(&mut server)?, Some(130), "{}", server.output());
    let _server = site.start(&[])?;
    site.audit().run(&ledger).await?.clean()?;
    Ok(())
}

/// Promise: an upload that is being received when the drain begins is received to its end; no new
/// one is taken.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_in_flight_is_received_to_its_end() -> Result<()> {
    let site = test_server(FAST_RECOVERY)?;
    let (mut server, client) = site.start(&[])?;
    let photo = pictures::jpeg(640, 480, 1)?;
    let (pieces, body) = mpsc::unbounded::<Vec<u8>>();
    let upload = begin_upload(client, body);
    let (first, rest) = photo.split_at(photo.len() / 2);
    pieces.unbounded_send(first.to_vec())?;
    something_is_staged(&site).await?;

    server.signal("TERM")?;
    refuses_connections(&server).await?;
    pieces.unbounded_send(rest.to_vec())?;
    drop(pieces);
    let answer = upload.await??;
    let ledger = Ledger::default();
    ledger.record(&accepted(answer).await?, &photo)?;
    assert_eq!(ends(&mut server)?, Some(0), "{}", server.output());
    let _server = site.start(&[])?;
    site.audit().run(&ledger).await?.clean()?;
    Ok(())
}

/// Promise: an upload that does not come to its end within the grace time is not accepted, and
/// leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_outlasts_the_drain_leaves_nothing() -> Result<()> {
    let site = test_server(FAST_RECOVERY)?;
    let (mut server, client) = site.start(&[SHORT])?;
    let (pieces, body) = mpsc::unbounded::<Vec<u8>>();
    let upload = begin_upload(client, body);
    pieces.unbounded_send(pictures::jpeg(640, 480, 1)?)?;
    something_is_staged(&site).await?;
    server.signal("TERM")?;
    assert_eq!(ends(&mut server)?, Some(0), "{}", server.output());
    let refused = upload.await?;
    assert!(!refused.is_ok_and(|answer| answer.status() == StatusCode::ACCEPTED));
    let _server = site.start(&[])?;
    let report = site.audit().run(&Ledger::default()).await?.clean()?;
    assert_eq!(report.tasks, 0);
    Ok(())
}

fn begin_upload(
    client: Client,
    body: mpsc::UnboundedReceiver<Vec<u8>>,
) -> tokio::task::JoinHandle<Result<reqwest::Response>> {
    let body = reqwest::Body::wrap_stream(body.map(Ok::<_, std::io::Error>));
    tokio::spawn(async move { Ok(client.post_image(body, &[]).await?) })
}

async fn something_is_staged(site: &TestServer) -> Result<()> {
    let incoming = site.data().join("blobs/incoming");
    eventually("bytes arrive", async || Ok(std::fs::read_dir(&incoming)?.count() > 0)).await
}

async fn refuses_connections(server: &Server) -> Result<()> {
    let address = server.url().strip_prefix("http://").context("an address")?.to_owned();
    eventually("no connection is taken", async || Ok(TcpStream::connect(&address).await.is_err()))
        .await
}

/// Promise: a drain also ends while a fail point holds an attempt that nobody can interrupt; the
/// lease gives the job to the next process.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_cannot_be_interrupted_does_not_hold_the_process() -> Result<()> {
    let site = test_server(FAST_RECOVERY)?;
    let (mut server, client) = site.start(&[armed("worker.claimed=hang"), SHORT])?;
    let ledger = upload_all(&client, &[pictures::jpeg(320, 240, 1)?]).await?;
    block_in_place(|| server.wait_for_output("fail point worker.claimed", LIMIT))?;
    server.signal("TERM")?;
    let limit = Duration::from_secs(20);
    assert_eq!(block_in_place(|| server.wait(limit))?.code(), Some(0), "{}", server.output());
    let _server = site.start(&[])?;
    let report = site.audit().run(&ledger).await?.clean()?;
    assert_eq!(report.repeated(), 1);
    Ok(())
}
