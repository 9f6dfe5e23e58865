//! The one writer: a task that owns the only connection that writes, and commits in groups.
//!
//! A commit costs an fsync, whoever is in it. So the writer takes whatever requests wait, runs each
//! in a savepoint of one transaction, commits once, and only then answers them all.

use std::sync::Arc;

use futures::future::BoxFuture;
use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::sync::{mpsc, oneshot};

use super::clock::Clock;
use crate::store::StoreError;

/// Requests in one transaction at most: bounds what one failed commit fails, and how long a reader
/// of its own write waits.
const GROUP: usize = 32;

/// Requests that may wait; past it callers wait to be queued.
const WAITING: usize = 1024;

/// A handle to the writer. The task ends, after what is queued, when the last handle is dropped.
#[derive(Clone)]
pub struct Writer {
    requests: mpsc::Sender<Box<dyn Work>>,
}

/// One request: what to do, and whom to tell.
trait Work: Send {
    /// Runs it, at the time `now`. `false` if it failed and must leave nothing behind.
    fn run<'c>(&'c mut self, conn: &'c mut SqliteConnection, now: i64) -> BoxFuture<'c, bool>;

    /// Tells the caller. `failure` is that of the whole group.
    fn answer(self: Box<Self>, failure: Option<StoreError>);
}

struct Request<T, F> {
    work: Option<F>,
    result: Option<Result<T, StoreError>>,
    caller: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Work for Request<T, F>
where
    T: Send,
    F: for<'c> FnOnce(&'c mut SqliteConnection, i64) -> BoxFuture<'c, Result<T, StoreError>> + Send,
{
    fn run<'c>(&'c mut self, conn: &'c mut SqliteConnection, now: i64) -> BoxFuture<'c, bool> {
        Box::pin(async move {
            // Nobody waits for it any more: a claim, say, would only lie until its lease ends.
            let Some(work) = self.work.take().filter(|_| !self.caller.is_closed()) else {
                return true;
            };
            let result = work(conn, now).await;
            let keep = result.is_ok();
            self.result = Some(result);
            keep
        })
    }

    fn answer(self: Box<Self>, failure: Option<StoreError>) {
        let result = match (self.result, failure) {
            (Some(Err(own)), _) => Err(own),
            (_, Some(failure)) => Err(failure),
            (Some(Ok(result)), None) => Ok(result),
            (None, None) => return,
        };
        // The caller may have gone; what was committed stays.
        let _ = self.caller.send(result);
    }
}

impl Writer {
    /// Starts the task, on a connection of its own.
    pub fn start(options: SqliteConnectOptions, conn: SqliteConnection, clock: Clock) -> Self {
        let (requests, queue) = mpsc::channel(WAITING);
        tokio::spawn(serve(options, conn, clock, queue));
        Self { requests }
    }

    /// Runs `work` in a transaction, telling it the time at which it begins. On `Ok` it is committed
    /// and on disk; if `work` fails, nothing of it remains.
    pub async fn run<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection, i64) -> BoxFuture<'c, Result<T, StoreError>>
            + Send
            + 'static,
    {
        let (caller, answer) = oneshot::channel();
        let request = Request { work: Some(work), result: None, caller };
        let gone = || StoreError::Unavailable(sqlx::Error::WorkerCrashed);
        self.requests.send(Box::new(request)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

async fn serve(
    options: SqliteConnectOptions,
    conn: SqliteConnection,
    clock: Clock,
    mut queue: mpsc::Receiver<Box<dyn Work>>,
) {
    let mut conn = Some(conn);
    let mut group = Vec::with_capacity(GROUP);
    while queue.recv_many(&mut group, GROUP).await > 0 {
        let outcome = match conn.take() {
            Some(conn) => commit(conn, &clock, &mut group).await,
            // The last group failed in a way that leaves the connection's state in doubt.
            None => match options.connect().await {
                Ok(conn) => commit(conn, &clock, &mut group).await,
                Err(error) => Err(error),
            },
        };
        match outcome {
            Ok(usable) => {
                conn = Some(usable);
                group.drain(..).for_each(|work| work.answer(None));
            }
            Err(error) => {
                // Each caller is told, and says what it means to it.
                tracing::debug!(%error, requests = group.len(), "SQLite transaction failed");
                let error = Arc::new(error);
                group.drain(..).for_each(|work| work.answer(Some(StoreError::copy_of(&error))));
            }
        }
    }
    if let Some(conn) = conn {
        // Also empties the write-ahead log into the database. It is safe without.
        if let Err(error) = conn.close().await {
            tracing::warn!(%error, "SQLite did not close cleanly");
        }
    }
}

/// Runs the whole group in one transaction. Gives the connection back if it is still good.
async fn commit(
    mut conn: SqliteConnection,
    clock: &Clock,
    group: &mut [Box<dyn Work>],
) -> Result<SqliteConnection, sqlx::Error> {
    let mut transaction = conn.begin_with("BEGIN IMMEDIATE").await?;
    if let [only] = group {
        // Alone, it needs no savepoint.
        if only.run(&mut transaction, clock.now()).await {
            transaction.commit().await?;
        } else {
            transaction.rollback().await?;
        }
        return Ok(conn);
    }
    for work in group {
        let mut savepoint = transaction.begin().await?;
        if work.run(&mut savepoint, clock.now()).await {
            savepoint.commit().await?;
        } else {
            savepoint.rollback().await?;
        }
    }
    transaction.commit().await?;
    Ok(conn)
}
