//! Answers that are held back or go on: a key that was good when they began may be revoked, or expire, before
//! they end.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{Caller, invalid_key, key_missing};
use crate::{problem::Problem, state::ApiState};

/// Between two looks at the key of those who wait: with what a look takes, how long a right outlives its key.
const LOOK: Duration = Duration::from_secs(1);

/// Those of everybody who waits on this node, by key; without one they are the local machine's. One look serves
/// all who came with the same key, however many wait for however much.
#[derive(Default)]
pub struct Rights(Mutex<HashMap<Option<String>, Weak<Lapse>>>);

/// A caller's right to be answered, looked after for as long as this lives.
#[derive(Clone)]
pub struct Right(Arc<Lapse>);

struct Lapse {
    key: Option<String>,
    /// Cancelled when the right is over. That is for good: no key comes back.
    over: CancellationToken,
}

impl Right {
    /// That of `caller`, who was let in just now.
    pub fn of(state: &ApiState, caller: &Caller) -> Self {
        let mut known = state.rights.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(right) = known.get(&caller.key).and_then(Weak::upgrade) {
            return Self(right);
        }
        known.retain(|_, right| right.strong_count() > 0);
        let right = Arc::new(Lapse { key: caller.key.clone(), over: CancellationToken::new() });
        known.insert(caller.key.clone(), Arc::downgrade(&right));
        tokio::spawn(look_after(state.clone(), Arc::downgrade(&right)));
        Self(right)
    }

    /// Returns once the right is over, with what to tell whoever had it.
    pub async fn lapsed(&self) -> Problem {
        self.0.over.cancelled().await;
        if self.0.key.is_some() { invalid_key() } else { key_missing() }
    }
}

/// Looks until the right is over or nobody has it any more.
async fn look_after(state: ApiState, right: Weak<Lapse>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(right) = right.upgrade() else { return };
        if is_over(&state, right.key.as_deref()).await {
            return right.over.cancel();
        }
    }
}

/// Whether the key is good no more. While the database is away nobody knows, and there is nothing to tell.
async fn is_over(state: &ApiState, key: Option<&str>) -> bool {
    let store = &state.services.store;
    match key {
        Some(prefix) => {
            store.api_key(prefix).await.is_ok_and(|known| known.is_none_or(|known| !known.is_live))
        }
        None => store.has_api_keys().await.unwrap_or(false),
    }
}
