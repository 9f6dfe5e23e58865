//! Schema, locks, restarts and outages.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures::future::try_join_all;
use safelight_config::DatabaseUrl;
use safelight_store::StoreError;
use safelight_testing::{postgres::Postgres, process::free_port};

use super::{
    fixture::{Fixture, HOUR, upload, write_notice, written},
    promises,
};

promises!(
    an_empty_database_is_older,
    a_schema_of_a_newer_release_is_refused,
    many_may_migrate_at_once,
    the_embedded_queues_lock_is_exclusive,
    everything_survives_reopening,
);

async fn an_empty_database_is_older(fixture: Fixture) -> Result<()> {
    fixture.check_schema().await?;
    let empty = safelight_testing::open::store(&fixture.empty_like().await?, 2).await?;
    empty.ping().await?;
    let error = empty.check_schema().await.expect_err("no schema");
    assert!(matches!(error, StoreError::SchemaOlder { found: 0, needed: 1.. }), "{error}");
    Ok(())
}

async fn a_schema_of_a_newer_release_is_refused(store: Fixture) -> Result<()> {
    store
        .tamper(
            "update _sqlx_migrations set version = 9999
             where version = (select max(version) from _sqlx_migrations)",
        )
        .await?;
    for result in [store.check_schema().await, store.migrate().await] {
        let error = result.expect_err("a newer schema");
        assert!(matches!(error, StoreError::SchemaNewer { found: 9999, .. }), "{error}");
    }
    Ok(())
}

async fn many_may_migrate_at_once(fixture: Fixture) -> Result<()> {
    let url = fixture.empty_like().await?;
    let stores = try_join_all((0..6).map(|_| safelight_testing::open::store(&url, 2))).await?;
    try_join_all(stores.iter().map(|store| store.migrate())).await?;
    try_join_all(stores.iter().map(|store| store.check_schema())).await?;
    stores[0].accept(&upload()).await?;
    Ok(())
}

async fn the_embedded_queues_lock_is_exclusive(store: Fixture) -> Result<()> {
    let other = store.another().await?;
    assert!(store.lock_for_embedded_queue().await?);
    assert!(store.lock_for_embedded_queue().await?, "it has it");
    assert!(!other.lock_for_embedded_queue().await?);
    drop(store.store);
    // PostgreSQL gives it free when it notices that the connection has gone.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !other.lock_for_embedded_queue().await? {
        if Instant::now() > deadline {
            bail!("the lock outlived its store");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn everything_survives_reopening(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    store.publish_all().await?;
    let job = store.claimed(&write_notice(&upload)).await?;
    let before = store.task_of(&upload).await?;

    let store = store.reopened().await?;

    store.check_schema().await?;
    assert_eq!(store.task_of(&upload).await?, before);
    assert_eq!(store.renew(&[job.lease], HOUR).await?.held, [job.lease]);
    store.settled(&job, &written()).await
}

#[tokio::test]
async fn a_sqlite_file_that_cannot_be_is_unavailable_by_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("file");
    std::fs::write(&file, "not a folder")?;
    for path in [file.join("safelight.db"), folder.path().to_owned()] {
        let url = DatabaseUrl::Sqlite(path);
        let Err(error) = safelight_testing::open::store(&url, 2).await else {
            bail!("opened {url}")
        };
        assert!(error.is_unavailable(), "{error}");
        assert!(error.to_string().contains(folder.path().to_str().expect("text")), "{error}");
    }
    let Err(error) = safelight_testing::open::store(&DatabaseUrl::Sqlite(file), 2).await else {
        bail!("opened a text file")
    };
    assert!(matches!(error, StoreError::Database(_)), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_postgres_that_is_not_there_is_unavailable() -> Result<()> {
    let url: DatabaseUrl = format!("postgres://nobody@127.0.0.1:{}/none", free_port()?).parse()?;
    let Err(error) = safelight_testing::open::store(&url, 2).await else { bail!("connected") };
    assert!(error.is_unavailable(), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    Ok(())
}

/// The same store, through a crash of its database, without being made anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_crashed_is_unavailable_until_it_is_back() -> Result<()> {
    let mut server = tokio::task::spawn_blocking(Postgres::start).await??;
    let store = safelight_testing::open::store(&server.url("postgres").parse()?, 4).await?;
    store.migrate().await?;
    assert!(store.lock_for_embedded_queue().await?);
    let (before, during) = (upload(), upload());
    store.accept(&before).await?;

    server.crash()?;
    for _ in 0..2 {
        let error = store.accept(&during).await.expect_err("the server is down");
        assert!(error.is_unavailable(), "{error}");
    }
    let error = store.ping().await.expect_err("the server is down");
    assert!(error.is_unavailable(), "{error}");

    server.start_again()?;
    store.accept(&during).await?;
    for upload in [&before, &during] {
        assert!(store.task(upload.task).await?.is_some(), "lost");
    }
    assert!(store.lock_for_embedded_queue().await?);
    Ok(())
}

/// A server that keeps its connections and says nothing must not hold its callers for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_hangs_is_unavailable_in_bounded_time() -> Result<()> {
    let server = tokio::task::spawn_blocking(Postgres::start).await??;
    let store = safelight_testing::open::store(&server.url("postgres").parse()?, 4).await?;
    store.migrate().await?;

    server.freeze()?;
    let start = Instant::now();
    // The first has a connection in use, the second must get one.
    for _ in 0..2 {
        let error = store.ping().await.expect_err("the server hangs");
        assert!(error.is_unavailable(), "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());

    server.thaw()?;
    store.accept(&upload()).await?;
    Ok(())
}
