//! Identifies the sender of a request.

use std::sync::Arc;

use axum::http::{HeaderMap, header};
use safelight_domain::Scope;
use safelight_store::Access;

use super::{caller::Caller, keys::Keys, loopback::LoopbackAccess};
use crate::http::problem::Problem;

/// Identifies senders by key or by loopback access. Clones share its caches.
#[derive(Clone)]
pub struct Authenticator(Arc<Inner>);

struct Inner {
    keys: Keys,
    loopback: LoopbackAccess,
}

impl Authenticator {
    /// Over the keys in `store`. `is_local`: the server is for its own machine alone.
    pub fn new(store: Arc<dyn Access>, is_local: bool) -> Self {
        let loopback = LoopbackAccess::new(store.clone(), is_local);
        Self(Arc::new(Inner { keys: Keys::new(store), loopback }))
    }

    /// Who sent a request with these headers to this `authority` (of an HTTP/2 request) on a route that needs
    /// `scopes`; `None` if it has no key and needs one. The calling function checks the scopes.
    pub async fn identify(
        &self,
        headers: &HeaderMap,
        authority: Option<&str>,
        scopes: &[Scope],
    ) -> Result<Option<Caller>, Problem> {
        if headers.contains_key(header::AUTHORIZATION) {
            return self.0.keys.holder(headers, scopes).await.map(Some);
        }
        let is_open = self.0.loopback.is_open(headers, authority).await?;
        Ok(is_open.then(Caller::local))
    }
}
