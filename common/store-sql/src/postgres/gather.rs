//! Calls that are ready at the same time, carried out in one statement. A statement costs a round trip
//! and a flush of the database's log, whether it ends one job or fifty.
//!
//! No call waits for others: those that arrive while one batch is being carried out are the next one. And no call
//! waits for another's locks: a call whose job is locked is left out and carried out alone.

use safelight_domain::JobId;
use safelight_store::StoreError;
use sqlx::{PgConnection, Postgres, pool::PoolConnection, postgres::PgRow};
use tokio::sync::{mpsc, oneshot};

use super::{dialect::big, proof::is_about_others, servers::Servers};
use crate::calls::{gone, one_per_job};

/// Calls in one statement at most: bounds how long the first waits for the others.
const BATCH: usize = 64;

/// The limit of waiting calls. Beyond it callers wait to be queued.
const WAITING: usize = 1024;

/// What to do about a job's row that another transaction has locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locked {
    /// Leave its call out.
    Skip,
    /// Wait until it is free.
    Wait,
}

/// The answers of those calls of a batch whose job was found: each with its index in the batch.
pub type Answers<A> = Vec<(usize, Result<A, StoreError>)>;

/// The index of the call that a column `call_index` counts from 1.
pub fn call_index(row: &PgRow) -> Result<usize, StoreError> {
    Ok(big::<usize>(row, "call_index")?.saturating_sub(1))
}

/// A call about one job that can be carried out together with others of its kind.
pub trait Call: Send + Sync + 'static {
    /// What its caller gets.
    type Answer: Send + 'static;

    /// The answer about a job that does not exist.
    const UNKNOWN: Self::Answer;

    /// The job.
    fn job(&self) -> JobId;

    /// Carries out calls about different jobs in one transaction.
    fn carry_out(
        conn: &mut PgConnection,
        calls: &[Self],
        locked: Locked,
    ) -> impl Future<Output = Result<Answers<Self::Answer>, StoreError>> + Send
    where
        Self: Sized;
}

/// A handle to the task that serves calls of one kind. The task ends with the last handle.
pub struct Gathered<C: Call>(mpsc::Sender<Waiting<C>>);

struct Waiting<C: Call> {
    call: C,
    caller: oneshot::Sender<Result<C::Answer, StoreError>>,
}

impl<C: Call> Gathered<C> {
    /// Starts to serve calls.
    pub fn start(servers: Servers) -> Self {
        let (calls, waiting) = mpsc::channel(WAITING);
        tokio::spawn(serve(servers, waiting));
        Self(calls)
    }

    /// Carries out a call, alone or with others. One whose caller has gone before its turn is not
    /// carried out.
    pub async fn call(&self, call: C) -> Result<C::Answer, StoreError> {
        let (caller, answer) = oneshot::channel();
        self.0.send(Waiting { call, caller }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// A connection that is used again, and the epoch that it is from.
type Kept = Option<(u64, PoolConnection<Postgres>)>;

async fn serve<C: Call>(servers: Servers, mut calls: mpsc::Receiver<Waiting<C>>) {
    let mut ready = Vec::with_capacity(BATCH);
    let mut conn = None;
    while calls.recv_many(&mut ready, BATCH).await > 0 {
        ready.retain(|one| !one.caller.is_closed());
        if !ready.is_empty() {
            let (batch, doubles) = one_per_job(ready.drain(..), |one| one.call.job());
            let left_out = carry_out(&servers, &mut conn, batch).await;
            for one in left_out.into_iter().chain(doubles) {
                // Concurrently with the next batch: it may have to wait for the lock on its job.
                tokio::spawn(carry_out_alone(servers.clone(), one));
            }
        }
        if calls.is_empty() {
            // Other calls may use it now. Under load the same connection is used again: each is a process of
            // the database with its own plans and caches.
            conn = None;
        }
    }
}

/// Carries out a batch and answers its callers. Returns those that are to be carried out alone.
async fn carry_out<C: Call>(
    servers: &Servers,
    conn: &mut Kept,
    batch: Vec<Waiting<C>>,
) -> Vec<Waiting<C>> {
    let (calls, mut callers): (Vec<C>, Vec<_>) =
        batch.into_iter().map(|one| (one.call, Some(one.caller))).unzip();
    let answers = match servers.call(on_connection(servers, conn, &calls)).await {
        Ok(answers) => answers,
        Err(error) if error.is_unavailable() && !is_about_others(&error) => {
            same_for_all(calls.len(), &error)
        }
        Err(error) => {
            // One of them caused the error, and nothing was committed.
            tracing::debug!(%error, calls = calls.len(), "carrying a batch out one by one");
            Vec::new()
        }
    };
    for (call_index, answer) in answers {
        if let Some(caller) = callers.get_mut(call_index).and_then(Option::take) {
            // Fails if the caller has gone; what was committed stays.
            let _ = caller.send(answer);
        }
    }
    let left = calls.into_iter().zip(callers);
    left.filter_map(|(call, caller)| Some(Waiting { call, caller: caller? })).collect()
}

/// Carries calls out on `conn`, which is left there if it is still good.
async fn on_connection<C: Call>(
    servers: &Servers,
    conn: &mut Kept,
    calls: &[C],
) -> Result<Answers<C::Answer>, StoreError> {
    let epoch = servers.epoch();
    let mut mine = match conn.take().filter(|(of, _)| *of == epoch) {
        Some((_, conn)) => conn,
        None => servers.pool().acquire().await?,
    };
    let answers = C::carry_out(&mut mine, calls, Locked::Skip).await?;
    *conn = Some((epoch, mine));
    Ok(answers)
}

fn same_for_all<A>(calls: usize, error: &StoreError) -> Answers<A> {
    (0..calls).map(|call_index| (call_index, Err(error.clone()))).collect()
}

async fn carry_out_alone<C: Call>(servers: Servers, one: Waiting<C>) {
    let answer = servers.call(async {
        let mut conn = servers.pool().acquire().await?;
        let mut answers = C::carry_out(&mut conn, &[one.call], Locked::Wait).await?;
        answers.pop().map_or(Ok(C::UNKNOWN), |(_, answer)| answer)
    });
    let _ = one.caller.send(answer.await);
}
