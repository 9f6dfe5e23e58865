//! The one writer: a task that owns the only connection that writes, and commits in groups.
//!
//! A commit costs an fsync, however many requests are in it. So the writer takes all waiting requests, runs each in a
//! savepoint of one transaction, commits once, and only then answers them all. Calls that are also carried out
//! together, in one statement, are one request: see `gather`.

use std::sync::Arc;

use futures::future::BoxFuture;
use safelight_store::StoreError;
use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::{
    sync::{Mutex, Notify, mpsc, oneshot},
    task::JoinHandle,
};

use super::{checkpoint::Checkpoints, clock::Clock, database_files::DatabaseFiles};
use crate::calls::gone;

/// The limit of requests in one transaction. It bounds how long a caller waits; a request of `gather` has all calls of
/// its kind that wait.
const GROUP: usize = 32;

/// The limit of waiting requests. Beyond it callers wait to be queued.
const WAITING: usize = 1024;

/// A handle to the writer. The task ends, after the queued requests, when the last handle is dropped.
pub struct Writer {
    requests: mpsc::Sender<Box<dyn Work>>,
    closing: Arc<Notify>,
    /// `None` once it has ended.
    task: Mutex<Option<JoinHandle<()>>>,
}

/// A place in the queue of requests.
pub type Place = mpsc::OwnedPermit<Box<dyn Work>>;

/// One request: the work, and those who wait for it.
pub trait Work: Send {
    /// Runs it, or its next part, at the time `now`. After an error that must leave nothing behind.
    fn run<'c>(
        &'c mut self,
        conn: &'c mut SqliteConnection,
        now: i64,
    ) -> BoxFuture<'c, Result<(), StoreError>>;

    /// Whether it has another part, to be run in a savepoint of its own.
    fn has_more(&self) -> bool;

    /// Answers those who wait. `failure` is the failure of the whole group.
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
    fn run<'c>(
        &'c mut self,
        conn: &'c mut SqliteConnection,
        now: i64,
    ) -> BoxFuture<'c, Result<(), StoreError>> {
        Box::pin(async move {
            // Skipped if the caller has gone. A claim, for example, would only block its job until the lease
            // ends.
            let Some(work) = self.work.take().filter(|_| !self.caller.is_closed()) else {
                return Ok(());
            };
            let result = work(conn, now).await;
            let failure = result.as_ref().err().cloned();
            self.result = Some(result);
            failure.map_or(Ok(()), Err)
        })
    }

    fn has_more(&self) -> bool {
        false
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
    /// Starts the task on its own connection.
    pub fn start(
        options: SqliteConnectOptions,
        conn: SqliteConnection,
        clock: Clock,
        checkpoints: Checkpoints,
        files: Option<DatabaseFiles>,
    ) -> Self {
        let (requests, queue) = mpsc::channel(WAITING);
        let closing = Arc::new(Notify::new());
        let database = Database { options, clock, files };
        let served = serve(database, conn, queue, checkpoints, closing.clone());
        let task = Mutex::new(Some(tokio::spawn(served)));
        Self { requests, closing, task }
    }

    /// Answers the waiting requests, empties the log into the database, and closes the connection.
    pub async fn close(&self) {
        self.closing.notify_one();
        let mut task = self.task.lock().await;
        if let Some(running) = task.as_mut() {
            // It neither panics nor is aborted, except with its runtime.
            let _ = running.await;
            *task = None;
        }
    }

    /// Runs `work` in a transaction with the time at which it starts. On `Ok` it is committed and on disk; if `work`
    /// fails, nothing of it remains.
    pub async fn run<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection, i64) -> BoxFuture<'c, Result<T, StoreError>>
            + Send
            + 'static,
    {
        let (caller, answer) = oneshot::channel();
        let request = Request { work: Some(work), result: None, caller };
        self.place().await?.send(Box::new(request));
        answer.await.map_err(|_| gone())?
    }

    /// Waits for a place in the queue of requests.
    pub async fn place(&self) -> Result<Place, StoreError> {
        self.requests.clone().reserve_owned().await.map_err(|_| gone())
    }
}

/// What the writer writes to.
struct Database {
    options: SqliteConnectOptions,
    clock: Clock,
    /// `None` for a database in memory.
    files: Option<DatabaseFiles>,
}

impl Database {
    fn check(&mut self) -> Result<(), sqlx::Error> {
        Ok(self.files.as_mut().map_or(Ok(()), DatabaseFiles::check)?)
    }

    async fn connect(&mut self) -> Result<SqliteConnection, sqlx::Error> {
        if let Some(files) = self.files.as_mut() {
            files.reopened();
        }
        self.options.connect().await
    }
}

async fn serve(
    mut database: Database,
    conn: SqliteConnection,
    mut queue: mpsc::Receiver<Box<dyn Work>>,
    mut checkpoints: Checkpoints,
    closing: Arc<Notify>,
) {
    let mut conn = Some(conn);
    let mut group = Vec::with_capacity(GROUP);
    loop {
        tokio::select! {
            biased;
            // Requests that wait already are still served; then the queue ends.
            () = closing.notified() => {
                queue.close();
                continue;
            }
            () = checkpoints.due() => {
                if let Some(conn) = conn.as_mut() {
                    checkpoints.run(conn).await;
                }
                continue;
            }
            received = queue.recv_many(&mut group, GROUP) => {
                if received == 0 {
                    break;
                }
            }
        }
        if let Err(error) = database.check() {
            let error = StoreError::from(error);
            group.drain(..).for_each(|work| work.answer(Some(error.clone())));
            continue;
        }
        let outcome = match conn.take() {
            Some(conn) => commit(conn, &database.clock, &mut group).await,
            // The last group failed in a way that leaves the connection's state in doubt.
            None => match database.connect().await {
                Ok(conn) => commit(conn, &database.clock, &mut group).await,
                Err(error) => Err(error.into()),
            },
        };
        match outcome {
            Ok(usable) => {
                conn = Some(usable);
                group.drain(..).for_each(|work| work.answer(None));
            }
            Err(error) => {
                // Each caller gets the error, and logs what it means for it.
                tracing::debug!(%error, requests = group.len(), "SQLite transaction failed");
                group.drain(..).for_each(|work| work.answer(Some(error.clone())));
            }
        }
    }
    if let Some(mut conn) = conn {
        // The last connection to close does this, but another process may have one.
        checkpoints.run(&mut conn).await;
        if let Err(error) = conn.close().await {
            tracing::warn!(%error, "SQLite did not close cleanly");
        }
    }
}

/// Runs the whole group in one transaction, each request in a savepoint. Returns the connection if it is still good;
/// a connection that is dropped rolls back.
async fn commit(
    mut conn: SqliteConnection,
    clock: &Clock,
    group: &mut [Box<dyn Work>],
) -> Result<SqliteConnection, StoreError> {
    let begin = "begin immediate; savepoint request";
    let mut transaction = conn.begin_with(begin).await?;
    let last = group.len().saturating_sub(1);
    for (number, work) in group.iter_mut().enumerate() {
        loop {
            if let Err(error) = work.run(&mut transaction, clock.now()).await {
                let rolled_back =
                    sqlx::query("rollback to request").execute(&mut *transaction).await;
                // An error of the disk may end the whole transaction: then there is no savepoint, and that error is the
                // one of all requests.
                rolled_back.map_err(|_| error)?;
            }
            let ended = !work.has_more();
            if ended && number == last {
                break;
            }
            // One script: each statement alone would cross to the connection's thread and back, which is the larger
            // part of the cost of a small request.
            let next = "release request; savepoint request";
            sqlx::query(next).execute(&mut *transaction).await?;
            if ended {
                break;
            }
        }
    }
    transaction.commit().await?;
    Ok(conn)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer on a table of numbers.
    async fn writer() -> Result<Writer, sqlx::Error> {
        let options = SqliteConnectOptions::new().in_memory(true);
        let mut conn = options.connect().await?;
        sqlx::query("create table numbers (n integer primary key)").execute(&mut conn).await?;
        Ok(Writer::start(options, conn, Clock::default(), Checkpoints::never(), None))
    }

    /// Writes `numbers` one by one. A number that exists already fails.
    async fn write(writer: &Writer, numbers: &'static [i64]) -> Result<(), StoreError> {
        writer.run(move |conn, _now| Box::pin(insert(conn, numbers))).await
    }

    async fn insert(conn: &mut SqliteConnection, numbers: &[i64]) -> Result<(), StoreError> {
        for number in numbers {
            sqlx::query("insert into numbers values ($1)").bind(number).execute(&mut *conn).await?;
        }
        Ok(())
    }

    async fn written(writer: &Writer) -> Result<Vec<i64>, StoreError> {
        writer
            .run(|conn, _now| {
                Box::pin(async move {
                    Ok(sqlx::query_scalar("select n from numbers order by n")
                        .fetch_all(conn)
                        .await?)
                })
            })
            .await
    }

    #[tokio::test]
    async fn closed_writer_has_answered_what_waited_and_rejects_the_rest() -> Result<(), StoreError>
    {
        let writer = writer().await?;
        let (waiting, ()) = tokio::join!(write(&writer, &[1]), writer.close());
        waiting?;
        assert!(write(&writer, &[2]).await.is_err_and(|error| error.is_unavailable()));
        writer.close().await;
        Ok(())
    }

    /// On one thread, so that all requests wait in one batch.
    #[tokio::test]
    async fn failed_request_rolls_back_only_its_own_writes() -> Result<(), StoreError> {
        let writer = writer().await?;
        let (first, twice, other, again) = tokio::join!(
            write(&writer, &[1]),
            write(&writer, &[2, 1]),
            write(&writer, &[3]),
            write(&writer, &[4, 3]),
        );
        assert!(first.is_ok() && other.is_ok(), "{first:?}, {other:?}");
        assert!(twice.is_err() && again.is_err());
        assert_eq!(written(&writer).await?, [1, 3]);
        assert!(write(&writer, &[5, 1]).await.is_err(), "also in its own batch");
        write(&writer, &[2]).await?;
        assert_eq!(written(&writer).await?, [1, 2, 3]);
        Ok(())
    }
}
