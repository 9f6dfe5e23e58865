//! Responses that are delayed or streamed: a key that was valid at their start may be revoked, or expire,
//! before their end.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use safelight_store::Access;
use tokio_util::sync::CancellationToken;

use super::{
    caller::{Caller, invalid_key},
    key_needed::key_missing,
};
use crate::http::problem::Problem;

/// Time between two checks of a key. A session outlives its key by this and the duration of a check.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The guards of all sessions on this node, by key; `None` is loopback access. One check serves all sessions
/// with the same key.
pub struct SessionGuards {
    store: Arc<dyn Access>,
    by_key: Mutex<HashMap<Option<String>, Weak<Session>>>,
}

/// Watches the key of one caller for as long as this lives.
#[derive(Clone)]
pub struct SessionGuard(Arc<Session>);

struct Session {
    key: Option<String>,
    /// Cancelled when the key is no longer valid. That is final: no key becomes valid again.
    ended: CancellationToken,
}

impl SessionGuards {
    /// Guards over the keys in `store`.
    pub fn new(store: Arc<dyn Access>) -> Self {
        Self { store, by_key: Mutex::default() }
    }

    /// The guard of `caller`, whose key was checked just now.
    pub fn guard(&self, caller: &Caller) -> SessionGuard {
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = by_key.get(&caller.key).and_then(Weak::upgrade) {
            return SessionGuard(session);
        }
        by_key.retain(|_, session| session.strong_count() > 0);
        let session = Session { key: caller.key.clone(), ended: CancellationToken::new() };
        let session = Arc::new(session);
        by_key.insert(caller.key.clone(), Arc::downgrade(&session));
        tokio::spawn(watch(self.store.clone(), Arc::downgrade(&session)));
        SessionGuard(session)
    }
}

impl SessionGuard {
    /// Returns once the key is no longer valid, with the problem for its holder.
    pub async fn ended(&self) -> Problem {
        self.0.ended.cancelled().await;
        if self.0.key.is_some() { invalid_key() } else { key_missing() }
    }
}

/// Checks the key until it is invalid or no guard is left.
async fn watch(store: Arc<dyn Access>, session: Weak<Session>) {
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let Some(session) = session.upgrade() else { return };
        if has_ended(&*store, session.key.as_deref()).await {
            return session.ended.cancel();
        }
    }
}

/// Whether the key is no longer valid. While the database is unavailable the session continues.
async fn has_ended(store: &dyn Access, key: Option<&str>) -> bool {
    match key {
        Some(prefix) => {
            store.api_key(prefix).await.is_ok_and(|known| known.is_none_or(|known| !known.is_live))
        }
        None => store.has_api_keys().await.unwrap_or(false),
    }
}
