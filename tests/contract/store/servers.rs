//! Servers of PostgreSQL that cannot commit, that can lose what they have committed, and that take over from each
//! other; poolers.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use safelight_config::DatabaseUrl;
use safelight_store::{DynStore, StoreError};
use safelight_testing::{
    pgbouncer::PgBouncer,
    postgres::Postgres,
    wait::{eventually, eventually_within},
};
use tokio::task::{block_in_place, spawn_blocking};

use super::test_store::upload;

/// A server of its own, and a store on it.
async fn server_and_store() -> Result<(Postgres, DynStore)> {
    let server = spawn_blocking(Postgres::start).await??;
    let store = open(&server.url("postgres")).await?;
    store.migrate().await?;
    Ok((server, store))
}

async fn open(urls: &str) -> Result<DynStore> {
    Ok(safelight_testing::open::store(&urls.parse()?, 4).await?)
}

/// The error of a store on a server that cannot commit now.
fn unavailable<T: std::fmt::Debug>(result: Result<T, StoreError>) -> Result<()> {
    match result {
        Err(error) if error.is_unavailable() => Ok(()),
        other => bail!("{other:?}"),
    }
}

/// A managed database is read-only when its disk is full, and while it fails over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_server_is_unavailable() -> Result<()> {
    let (server, store) = server_and_store().await?;
    let accepted = upload();
    store.accept(&accepted).await?;
    block_in_place(|| server.set("default_transaction_read_only", "on"))?;
    eventually("the server is read-only", async || Ok(store.ping().await.is_err())).await?;
    unavailable(store.ping().await)?;
    unavailable(store.accept(&upload()).await)?;
    ensure!(store.task(accepted.task).await?.is_some(), "it can still be read");
    block_in_place(|| server.set("default_transaction_read_only", "off"))?;
    eventually("it can be written", async || Ok(store.ping().await.is_ok())).await?;
    store.accept(&upload()).await?;
    Ok(())
}

/// As after a fail-over behind one address: old connections lead to a server that became read-only, new ones to
/// the one that accepts writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_connections_are_replaced() -> Result<()> {
    let (server, store) = server_and_store().await?;
    block_in_place(|| {
        server.sql("postgres", "alter role postgres set default_transaction_read_only = off")?;
        // For the sessions that are open: the role's setting, which new ones have, is stronger.
        server.set("default_transaction_read_only", "on")
    })?;
    eventually("a connection is read-only", async || Ok(store.ping().await.is_err())).await?;
    eventually("it was replaced", async || Ok(store.accept(&upload()).await.is_ok())).await?;
    // Others may have been replaced later.
    eventually("all were replaced", async || Ok(store.ping().await.is_ok())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_statements_are_an_outage() -> Result<()> {
    let server = spawn_blocking(Postgres::start).await??;
    let url = server.url("postgres");
    open(&url).await?.migrate().await?;
    // What waits for this lock is ended in three ways.
    let locked = "begin; lock table images";
    for setting in ["statement_timeout=1000", "lock_timeout=1000", ""] {
        let url =
            format!("{url}?options=-c%20{}", if setting.is_empty() { "jit=off" } else { setting });
        let store = open(&url).await?;
        let mut holder =
            <sqlx::PgConnection as sqlx::Connection>::connect(&server.url("postgres")).await?;
        sqlx::raw_sql(locked).execute(&mut holder).await?;
        let cancel = async {
            while setting.is_empty() {
                block_in_place(|| {
                    server.sql(
                        "postgres",
                        "select pg_cancel_backend(pid) from pg_stat_activity
                         where wait_event_type = 'Lock' and application_name = 'safelight'",
                    )
                })?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            std::future::pending::<Result<()>>().await
        };
        let upload = upload();
        tokio::select! {
            accepted = store.accept(&upload) => unavailable(accepted)?,
            canceled = cancel => canceled?,
        }
    }
    Ok(())
}

/// A migration takes as long as it takes, whatever the role's limits are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migration_has_no_time_limit() -> Result<()> {
    let server = spawn_blocking(Postgres::start).await??;
    let store = open(&server.url("postgres")).await?;
    let limits = "alter role postgres set statement_timeout = '5ms';
                  alter role postgres set lock_timeout = '5ms'";
    block_in_place(|| server.sql("postgres", limits))?;
    eventually("the schema is there", async || {
        // Other statements do have the limit.
        Ok(match store.migrate().await {
            Ok(()) => true,
            Err(error) => {
                unavailable::<()>(Err(error))?;
                false
            }
        })
    })
    .await
}

/// While no synchronous standby answers, the server answers every query and commits nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_commits_are_an_outage() -> Result<()> {
    let (server, store) = server_and_store().await?;
    // A role that weakens commits would make an upload safe nowhere and accept it.
    block_in_place(|| server.sql("postgres", "alter role postgres set synchronous_commit = off"))?;
    let store_of_role = open(&server.url("postgres")).await?;
    block_in_place(|| server.set("synchronous_standby_names", "nobody"))?;
    let name = "show synchronous_standby_names";
    eventually("commits hang", async || {
        Ok(block_in_place(|| server.sql("postgres", name))? == "nobody")
    })
    .await?;
    let started = Instant::now();
    eventually("the ping fails", async || {
        Ok(match store.ping().await {
            Ok(()) => false,
            failed => unavailable(failed).map(|()| true)?,
        })
    })
    .await?;
    // The first one holds the row; others do not pile up behind it.
    unavailable(store.ping().await)?;
    unavailable(store_of_role.accept(&upload()).await)?;
    ensure!(started.elapsed() < Duration::from_secs(45), "{:?}", started.elapsed());
    // At most one of each store, which looks for a better server, too.
    let waiting = "select count(*) <= 2 from pg_stat_activity where wait_event_type = 'Lock'";
    ensure!(block_in_place(|| server.sql("postgres", waiting))? == "t");

    block_in_place(|| server.set("synchronous_standby_names", ""))?;
    eventually("commits work again", async || Ok(store.ping().await.is_ok())).await?;
    store.accept(&upload()).await?;
    Ok(())
}

/// The clock's row shows that the clock was set back, until that is dealt with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ping_never_sets_the_clock_back() -> Result<()> {
    let (server, store) = server_and_store().await?;
    let seen = "select extract(epoch from seen_at - now()) > 3000 from database_clock";
    block_in_place(|| {
        server.sql("postgres", "update database_clock set seen_at = now() + interval '1 hour'")
    })?;
    store.ping().await?;
    ensure!(block_in_place(|| server.sql("postgres", seen))? == "t");
    block_in_place(|| {
        server.sql("postgres", "update database_clock set seen_at = now() - interval '1 hour'")
    })?;
    store.ping().await?;
    let current = "select seen_at > now() - interval '1 minute' from database_clock";
    ensure!(block_in_place(|| server.sql("postgres", current))? == "t");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_can_lose_uploads_are_named() -> Result<()> {
    let unsafe_settings = ["fsync=off", "full_page_writes=off", "synchronous_commit=off"];
    let server = spawn_blocking(move || Postgres::start_with(&unsafe_settings)).await??;
    let warnings = open(&server.url("postgres")).await?.durability_warnings().await?;
    ensure!(warnings.len() == 3, "{warnings:?}");
    for (warning, setting) in
        warnings.iter().zip(["fsync", "full_page_writes", "synchronous_commit"])
    {
        ensure!(warning.contains(setting), "{warnings:?}");
    }

    let (primary, store) = server_and_store().await?;
    ensure!(store.durability_warnings().await?.is_empty());
    let _standby = block_in_place(|| primary.start_standby())?;
    eventually("a warning about the standby", async || {
        let warnings = store.durability_warnings().await?;
        Ok(warnings.len() == 1 && warnings[0].contains("none is synchronous"))
    })
    .await?;
    block_in_place(|| primary.set("synchronous_standby_names", "*"))?;
    eventually("no warning", async || Ok(store.durability_warnings().await?.is_empty())).await
}

/// One store object, opened with the standby named first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promoted_standby_takes_over() -> Result<()> {
    let (primary, first) = server_and_store().await?;
    first.record_mark().await?;
    ensure!(!first.installation().await?.is_other_lineage);
    let standby = block_in_place(|| primary.start_standby())?;
    block_in_place(|| primary.set("synchronous_standby_names", "*"))?;
    let urls = format!("{},{}", standby.url("postgres"), primary.url("postgres"));
    let store = open(&urls).await?;
    ensure!(store.lock_for_embedded_queue().await?);
    let before = upload();
    store.accept(&before).await?;

    block_in_place(|| primary.kill())?;
    unavailable(store.accept(&upload()).await)?;
    block_in_place(|| standby.promote())?;
    let promoted = Instant::now();
    let after = upload();
    eventually_within(Duration::from_secs(20), "the promoted standby is used", async || {
        Ok(store.accept(&after).await.is_ok())
    })
    .await?;
    eprintln!("uploads are accepted {:?} after the promotion", promoted.elapsed());
    for upload in [&before, &after] {
        ensure!(store.task(upload.task).await?.is_some(), "lost");
    }
    ensure!(store.lock_for_embedded_queue().await?, "the lock is taken on the new primary");
    ensure!(store.installation().await?.is_other_lineage, "a promotion is not noticed");
    Ok(())
}

/// The old primary comes back after the promotion and accepts writes, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latest_of_two_primaries_is_used() -> Result<()> {
    let (old, store) = server_and_store().await?;
    store.accept(&upload()).await?;
    let new = block_in_place(|| old.start_standby())?;
    block_in_place(|| new.promote())?;
    let urls = format!("{},{}", old.url("postgres"), new.url("postgres"));
    let store = open(&urls).await?;
    let upload = upload();
    store.accept(&upload).await?;
    let count = format!("select count(*) from tasks where id = '{}'", upload.task);
    ensure!(block_in_place(|| new.sql("postgres", &count))? == "1");
    Ok(())
}

/// A node whose calls to the old primary all succeed leaves it for the new one, and does not return.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promotion_beside_living_primary_is_noticed() -> Result<()> {
    let (old, _) = server_and_store().await?;
    let new = block_in_place(|| old.start_standby())?;
    let store = open(&format!("{},{}", old.url("postgres"), new.url("postgres"))).await?;
    store.accept(&upload()).await?;
    block_in_place(|| new.promote())?;
    eventually_within(Duration::from_secs(20), "the promoted server is used", async || {
        let upload = upload();
        store.accept(&upload).await?;
        let count = format!("select count(*) from tasks where id = '{}'", upload.task);
        Ok(block_in_place(|| new.sql("postgres", &count))? == "1")
    })
    .await?;
    block_in_place(|| new.kill())?;
    unavailable(store.accept(&upload()).await)?;
    // Long enough for several looks, which find the old primary alone.
    for _ in 0..5 {
        unavailable(store.accept(&upload()).await)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pooler_that_shares_connections_is_rejected() -> Result<()> {
    let server = spawn_blocking(Postgres::start).await??;
    for (mode, settings) in
        [("transaction", ""), ("statement", ""), ("transaction", "server_round_robin = 1")]
    {
        // The driver of the other clients sends this parameter.
        let settings = format!("ignore_startup_parameters = extra_float_digits\n{settings}");
        let pooler = block_in_place(|| PgBouncer::start(server.port(), mode, &settings))?;
        // Others use the pooler, too, and have left idle connections in it.
        let mut others = Vec::new();
        for _ in 0..2 {
            let url = pooler.url("postgres");
            let mut conn = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await?;
            if mode == "transaction" {
                sqlx::raw_sql("begin").execute(&mut conn).await?;
            }
            others.push(conn);
        }
        if mode == "transaction" {
            for conn in &mut others {
                sqlx::raw_sql("commit").execute(conn).await?;
            }
        }
        let url: DatabaseUrl = pooler.url("postgres").parse()?;
        for _ in 0..2 {
            match safelight_testing::open::store(&url, 4).await {
                Err(StoreError::SharedConnections) => {}
                Err(error) => bail!("{mode}: {error}"),
                Ok(_) => bail!("{mode} mode is not noticed"),
            }
        }
    }
    let pooler = block_in_place(|| PgBouncer::start(server.port(), "session", ""))?;
    let store = open(&pooler.url("postgres")).await?;
    store.migrate().await?;
    store.accept(&upload()).await?;
    store.ping().await?;
    Ok(())
}
