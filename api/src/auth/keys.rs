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

use super::caller::{Caller, invalid_key};
use crate::http::{
    extract::single_header,
    problem::{Problem, ProblemCode},
};

/// How often a node notes that a key is used.
const NOTED_EVERY: Duration = Duration::from_mins(1);

/// How long a key that has read metrics stays usable while the database is unavailable.
const REMEMBERED: Duration = Duration::from_hours(1);

/// The secret in `Authorization: Bearer …` (RFC 6750, section 2.1).
fn presented(headers: &HeaderMap) -> Result<ApiSecret, Problem> {
    let text = single_header(headers, &header::AUTHORIZATION, ProblemCode::InvalidHeader)?;
    let (scheme, secret) = text.and_then(|text| text.split_once(' ')).ok_or_else(invalid_key)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(invalid_key().hint("the only scheme is `Bearer`"));
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
}

impl Keys {
    /// The keys in `store`.
    pub fn new(store: Arc<dyn Access>) -> Self {
        let scrapers = Cache::builder().max_capacity(100).time_to_live(REMEMBERED).build();
        Self { store, noted: Mutex::default(), scrapers }
    }

    /// The holder of the key that a request presents. The database is asked each time, so that every node
    /// rejects a revoked key from the next request on.
    ///
    /// The one exception is metrics while the database is unavailable: a key that has read them recently
    /// stays usable.
    pub async fn holder(&self, headers: &HeaderMap, scopes: &[Scope]) -> Result<Caller, Problem> {
        let secret = presented(headers)?;
        let is_scrape = scopes == [Scope::Metrics];
        let known = match self.store.api_key(secret.prefix()).await {
            Err(error) if error.is_unavailable() && is_scrape => {
                return self.remembered(&secret).ok_or(error.into());
            }
            known => known?,
        };
        let known = known.filter(|known| secret.is(&known.secret_sha256) && known.is_live);
        let key = known.ok_or_else(invalid_key)?.key;
        self.note_use(&key);
        let caller = Caller {
            sees: Some(key.owner.clone()),
            owner: key.owner,
            scopes: key.scopes,
            key: Some(key.prefix),
        };
        if is_scrape {
            self.remember(&secret, &caller);
        }
        Ok(caller)
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
