//! Network faults between the nodes and their engines.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use safelight_testing::{
    audit::Database,
    chaos::{Chaos, Link},
    client::TestClient as _,
    fleet::{Engines, Fleet, Plan},
    load::Load,
    pictures,
    s3::S3,
};
use tokio::task::block_in_place;

use super::{SHORT_GRACE, TestCluster, binary};
use safelight_testing::server::owned;

/// How long each fault lasts. A fixed time, because a silent link gives no signal to wait for.
const FAULT: Duration = Duration::from_secs(3);

fn port_of(url: &str) -> Result<u16> {
    let rest = url.rsplit(':').next().context("a port")?;
    Ok(rest.split('/').next().context("a port")?.parse()?)
}

/// RabbitMQ's connection counts as lost after two intervals without a heartbeat.
const HEARTBEAT: &str = "?heartbeat=2";

/// After this, every node has replaced its frozen connections: those to PostgreSQL when a call has taken 15 s, those
/// to RabbitMQ when heartbeats are missing.
const REPLACED: Duration = Duration::from_secs(30);

/// The same URL through a proxy.
fn through(url: &str, proxy: &Chaos) -> Result<String> {
    Ok(url.replace(&format!(":{}", port_of(url)?), &format!(":{}", proxy.port())))
}

/// Promise: when connections to any engine are reset or silent, nothing is lost and nothing happens twice.
/// Work continues without intervention once the link is back.
#[tokio::test(flavor = "multi_thread")]
async fn cut_and_frozen_links_lose_nothing() -> Result<()> {
    let direct = Engines::shared().await?;
    let s3 = block_in_place(|| S3::start("images"))?;
    let proxy = |url: &str| Chaos::start(port_of(url)?);
    let proxies = [
        ("RabbitMQ", proxy(&direct.queue_url)?),
        ("PostgreSQL", proxy(&direct.database_url)?),
        ("S3", proxy(&s3.endpoint())?),
    ];
    let engines = Engines {
        queue_url: through(&direct.queue_url, &proxies[0].1)?,
        database_url: through(&direct.database_url, &proxies[1].1)?,
    };
    let endpoint = through(&s3.endpoint(), &proxies[2].1)?;
    let env = owned(&[("AWS_ENDPOINT", &endpoint), ("SAFELIGHT_LEASE_MS", "5000"), SHORT_GRACE]);
    let plan = Plan { apis: 1, workers: 2, env };
    let fleet = block_in_place(|| Fleet::start_with_s3(s3, binary(), &engines, &plan))?;
    let cluster = TestCluster { engines: direct, fleet };
    let database = Database::Postgres(cluster.engines.database_url.clone());

    let load = Load::start(3, &[cluster.fleet.apis[0].url()])?;
    load.wait_for_more(10).await?;
    let mut recoveries = Vec::new();
    for (engine, proxy) in &proxies {
        for fault in [Link::Cut, Link::BlackHole] {
            proxy.set(fault);
            tokio::time::sleep(FAULT).await;
            proxy.set(Link::Up);
            let back = Instant::now();
            let took = database
                .wait_for_progress()
                .await
                .with_context(|| format!("{engine} {fault:?}"))?;
            load.wait_for_more(5).await.with_context(|| format!("{engine} {fault:?}"))?;
            eprintln!(
                "{engine} {fault:?}: work continues after {took:?}, uploads after {:?}",
                back.elapsed()
            );
            recoveries.push(took);
        }
    }
    let results = load.stop().await?;
    recoveries.sort_unstable();
    eprintln!(
        "work continues after {:?} (p50), {:?} (max); refusals: {:?}",
        recoveries[recoveries.len() / 2],
        recoveries[recoveries.len() - 1],
        results.rejections
    );
    let report = cluster.audit()?.run(&results.ledger).await?.clean()?;
    assert_eq!(report.tasks, report.accepted);
    Ok(())
}

/// Promise: when connections to RabbitMQ and PostgreSQL freeze for good, nodes notice it and replace them. So nothing
/// waits for a network that has forgotten a connection.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_freeze_for_good_are_replaced() -> Result<()> {
    let direct = Engines::shared().await?;
    let rabbitmq = Chaos::start(port_of(&direct.queue_url)?)?;
    let postgres = Chaos::start(port_of(&direct.database_url)?)?;
    let engines = Engines {
        queue_url: format!("{}{HEARTBEAT}", through(&direct.queue_url, &rabbitmq)?),
        database_url: through(&direct.database_url, &postgres)?,
    };
    let env = &[("SAFELIGHT_LEASE_MS", "5000"), SHORT_GRACE];
    let fleet = TestCluster::start_on(engines, binary(), 1, 1, env)?.fleet;
    let cluster = TestCluster { engines: direct, fleet };
    let database = cluster.database();
    let load = Load::start(3, &[cluster.fleet.apis[0].url()])?;
    load.wait_for_more(10).await?;
    for (engine, proxy) in [("RabbitMQ", &rabbitmq), ("PostgreSQL", &postgres)] {
        // All connections that exist now stay frozen; new ones work.
        proxy.set(Link::Frozen);
        proxy.set(Link::Up);
        let frozen = Instant::now();
        load.wait_for_more(10).await.with_context(|| engine.to_owned())?;
        database.wait_for_progress().await.with_context(|| engine.to_owned())?;
        let took = frozen.elapsed();
        eprintln!("{engine}: uploads and work continue after {took:?}");
        ensure!(took < REPLACED, "{engine}: frozen connections were used for {took:?}");
    }
    let results = load.stop().await?;
    cluster.audit()?.run(&results.ledger).await?.clean()?;
    Ok(())
}

/// Promise: reads from an object store whose connections freeze for good are given up and tried again.
#[tokio::test(flavor = "multi_thread")]
async fn reads_on_frozen_connections_are_tried_again() -> Result<()> {
    let s3 = block_in_place(|| S3::start("images"))?;
    let proxy = Chaos::start(port_of(&s3.endpoint())?)?;
    let (url, endpoint, s3_env) = (s3.url(), through(&s3.endpoint(), &proxy)?, s3.env());
    let mut env: Vec<(&str, &str)> =
        s3_env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    env.extend([("SAFELIGHT_BLOB_URL", url.as_str()), ("AWS_ENDPOINT", endpoint.as_str())]);
    let setup = super::test_server(&env)?;
    let (_server, client) = setup.start(&[])?;
    let photo = pictures::jpeg(320, 240, 1)?;
    let task = client.finished(&client.upload(photo.clone()).await?).await?;
    let image = task["image"]["url"].as_str().context("a URL")?;
    proxy.set(Link::Frozen);
    proxy.set(Link::Up);
    let frozen = Instant::now();
    let bytes = client.with_tries(u32::MAX).bytes(image).await?;
    assert_eq!(bytes, photo);
    ensure!(frozen.elapsed() < REPLACED, "{:?}", frozen.elapsed());
    Ok(())
}
