//! Identifies the sender of a request.

use std::sync::Arc;

use axum::http::header;
use safelight_domain::{Scope, secrets::ApiSecret};
use safelight_store::Access;

use super::{
    caller::{Caller, invalid_key},
    client::Sender,
    key_needed::KeyNeeded,
    keys::{Keys, presented},
    loopback::LoopbackAccess,
};
use crate::http::problem::Problem;

/// Identifies senders by key or by loopback access. Clones share its caches.
#[derive(Clone)]
pub struct Authenticator(Arc<Inner>);

struct Inner {
    keys: Keys,
    loopback: LoopbackAccess,
}

impl Authenticator {
    /// Over the keys in `store`. `is_local`: the server is for its own machine alone. `local_key` is as good as
    /// loopback access then.
    pub fn new(store: Arc<dyn Access>, is_local: bool, local_key: Option<ApiSecret>) -> Self {
        let loopback = LoopbackAccess::new(store.clone(), is_local, local_key);
        Self(Arc::new(Inner { keys: Keys::new(store), loopback }))
    }

    /// Who sent a request on a route that needs `scopes`; why it needs a key if it has none. The calling function
    /// checks the scopes.
    pub async fn identify(
        &self,
        sender: Sender<'_>,
        scopes: &[Scope],
    ) -> Result<Result<Caller, KeyNeeded>, Problem> {
        let Inner { keys, loopback } = &*self.0;
        if !sender.headers.contains_key(header::AUTHORIZATION) {
            return Ok(loopback.admit(sender).await?.map(|()| Caller::local()));
        }
        let secret = presented(sender.headers)?;
        if loopback.is_local_key(&secret) {
            return if loopback.is_keyless().await? {
                Ok(Ok(Caller::local()))
            } else {
                Err(invalid_key().hint("the local key ended with the first key"))
            };
        }
        keys.holder(&secret, scopes).await.map(Ok)
    }
}
