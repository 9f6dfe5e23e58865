//! One look at the store for all who want to know the same.

use std::{sync::Arc, time::Instant};

use tokio::sync::Mutex;

use super::BlobError;

/// The latest look. Clones share it.
#[derive(Clone, Default)]
pub(super) struct SharedLook(Arc<Mutex<Option<Look>>>);

/// When a look began, and its result.
type Look = (Instant, Result<(), BlobError>);

impl SharedLook {
    /// The result of a look that begins after this call. Callers that wait for each other share one, whether it
    /// succeeds or not, so that a store that hangs delays all of them by two looks at most.
    pub async fn after_now(
        &self,
        look: impl Future<Output = Result<(), BlobError>>,
    ) -> Result<(), BlobError> {
        let called = Instant::now();
        let mut latest = self.0.lock().await;
        if let Some((began, result)) = &*latest
            && *began >= called
        {
            return result.as_ref().map_err(BlobError::duplicate).copied();
        }
        let began = Instant::now();
        let result = look.await;
        let answer = result.as_ref().map_err(BlobError::duplicate).copied();
        *latest = Some((began, result));
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn waiting_callers_share_a_failure() {
        let (shared, looks) = (SharedLook::default(), AtomicU32::new(0));
        let look = || {
            shared.after_now(async {
                looks.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                Err(BlobError::Late)
            })
        };
        let results = futures::future::join_all((0..100).map(|_| look())).await;
        assert!(results.iter().all(|result| matches!(result, Err(BlobError::Late))));
        assert!(looks.load(Ordering::SeqCst) <= 2, "{looks:?}");
        assert!(look().await.is_err());
        assert!(looks.load(Ordering::SeqCst) >= 2, "a later caller looks again");
    }
}
