//! The minimal cost of a durable acceptance on this machine: a synced file and one committed transaction,
//! without HTTP, hashing or a queue.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::future::try_join_all;
use safelight_domain::new_id;
use sqlx::{
    Connection, PgPool, SqliteConnection,
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::{
    payload::Payload,
    row::{Row, Uploads},
};

/// The largest number of transactions in one commit, as in Safelight's writer.
const GROUP: usize = 32;

/// Measures a row for each number of clients, with SQLite.
pub async fn sqlite(duration: Duration, clients: &[usize], payload: &Payload) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &count in clients {
        let folder = TempDir::new()?;
        let commits = group_committer(&folder.path().join("ceiling.db")).await?;
        let started = Instant::now();
        let each = try_join_all((0..count).map(|_| async {
            closed_loop(folder.path(), payload, started + duration, async |id| {
                let (done, committed) = oneshot::channel();
                commits.send((id, done)).await.context("the writer ended")?;
                committed.await.context("the commit failed")
            })
            .await
        }));
        rows.push(Row::new(each.await?, started.elapsed()));
    }
    Ok(rows)
}

/// Measures a row for each number of clients, with PostgreSQL.
pub async fn postgres(
    duration: Duration,
    clients: &[usize],
    payload: &Payload,
    url: &str,
) -> Result<Vec<Row>> {
    let pool = PgPoolOptions::new().max_connections(32).connect(url).await?;
    for table in ["images", "tasks", "jobs", "outbox"] {
        let table = format!("create table {table} (id uuid primary key, document text not null)");
        sqlx::query(sqlx::AssertSqlSafe(table)).execute(&pool).await?;
    }
    let mut rows = Vec::new();
    for &count in clients {
        let folder = TempDir::new()?;
        let started = Instant::now();
        let each = try_join_all((0..count).map(|_| async {
            closed_loop(folder.path(), payload, started + duration, async |id| {
                insert(&pool, id).await
            })
            .await
        }));
        rows.push(Row::new(each.await?, started.elapsed()));
    }
    Ok(rows)
}

/// Stores one upload after the other until `end`: first the bytes, then the rows.
async fn closed_loop(
    folder: &Path,
    payload: &Payload,
    end: Instant,
    commit: impl AsyncFn(Uuid) -> Result<()>,
) -> Result<Uploads> {
    let mut uploads = Uploads::default();
    while Instant::now() < end {
        let started = Instant::now();
        let (id, folder, payload) = (new_id(), folder.to_owned(), payload.clone());
        tokio::task::spawn_blocking(move || store(&folder, id, &payload)).await??;
        commit(id).await?;
        uploads.times.push(started.elapsed());
    }
    Ok(uploads)
}

/// Writes a file so that it survives a power failure.
fn store(folder: &Path, id: Uuid, payload: &Payload) -> Result<()> {
    let (head, rest) = payload.parts();
    let (temporary, complete): (PathBuf, PathBuf) =
        (folder.join(format!("{id}#")), folder.join(id.to_string()));
    let mut file = File::create(&temporary)?;
    file.write_all(&head)?;
    file.write_all(&rest)?;
    file.sync_all()?;
    fs::rename(&temporary, &complete)?;
    File::open(folder)?.sync_all()?;
    Ok(())
}

type Commit = (Uuid, oneshot::Sender<()>);

/// Starts a writer that commits all waiting uploads together, up to [`GROUP`].
async fn group_committer(file: &Path) -> Result<mpsc::Sender<Commit>> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut database = SqliteConnection::connect_with(&options).await?;
    for table in ["images", "tasks", "jobs", "outbox"] {
        let table = format!("create table {table} (id blob primary key, document text not null)");
        sqlx::query(sqlx::AssertSqlSafe(table)).execute(&mut database).await?;
    }
    let (sender, mut waiting) = mpsc::channel::<Commit>(1024);
    tokio::spawn(async move {
        let mut group = Vec::new();
        while waiting.recv_many(&mut group, GROUP).await > 0 {
            if commit(&mut database, &group).await.is_err() {
                return; // the clients then fail
            }
            for (_, done) in group.drain(..) {
                let _ = done.send(());
            }
        }
    });
    Ok(sender)
}

async fn commit(database: &mut SqliteConnection, group: &[Commit]) -> Result<()> {
    let mut transaction = database.begin().await?;
    for (id, _) in group {
        for insert in [
            "insert into images values (?, '')",
            "insert into tasks values (?, '')",
            "insert into jobs values (?, '')",
            "insert into jobs values (?, '')",
            "insert into outbox values (?, '')",
            "insert into outbox values (?, '')",
        ] {
            // The rows of jobs and outbox need different keys.
            let key = if insert.contains("images") { *id } else { new_id() };
            sqlx::query(insert).bind(key).execute(&mut *transaction).await?;
        }
    }
    Ok(transaction.commit().await?)
}

/// Inserts all rows in one statement, which is one transaction.
async fn insert(pool: &PgPool, id: Uuid) -> Result<()> {
    let statement = "with image as (insert into images values ($1, '')),
                          task as (insert into tasks values ($1, '')),
                          job as (insert into jobs values ($1, ''), ($2, ''))
                     insert into outbox values ($1, ''), ($2, '')";
    sqlx::query(statement).bind(id).bind(new_id()).execute(pool).await?;
    Ok(())
}
