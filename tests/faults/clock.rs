//! Machines whose clocks are wrong by an hour.

use std::{
    fs::{self, File},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use safelight_testing::{
    audit::{Audit, Ledger},
    client::{Client, accepted},
    pictures,
};

use super::{eventually, fail_point, test_cluster, upload_all, wait_until_stopped};

/// The image of an upload that crashed two hours ago. It sorts last in every list.
const CRASHED: &str = "ffffffff-ffff-7fff-bfff-ffffffffffff";

/// The library of Debian's package `faketime`.
fn faketime() -> Result<String> {
    let folders = fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path().join("faketime"));
    let found = folders.map(|folder| folder.join("libfaketimeMT.so.1")).find(|path| path.exists());
    let found = found.context("no libfaketimeMT.so.1; hint: scripts/setup.sh test")?;
    Ok(found.to_string_lossy().into_owned())
}

/// Promise: where processes must agree on the time, they use the clock of the database or of the blob store.
/// So a worker whose clock is an hour ahead or behind takes over no lease early and deletes no bytes of an
/// upload in progress.
#[tokio::test(flavor = "multi_thread")]
async fn workers_with_wrong_clocks_break_nothing() -> Result<()> {
    let library = faketime()?;
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
    let env = [("SAFELIGHT_BACKOFF_BASE_MS", "20"), ("SAFELIGHT_BLOB_URL", &blobs)];
    let cluster = test_cluster(1, 0, &env).await?;
    let audit = || anyhow::Ok(Audit { blobs: shared.path().to_owned(), ..cluster.audit()? });
    // This upload is frozen between storing its bytes and recording it.
    let mut frozen = cluster.start_node(&["api"], &[fail_point("upload.staged=stop")])?;
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
