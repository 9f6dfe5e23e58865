//! Machines whose clocks are an hour off.

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

use super::{armed, eventually, stops, test_cluster, upload_all};

/// The image of an upload that died two hours ago. Its name comes last in every list.
const DEAD: &str = "ffffffff-ffff-7fff-bfff-ffffffffffff";

/// The library of Debian's package `faketime`.
fn faketime() -> Result<String> {
    let folders = fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path().join("faketime"));
    let found = folders.map(|folder| folder.join("libfaketimeMT.so.1")).find(|path| path.exists());
    let found = found.context("no libfaketimeMT.so.1; hint: scripts/setup.sh test")?;
    Ok(found.to_string_lossy().into_owned())
}

/// Promise: where processes must agree on a time it is the database's or the blob store's, so a
/// worker whose clock is an hour ahead or behind takes no lease early and no bytes of an upload in
/// progress.
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
    // A shared directory: S3 itself refuses clients whose clocks are wrong.
    let shared = tempfile::TempDir::new()?;
    let blobs = format!("file://{}", shared.path().display());
    let env = [("SAFELIGHT_BACKOFF_BASE_MS", "20"), ("SAFELIGHT_BLOB_URL", &blobs)];
    let cluster = test_cluster(1, 0, &env).await?;
    let audit = || anyhow::Ok(Audit { blobs: shared.path().to_owned(), ..cluster.audit()? });
    // An upload that is just between its bytes and its record.
    let mut frozen = cluster.start_node(&["api"], &[armed("upload.staged=stop")])?;
    let photo = pictures::jpeg(320, 240, 1)?;
    let (client, body) = (Client::new(frozen.url())?, photo.clone());
    let upload = tokio::spawn(async move { client.post_image(body, &[]).await });
    stops(&mut frozen).await?;
    // And one that died long ago, by whose removal it shows that a sweep is over.
    let dead = shared.path().join("incoming").join(DEAD);
    let two_hours_ago = SystemTime::now() - Duration::from_hours(2);
    File::create(&dead)?.set_modified(two_hours_ago)?;

    let ahead = cluster.start_node(&["worker"], &at("+1h"))?;
    eventually("the one ahead has swept", async || Ok(!dead.exists())).await?;
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
    // The preloaded library did its work: their logs carry times that nobody else has.
    let hour =
        |time: SystemTime| chrono::DateTime::<chrono::Utc>::from(time).format("T%H:").to_string();
    let now = SystemTime::now();
    for worker in [&ahead, &behind] {
        let log = worker.output();
        let stamped = log.lines().any(|line| line.contains(" INFO "));
        assert!(stamped && !log.contains(&hour(now)), "its clock is right:\n{log}");
    }
    Ok(())
}
