//! Machines whose clocks are wrong by an hour, or are set back.

use std::{
    fs::File,
    time::{Duration, SystemTime},
};

use anyhow::Result;
use safelight_testing::{
    audit::{Audit, Ledger},
    client::{Client, accepted},
    faketime::{self, FakeClock},
    fleet::Engines,
    pictures,
    postgres::Postgres,
    rabbitmq::RabbitMq,
};
use tokio::task::block_in_place;

use super::{
    LIMIT, TestCluster, binary, eventually, fail_point, test_cluster, test_server, upload_all,
    wait_until_stopped,
};

/// The image of an upload that crashed two hours ago. It sorts last in every list.
const CRASHED: &str = "ffffffff-ffff-7fff-bfff-ffffffffffff";

/// How long work may take whose clock was set back. Decoding on a busy machine takes most of it.
const SOON: Duration = Duration::from_mins(1);

/// What a process logs that has seen its database's clock set back.
const SET_BACK: &str = "the database's clock was set back";

/// Promise: where processes must agree on the time, they use the clock of the database or of the blob store.
/// So a worker whose clock is an hour ahead or behind takes over no lease early and deletes no bytes of an
/// upload in progress.
#[tokio::test(flavor = "multi_thread")]
async fn workers_with_wrong_clocks_break_nothing() -> Result<()> {
    let library = faketime::library()?;
    let at = |offset: &'static str| {
        [
            ("LD_PRELOAD", library.as_str()),
            ("FAKETIME", offset),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("NO_FAKE_STAT", "1"),
        ]
    };
    // A shared directory, because S3 rejects clients whose clocks are wrong.
    let shared = tempfile::TempDir::new()?;
    let blobs = format!("file://{}", shared.path().display());
    let env = [
        ("SAFELIGHT_BACKOFF_BASE_MS", "20"),
        ("SAFELIGHT_BLOB_URL", &blobs),
        // The frozen upload is newer than the database.
        ("SAFELIGHT_RECOVERY_GRACE_MS", "0"),
    ];
    let cluster = test_cluster(1, 0, &env).await?;
    let audit = || anyhow::Ok(Audit { blobs: shared.path().to_owned(), ..cluster.audit()? });
    // This upload is frozen between storing its bytes and recording it.
    let mut frozen = cluster.start_node(&["api"], &[fail_point("upload.stored=stop")])?;
    let photo = pictures::jpeg(320, 240, 1)?;
    let (client, body) = (Client::new(frozen.url())?, photo.clone());
    let upload = tokio::spawn(async move { client.post_image(body, &[]).await });
    wait_until_stopped(&mut frozen).await?;
    // The removal of this crashed upload shows that the janitor has completed a round.
    let crashed = shared.path().join("incoming").join(CRASHED);
    let two_hours_ago = SystemTime::now() - Duration::from_hours(2);
    File::create(&crashed)?.set_modified(two_hours_ago)?;

    let ahead = cluster.start_node(&["worker"], &at("+1h"))?;
    eventually("the janitor of the worker ahead has run", async || Ok(!crashed.exists())).await?;
    frozen.signal("CONT")?;
    let ledger = Ledger::default();
    ledger.record(&accepted(upload.await??).await?, &photo)?;
    audit()?.run(&ledger).await?.clean()?;

    let behind = cluster.start_node(&["worker"], &at("-1h"))?;
    let bodies: Vec<_> =
        (0..8).map(|number| pictures::with_comment(&photo, &number.to_string())).collect();
    let late = upload_all(&cluster.client()?, &bodies).await?;
    let report = audit()?.run(&late).await?.clean()?;
    assert_eq!((report.tasks, report.repeated()), (9, 0));
    // The preloaded library works: the hours in the workers' logs are wrong.
    let hour =
        |time: SystemTime| chrono::DateTime::<chrono::Utc>::from(time).format("T%H:").to_string();
    let now = SystemTime::now();
    for worker in [&ahead, &behind] {
        let log = worker.output();
        let has_lines = log.lines().any(|line| line.contains(" INFO "));
        assert!(has_lines && !log.contains(&hour(now)), "the worker's clock is right:\n{log}");
    }
    Ok(())
}

fn different_pictures(count: u32) -> Result<Vec<Vec<u8>>> {
    (0..count).map(|seed| pictures::jpeg(160, 120, seed.into())).collect()
}

/// Promise: what a process has accepted while its clock was a day ahead does not wait for a day when the clock is
/// right again. Some of it runs, some is published, some is not.
#[tokio::test(flavor = "multi_thread")]
async fn work_accepted_on_a_clock_ahead_ends_once_it_is_right() -> Result<()> {
    let setup = test_server(&[])?;
    let library = faketime::library()?;
    let ahead = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME", "+1d"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("NO_FAKE_STAT", "1"),
        fail_point("worker.claimed=99*hang"),
    ];
    let (mut server, client) = setup.start(&ahead)?;
    let ledger = upload_all(&client, &different_pictures(8)?).await?;
    block_in_place(|| server.wait_for_output("fail point worker.claimed", LIMIT))?;
    server.kill()?;

    let (mut server, client) = setup.start(&[])?;
    block_in_place(|| server.wait_for_output(SET_BACK, LIMIT))?;
    let body = pictures::jpeg(160, 120, 99)?;
    ledger.record(&client.upload(body.clone()).await?, &body)?;
    let report = setup.audit().run_within(&ledger, SOON).await?.clean()?;
    assert_eq!(report.tasks, 9);
    Ok(())
}

/// Promise: the same when the clock is set back by an hour while jobs run and wait.
#[tokio::test(flavor = "multi_thread")]
async fn work_continues_when_the_clock_is_set_back() -> Result<()> {
    let setup = test_server(&[])?;
    let folder = tempfile::TempDir::new()?;
    let (clock, release) = (FakeClock::new(folder.path(), "+1h")?, folder.path().join("release"));
    let held = format!("worker.claimed=2*until {}", release.display());
    let env = clock.env()?;
    let mut env: Vec<_> = env.iter().map(|(key, value)| (*key, value.as_str())).collect();
    env.push(fail_point(&held));
    let (mut server, client) = setup.start(&env)?;
    let ledger = upload_all(&client, &different_pictures(8)?).await?;
    block_in_place(|| server.wait_for_output("fail point worker.claimed", LIMIT))?;

    clock.set("+0")?;
    block_in_place(|| server.wait_for_output(SET_BACK, LIMIT))?;
    File::create(&release)?;
    let report = setup.audit().run_within(&ledger, SOON).await?.clean()?;
    assert_eq!(report.tasks, 8);
    let metrics = String::from_utf8(client.bytes("/metrics").await?.to_vec())?;
    let counted = metrics.lines().any(|line| line == "safelight_clock_steps_total 1");
    assert!(counted, "{metrics}");
    Ok(())
}

/// Promise: the same for a fleet whose PostgreSQL comes back on a clock that is an hour behind.
#[tokio::test(flavor = "multi_thread")]
async fn work_continues_when_the_database_returns_on_a_clock_behind() -> Result<()> {
    let mut postgres = block_in_place(|| Postgres::start_with_clock("+1h"))?;
    block_in_place(|| postgres.create_database("safelight"))?;
    let queue_url = block_in_place(|| RabbitMq::shared()?.fresh_vhost())?;
    let engines = Engines { database_url: postgres.url("safelight"), queue_url };
    let folder = tempfile::TempDir::new()?;
    let release = folder.path().join("release");
    let held = format!("worker.claimed=2*until {}", release.display());
    let mut cluster = TestCluster::start_on(engines, binary(), 1, 1, &[fail_point(&held)])?;
    let ledger = upload_all(&cluster.client()?, &different_pictures(8)?).await?;
    let worker = &mut cluster.fleet.workers[0];
    block_in_place(|| worker.wait_for_output("fail point worker.claimed", LIMIT))?;

    block_in_place(|| {
        postgres.stop()?;
        postgres.set_clock("+0")?;
        postgres.start_again()
    })?;
    File::create(&release)?;
    block_in_place(|| worker.wait_for_output(SET_BACK, LIMIT))?;
    let report = cluster.audit()?.run_within(&ledger, SOON).await?.clean()?;
    assert_eq!(report.tasks, 8);
    Ok(())
}
