//! The audit log, for admins.

use axum::{extract::State, http::Uri};
use chrono::{DateTime, Utc};
use safelight_domain::{Owner, Scope};
use safelight_store::AuditEntry;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;
use uuid::Uuid;

use super::registry::{ApiRoutes, RouteAccess};
use crate::{
    http::{
        extract::Params,
        pagination::{Cursor, Page, next_cursor, page},
        problem::Problem,
        responses::ListProblems,
    },
    state::ApiState,
};

/// The route for the audit log.
pub fn routes() -> ApiRoutes {
    ApiRoutes::new().route(RouteAccess::scopes(&[Scope::Admin]), routes!(audit))
}

/// An entry's id.
#[derive(Clone, Copy)]
struct AuditId(Uuid);

impl Cursor for AuditId {
    const MARK: u8 = b'a';

    fn from_uuid(id: Uuid) -> Self {
        Self(id)
    }

    fn uuid(self) -> Uuid {
        self.0
    }
}

/// An action of an admin.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditEntry)]
pub struct AuditDocument {
    /// Its id.
    pub id: Uuid,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// The prefix of the key that was used; null for a command or a caller on the server's own machine.
    pub key: Option<String>,
    /// The owner of the key, or the owner that the admin acted for.
    #[schema(value_type = String)]
    pub owner: Owner,
    /// The HTTP method, or the command.
    #[schema(example = "POST")]
    pub action: String,
    /// The object of the action; for a backfill, also its kind.
    #[schema(example = "/v1/keys/0193f5e7-0000-7000-8000-000000000000")]
    pub target: String,
}

impl From<AuditEntry> for AuditDocument {
    fn from(entry: AuditEntry) -> Self {
        let AuditEntry { id, at, key, owner, action, target } = entry;
        Self { id, at, key, owner, action, target }
    }
}

/// A page of the audit log.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditLog)]
pub struct AuditListDocument {
    /// The entries, newest first.
    pub entries: Vec<AuditDocument>,
    /// The `cursor` of the next page; null on the last page.
    pub next_cursor: Option<String>,
}

/// List the actions of admins, newest first.
#[utoipa::path(
    get, path = "/v1/audit", operation_id = "list_audit", tag = "keys",
    params(
        ("limit" = Option<u32>, Query, description = "Maximum number of entries; default 50", minimum = 1, maximum = 500),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page"),
    ),
    responses(
        (status = 200, description = "A page of the audit log", body = AuditListDocument, headers(
            ("Link" = String, description = "`rel=\"next\"`: the next page (RFC 8288); absent on the last one"),
        )),
        ListProblems,
    ),
)]
pub async fn audit(
    State(state): State<ApiState>,
    uri: Uri,
    mut params: Params,
) -> Result<Page<AuditListDocument>, Problem> {
    let request = page::<AuditId>(&mut params)?.map(|id| id.0);
    params.finish()?;
    let entries = state.store.list_audit(&request).await?;
    let next = next_cursor(&request, &entries, |entry| AuditId(entry.id));
    let entries = entries.into_iter().map(Into::into).collect();
    Ok(Page { document: AuditListDocument { entries, next_cursor: next.clone() }, uri, next })
}
