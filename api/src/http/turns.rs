//! Turns: few things of a kind run at a time, and a bounded number waits to run. Who has many waits for its own, and
//! not everybody for the database.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{extract::FromRequestParts, http::request::Parts};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// How long one waits for its turn.
const QUEUE_TIME: Duration = Duration::from_secs(5);

/// The turns of one owner, key or kind.
pub struct Turns {
    /// To run.
    pub(crate) running: Arc<Semaphore>,
    /// To wait for that.
    pub(crate) queue: Semaphore,
}

/// One turn, until all clones are dropped or it is ended.
#[derive(Clone, Default)]
pub struct Turn(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Turns {
    /// `running` at a time, while at most `queued` others wait.
    pub fn new(running: usize, queued: usize) -> Self {
        Self { running: Arc::new(Semaphore::new(running)), queue: Semaphore::new(queued) }
    }

    /// Waits for a turn; `None` if too many wait already, or if it takes too long.
    pub async fn take(&self) -> Option<Turn> {
        let _queued = self.queue.try_acquire().ok()?;
        let permit = timeout(QUEUE_TIME, self.running.clone().acquire_owned()).await.ok()?.ok()?;
        Some(Turn(Arc::new(Mutex::new(Some(permit)))))
    }
}

impl Turn {
    /// Ends it early: for a request that goes on by waiting for something else.
    pub fn end(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Turn {
    type Rejection = Infallible;

    /// The turn of the request; one without effect if it needs none.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn few_run_some_wait_and_the_rest_is_rejected() {
        let turns = Arc::new(Turns::new(1, 1));
        let first = turns.take().await.expect("nobody runs");
        let waiting = tokio::spawn({
            let turns = turns.clone();
            async move { turns.take().await.is_some() }
        });
        tokio::task::yield_now().await;
        assert!(turns.take().await.is_none(), "one waits already");
        first.end();
        assert!(waiting.await.expect("no panic"), "an ended turn is free");
        let _running = turns.take().await.expect("the second has ended");
        assert!(turns.take().await.is_none(), "it takes too long");
    }
}
