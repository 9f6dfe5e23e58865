//! Schema, locks, restarts and outages.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures::future::try_join_all;
use safelight_config::DatabaseUrl;
use safelight_store::StoreError;
use safelight_testing::{postgres::Postgres, process::free_port, wait::eventually};

use super::{
    promises,
    test_store::{HOUR, TestStore, upload, write_notice, write_succeeded},
};

promises!(
    empty_database_has_an_older_schema,
    schema_of_a_newer_release_is_rejected,
    concurrent_migrations_succeed,
    embedded_queue_lock_is_exclusive,
    tasks_and_leases_survive_reopening,
);

async fn empty_database_has_an_older_schema(fixture: TestStore) -> Result<()> {
    fixture.check_schema().await?;
    let empty = safelight_testing::open::store(&fixture.empty_database().await?, 2).await?;
    empty.ping().await?;
    let error = empty.check_schema().await.expect_err("no schema");
    assert!(matches!(error, StoreError::SchemaOlder { found: 0, needed: 1.. }), "{error}");
    Ok(())
}

async fn schema_of_a_newer_release_is_rejected(store: TestStore) -> Result<()> {
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

async fn concurrent_migrations_succeed(fixture: TestStore) -> Result<()> {
    let url = fixture.empty_database().await?;
    let stores = try_join_all((0..6).map(|_| safelight_testing::open::store(&url, 2))).await?;
    try_join_all(stores.iter().map(|store| store.migrate())).await?;
    try_join_all(stores.iter().map(|store| store.check_schema())).await?;
    stores[0].accept(&upload()).await?;
    Ok(())
}

async fn embedded_queue_lock_is_exclusive(store: TestStore) -> Result<()> {
    let other = store.another_store().await?;
    assert!(store.lock_for_embedded_queue().await?);
    assert!(store.lock_for_embedded_queue().await?, "it holds the lock already");
    assert!(!other.lock_for_embedded_queue().await?);
    drop(store.store);
    // PostgreSQL releases it when it detects that the connection is closed.
    eventually("the lock is free", async || Ok(other.lock_for_embedded_queue().await?)).await
}

async fn tasks_and_leases_survive_reopening(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    store.publish_all().await?;
    let job = store.claim_job(&write_notice(&upload)).await?;
    let before = store.task_of(&upload).await?;

    let store = store.reopen().await?;

    store.check_schema().await?;
    assert_eq!(store.task_of(&upload).await?, before);
    assert_eq!(store.renew(&[job.lease], HOUR).await?.held, [job.lease]);
    store.settle_job(&job, &write_succeeded()).await
}

#[tokio::test]
async fn sqlite_open_error_names_the_path() -> Result<()> {
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
async fn unreachable_postgres_is_unavailable() -> Result<()> {
    let url: DatabaseUrl = format!("postgres://nobody@127.0.0.1:{}/none", free_port()?).parse()?;
    let Err(error) = safelight_testing::open::store(&url, 2).await else { bail!("connected") };
    assert!(error.is_unavailable(), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    Ok(())
}

/// One store object survives the crash of its database server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashed_postgres_is_unavailable_until_it_restarts() -> Result<()> {
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

/// A server that keeps its connections open but never answers must not block its callers forever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_postgres_is_unavailable_in_bounded_time() -> Result<()> {
    let server = tokio::task::spawn_blocking(Postgres::start).await??;
    let store = safelight_testing::open::store(&server.url("postgres").parse()?, 4).await?;
    store.migrate().await?;

    server.freeze()?;
    let start = Instant::now();
    // The first call uses an open connection, the second needs a new one.
    for _ in 0..2 {
        let error = store.ping().await.expect_err("the server hangs");
        assert!(error.is_unavailable(), "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());

    server.thaw()?;
    store.accept(&upload()).await?;
    Ok(())
}
