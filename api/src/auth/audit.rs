//! The audit log: what admins changed.

use std::sync::Arc;

use axum::http::{Method, header, request::Parts};
use axum::response::Response;
use safelight_domain::{Scope, new_id};
use safelight_store::{Access, AuditEntry};

use super::caller::{Caller, ON_BEHALF};

/// Details of a change that only the request's body contains: a handler adds them to its response, for the
/// audit log.
#[derive(Debug, Clone)]
pub struct AuditDetail(pub String);

/// Writes the audit log.
#[derive(Clone)]
pub struct AuditLog {
    store: Arc<dyn Access>,
}

impl AuditLog {
    /// The log in `store`.
    pub const fn new(store: Arc<dyn Access>) -> Self {
        Self { store }
    }

    /// The entry for a request, if it changes something with an admin's rights.
    pub fn entry(scopes: &[Scope], caller: &Caller, request: &Parts) -> Option<AuditEntry> {
        let by_admin = scopes.contains(&Scope::Admin) || request.headers.contains_key(&ON_BEHALF);
        if !by_admin || matches!(request.method, Method::GET | Method::HEAD) {
            return None;
        }
        Some(AuditEntry {
            id: new_id(),
            at: chrono::Utc::now(),
            key: caller.key.clone(),
            owner: caller.owner.clone(),
            action: request.method.to_string(),
            target: request.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        })
    }

    /// Records the change, with details from the response. A rejected request changed nothing; one that
    /// failed on the server may have changed something.
    pub async fn record(&self, mut entry: AuditEntry, response: &mut Response) {
        if response.status().is_client_error() {
            return;
        }
        if let Some(AuditDetail(detail)) = response.extensions_mut().remove() {
            entry.target = format!("{} {detail}", entry.target);
        }
        let created = response.headers().get(header::LOCATION).and_then(|at| at.to_str().ok());
        if let Some(created) = created {
            entry.target = format!("{} -> {created}", entry.target);
        }
        tracing::info!(
            target: "safelight_audit", key = entry.key, owner = %entry.owner,
            action = entry.action, on = entry.target, "an admin changed something"
        );
        if let Err(error) = self.store.audit(&entry).await {
            tracing::error!(%error, "the audit log could not be written; see the line before");
        }
    }
}
