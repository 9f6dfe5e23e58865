//! Calls that wait at the same time, carried out in one statement. A statement crosses to the connection's thread and
//! back, whether it ends one job or fifty, and that is most of the cost of a small one.
//!
//! No call waits for others: those that arrive while the writer is busy are its next batch. And no call fails for
//! others: if a batch fails, each of its calls is carried out alone.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use futures::future::BoxFuture;
use safelight_domain::JobId;
use safelight_store::StoreError;
use sqlx::{SqliteConnection, types::Json};
use tokio::sync::oneshot;

use super::writer::{Place, Work, Writer};
use crate::calls::{gone, one_per_job};

/// A call about one job that can be carried out together with others of its kind.
pub trait Call: Sized + Send + Sync + 'static {
    /// What its caller gets.
    type Answer: Send + 'static;

    /// The job.
    fn job(&self) -> JobId;

    /// Carries out calls about different jobs, at the time `now`. Returns their answers in the same order.
    fn carry_out(
        conn: &mut SqliteConnection,
        now: i64,
        calls: &[&Self],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, StoreError>> + Send;
}

/// Jobs, each with a number of its own, as the first parameter of a statement: an array for each job would be parsed
/// again.
pub type JobNumbers = Json<HashMap<String, u32>>;

/// The beginning of a statement about [`JobNumbers`]: `calls` with `job`, and the number under the given name.
macro_rules! calls {
    ($number:literal) => {
        concat!(
            "with calls as materialized (select unhex(key) as job, value as ",
            $number,
            " from json_each($1)) "
        )
    };
}

pub(super) use calls;

/// Calls by what they have in common. `terms` returns that, and the number that belongs to the call's job.
pub fn alike<C: Call, T: Eq + Hash>(
    calls: &[&C],
    terms: impl Fn(&C) -> (T, u32),
) -> HashMap<T, JobNumbers> {
    let mut alike = HashMap::<T, JobNumbers>::new();
    for call in calls {
        let (terms, number) = terms(call);
        alike.entry(terms).or_default().0.insert(call.job().0.simple().to_string(), number);
    }
    alike
}

/// The waiting calls of one kind.
pub struct Gathered<C: Call>(Arc<Mutex<Vec<Waiting<C>>>>);

struct Waiting<C: Call> {
    call: C,
    caller: Caller<C>,
    /// Bounds how many wait: the place that its own request would have. `None` for the first one, whose place the
    /// request of all has.
    _place: Option<Place>,
}

type Answer<C> = Result<<C as Call>::Answer, StoreError>;

type Caller<C> = oneshot::Sender<Answer<C>>;

impl<C: Call> Default for Gathered<C> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<C: Call> Gathered<C> {
    /// Carries out a call, alone or with others. One whose caller has gone before its turn is not carried out.
    pub async fn call(&self, writer: &Writer, call: C) -> Result<C::Answer, StoreError> {
        let (caller, answer) = oneshot::channel();
        let place = writer.place().await?;
        self.add(place, call, caller);
        answer.await.map_err(|_| gone())?
    }

    /// Adds a call to those that wait. Never awaits: a caller that goes away leaves no calls without a request.
    fn add(&self, place: Place, call: C, caller: Caller<C>) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = waiting.is_empty();
        let (request, place) = if is_first { (Some(place), None) } else { (None, Some(place)) };
        waiting.push(Waiting { call, caller, _place: place });
        drop(waiting);
        if let Some(request) = request {
            request.send(Box::new(Batch::new(Self(Arc::clone(&self.0)))));
        }
    }

    fn take(&self) -> Vec<Waiting<C>> {
        mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The request of the writer for all calls of one kind that wait when its turn comes.
struct Batch<C: Call> {
    /// `None` once they are taken. Calls that arrive later have another request.
    waiting: Option<Gathered<C>>,
    /// About different jobs: carried out in one part.
    together: Vec<Waiting<C>>,
    /// Carried out one by one.
    alone: VecDeque<Waiting<C>>,
    answers: Vec<(Caller<C>, Answer<C>)>,
}

impl<C: Call> Batch<C> {
    fn new(waiting: Gathered<C>) -> Self {
        Self {
            waiting: Some(waiting),
            together: Vec::new(),
            alone: VecDeque::new(),
            answers: Vec::new(),
        }
    }

    fn take(&mut self) {
        let Some(waiting) = self.waiting.take() else { return };
        let (together, alone) = one_per_job(waiting.take(), |one| one.call.job());
        (self.together, self.alone) = (together, alone.into());
    }

    /// The calls of the next part. A claim whose caller has gone would only block its job until the lease ends.
    fn next_part(&mut self) -> Vec<Waiting<C>> {
        self.take();
        let mut part = mem::take(&mut self.together);
        if part.is_empty() {
            part.extend(self.alone.pop_front());
        }
        part.retain(|one| !one.caller.is_closed());
        part
    }
}

impl<C: Call> Work for Batch<C> {
    fn run<'c>(
        &'c mut self,
        conn: &'c mut SqliteConnection,
        now: i64,
    ) -> BoxFuture<'c, Result<(), StoreError>> {
        Box::pin(async move {
            let part = self.next_part();
            if part.is_empty() {
                return Ok(());
            }
            let calls: Vec<&C> = part.iter().map(|one| &one.call).collect();
            match C::carry_out(conn, now, &calls).await {
                Ok(answers) => {
                    let callers = part.into_iter().map(|one| one.caller);
                    self.answers.extend(callers.zip(answers.into_iter().map(Ok)));
                    Ok(())
                }
                Err(error) if part.len() > 1 => {
                    tracing::debug!(%error, calls = part.len(), "carrying a batch out one by one");
                    for one in part.into_iter().rev() {
                        self.alone.push_front(one);
                    }
                    Err(error)
                }
                Err(error) => {
                    let callers = part.into_iter().map(|one| one.caller);
                    self.answers.extend(callers.map(|caller| (caller, Err(error.clone()))));
                    Err(error)
                }
            }
        })
    }

    fn has_more(&self) -> bool {
        !self.alone.is_empty()
    }

    fn answer(mut self: Box<Self>, failure: Option<StoreError>) {
        // Those that were not carried out because the group failed before.
        self.take();
        // Callers may have gone; what was committed stays.
        for (caller, answer) in self.answers.drain(..) {
            let _ = caller.send(match &failure {
                Some(failure) => answer.and(Err(failure.clone())),
                None => answer,
            });
        }
        let failure = failure.unwrap_or_else(gone);
        for one in self.together.drain(..).chain(self.alone.drain(..)) {
            let _ = one.caller.send(Err(failure.clone()));
        }
    }
}

impl<C: Call> Drop for Batch<C> {
    /// If the writer ends without its turn, its calls end too.
    fn drop(&mut self) {
        self.take();
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{ConnectOptions, sqlite::SqliteConnectOptions};

    use super::*;
    use crate::sqlite::{checkpoint::Checkpoints, clock::Clock};

    /// Writes a number, and answers how many calls there were in its part. A number that exists already fails.
    struct Write(JobId, i64);

    impl Call for Write {
        type Answer = usize;

        fn job(&self) -> JobId {
            self.0
        }

        async fn carry_out(
            conn: &mut SqliteConnection,
            _now: i64,
            calls: &[&Self],
        ) -> Result<Vec<usize>, StoreError> {
            for call in calls {
                let query = sqlx::query("insert into numbers values ($1)").bind(call.1);
                query.execute(&mut *conn).await?;
            }
            Ok(vec![calls.len(); calls.len()])
        }
    }

    /// Fails like a disk whose error ends the whole transaction.
    struct BreakDisk(JobId);

    impl Call for BreakDisk {
        type Answer = ();

        fn job(&self) -> JobId {
            self.0
        }

        async fn carry_out(
            conn: &mut SqliteConnection,
            _now: i64,
            _calls: &[&Self],
        ) -> Result<Vec<()>, StoreError> {
            sqlx::query("rollback").execute(conn).await?;
            Err(sqlx::Error::Io(std::io::Error::other("the disk")).into())
        }
    }

    /// A writer on a table of numbers.
    async fn writer() -> Result<Writer, sqlx::Error> {
        let options = SqliteConnectOptions::new().in_memory(true);
        let mut conn = options.connect().await?;
        sqlx::query("create table numbers (n integer primary key)").execute(&mut conn).await?;
        Ok(Writer::start(options, conn, Clock::default(), Checkpoints::never(), None))
    }

    async fn written(writer: &Writer) -> Result<Vec<i64>, StoreError> {
        let query = sqlx::query_scalar("select n from numbers order by n");
        writer.run(|conn, _now| Box::pin(async move { Ok(query.fetch_all(conn).await?) })).await
    }

    /// On one thread, so that all calls wait at the same time.
    #[tokio::test]
    async fn failed_part_is_carried_out_one_by_one() -> Result<(), StoreError> {
        let (writer, calls) = (writer().await?, Gathered::default());
        let write = |number| calls.call(&writer, Write(JobId::new(), number));
        let (first, second) = tokio::join!(write(1), write(2));
        assert_eq!((first?, second?), (2, 2), "carried out together");
        let (third, exists, fourth) = tokio::join!(write(3), write(1), write(4));
        assert_eq!((third?, fourth?), (1, 1), "carried out alone");
        assert!(exists.is_err_and(|error| !error.is_unavailable()));
        assert_eq!(written(&writer).await?, [1, 2, 3, 4]);
        Ok(())
    }

    /// As unavailable, not as an error of the statement that finds no savepoint: a worker repeats a settle then.
    #[tokio::test]
    async fn error_that_ends_the_transaction_is_that_of_all_its_requests() -> Result<(), StoreError>
    {
        let (writer, breaking, calls) = (writer().await?, Gathered::default(), Gathered::default());
        let fail = || breaking.call(&writer, BreakDisk(JobId::new()));
        let write = calls.call(&writer, Write(JobId::new(), 1));
        let (first, second, other) = tokio::join!(fail(), fail(), write);
        assert!(first.is_err_and(|error| error.is_unavailable()));
        assert!(second.is_err_and(|error| error.is_unavailable()));
        assert!(other.is_err_and(|error| error.is_unavailable()));
        Ok(())
    }

    #[tokio::test]
    async fn calls_about_one_job_are_carried_out_in_order() -> Result<(), StoreError> {
        let (writer, calls) = (writer().await?, Gathered::default());
        let job = JobId::new();
        let write = |job, number| calls.call(&writer, Write(job, number));
        let (first, other, again) =
            tokio::join!(write(job, 1), write(JobId::new(), 2), write(job, 3));
        assert_eq!((first?, other?, again?), (2, 2, 1));
        Ok(())
    }

    #[tokio::test]
    async fn closed_writer_has_answered_calls_that_waited_and_rejects_the_rest()
    -> Result<(), StoreError> {
        let (writer, calls) = (writer().await?, Gathered::default());
        let write = |number| calls.call(&writer, Write(JobId::new(), number));
        let (first, second, ()) = tokio::join!(write(1), write(2), writer.close());
        assert_eq!((first?, second?), (2, 2));
        assert!(write(3).await.is_err_and(|error| error.is_unavailable()));
        Ok(())
    }
}
