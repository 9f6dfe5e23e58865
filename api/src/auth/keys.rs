//! Keys that requests present.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, header};
use moka::sync::Cache;
use safelight_domain::{ApiKey, ContentHash, Scope, secrets::ApiSecret};
use safelight_store::Access;
use uuid::Uuid;

use super::{
    caller::{Caller, invalid_key, other_scheme},
    key_lookups::{Found, KeyLookups},
};
use crate::http::{
    extract::single_header,
    problem::{Problem, ProblemCode},
    turns::Turns,
};

/// How often a node notes that a key is used.
const NOTED_EVERY: Duration = Duration::from_mins(1);

/// How long a key that has read metrics stays usable while the database is unavailable.
const REMEMBERED: Duration = Duration::from_hours(1);

/// Valid keys that are remembered.
const MAX_VALID: u64 = 10_000;

/// Lookups of one valid key at the same time, and its requests that wait for one.
const OWN_LOOKUPS: usize = 8;
const OWN_QUEUED: usize = 1024;

/// The secret in `Authorization: Bearer …` (RFC 6750, section 2.1).
pub(super) fn presented(headers: &HeaderMap) -> Result<ApiSecret, Problem> {
    let text = single_header(headers, &header::AUTHORIZATION, ProblemCode::InvalidHeader)?;
    let (scheme, secret) = text.and_then(|text| text.split_once(' ')).ok_or_else(invalid_key)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(other_scheme());
    }
    ApiSecret::parse(secret.trim()).ok_or_else(invalid_key)
}

/// The keys in the store, and what this node knows of their use.
pub struct Keys {
    store: Arc<dyn Access>,
    /// When the use of each key was last noted in the database.
    noted: Mutex<HashMap<Uuid, Instant>>,
    /// Callers that have read metrics, by the hashes of their secrets.
    scrapers: Cache<ContentHash, Caller>,
    /// The lookups of keys that were valid when they were used lately, by the hashes of their secrets.
    valid: Cache<ContentHash, Arc<Turns>>,
    /// Those of all other keys.
    others: KeyLookups,
}

impl Keys {
    /// The keys in `store`.
    pub fn new(store: Arc<dyn Access>) -> Self {
        let scrapers = Cache::builder().max_capacity(100).time_to_live(REMEMBERED).build();
        let valid = Cache::builder().max_capacity(MAX_VALID).time_to_idle(REMEMBERED).build();
        let others = KeyLookups::new(store.clone());
        Self { store, noted: Mutex::default(), scrapers, valid, others }
    }

    /// The holder of the key with this secret, which a request presents. The database is asked each time, so that
    /// every node rejects a revoked key from the next request on.
    ///
    /// The one exception is metrics while the database is unavailable: a key that has read them recently
    /// stays usable.
    pub async fn holder(&self, secret: &ApiSecret, scopes: &[Scope]) -> Result<Caller, Problem> {
        let is_scrape = scopes == [Scope::Metrics];
        let known = match self.look_up(secret).await? {
            Err(error) if error.is_unavailable() && is_scrape => {
                return self.remembered(secret).ok_or(error.into());
            }
            known => known?,
        };
        let known = known.filter(|known| secret.is(&known.secret_sha256) && known.is_live);
        let key = known.ok_or_else(invalid_key)?.key;
        let own = || Arc::new(Turns::new(OWN_LOOKUPS, OWN_QUEUED));
        self.valid.get_with(secret.hash(), own);
        self.note_use(&key);
        let caller = Caller {
            sees: Some(key.owner.clone()),
            owner: key.owner,
            scopes: key.scopes,
            key: Some(key.prefix),
        };
        if is_scrape {
            self.remember(secret, &caller);
        }
        Ok(caller)
    }

    /// The key that the database has under the prefix of `secret`. Each key that was valid lately has lookups of its
    /// own, and all others share theirs: somebody with many requests, or who tries many keys, holds up nobody else.
    async fn look_up(&self, secret: &ApiSecret) -> Result<Found, Problem> {
        let Some(own) = self.valid.get(&secret.hash()) else {
            return self.others.key(secret.prefix()).await.ok_or_else(too_many);
        };
        let _turn = own.take().await.ok_or_else(too_many_own)?;
        Ok(self.store.api_key(secret.prefix()).await)
    }

    fn remember(&self, secret: &ApiSecret, caller: &Caller) {
        self.scrapers.insert(secret.hash(), caller.clone());
    }

    fn remembered(&self, secret: &ApiSecret) -> Option<Caller> {
        self.scrapers.get(&secret.hash())
    }

    /// Records in the background that a key is used, at most once per [`NOTED_EVERY`].
    fn note_use(&self, key: &ApiKey) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if noted.get(&key.id).is_some_and(|at| now.duration_since(*at) < NOTED_EVERY) {
            return;
        }
        // Keys come and go; those of the last minute are enough.
        noted.retain(|_, at| now.duration_since(*at) < NOTED_EVERY);
        noted.insert(key.id, now);
        drop(noted);
        let (store, id) = (self.store.clone(), key.id);
        tokio::spawn(async move {
            if let Err(error) = store.note_key_use(id).await {
                tracing::debug!(%error, "cannot note that a key was used");
            }
        });
    }
}

fn too_many() -> Problem {
    let detail = "This node is looking up as many keys that it has not seen lately as it allows.";
    Problem::new(ProblemCode::TooManyRequests, detail)
}

fn too_many_own() -> Problem {
    let detail = "This node has as many requests with this key at a time as it allows.";
    Problem::new(ProblemCode::TooManyOwnRequests, detail).hint("send fewer concurrently")
}

#[cfg(test)]
mod tests {
    use safelight_store::{DynStore, NewApiKey};
    use safelight_store_sql::SqliteStore;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn key_with_many_requests_has_only_its_own_lookups() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = SqliteStore::open(&folder.path().join("keys.db")).await.expect("SQLite");
        let store: DynStore = Arc::new(store);
        store.migrate().await.expect("a schema");
        let known = ApiSecret::new().expect("random bytes");
        let new = NewApiKey {
            id: safelight_domain::new_id(),
            prefix: known.prefix().to_owned(),
            owner: "ada".parse().expect("an owner"),
            scopes: "read".parse().expect("scopes"),
            secret_sha256: known.hash(),
            lifetime: None,
        };
        store.create_api_key(&new).await.expect("a key");
        let keys = Keys::new(store);
        assert!(keys.holder(&known, &[Scope::Read]).await.is_ok());
        let other = ApiSecret::new().expect("random bytes");
        let rejected = async || keys.holder(&other, &[Scope::Read]).await.map_err(|p| p.code());
        assert_eq!(rejected().await.err(), Some(ProblemCode::InvalidKey));
        let own = keys.valid.get(&known.hash()).expect("it was valid");
        let queued = u32::try_from(OWN_QUEUED).expect("a small number");
        let waiting = own.queue.acquire_many(queued).await.expect("all");
        let busy = keys.holder(&known, &[Scope::Read]).await.map_err(|problem| problem.code());
        assert_eq!(busy.err(), Some(ProblemCode::TooManyOwnRequests));
        drop(waiting);
        assert_eq!(rejected().await.err(), Some(ProblemCode::InvalidKey));
    }
}
