//! API keys: created, listed and revoked by admins.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use safelight_domain::{ApiKey, Owner, Scope, Scopes, new_id, secrets::ApiSecret};
use safelight_store::NewApiKey;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;
use uuid::Uuid;

use super::registry::{ApiRoutes, RouteAccess};
use crate::{
    http::{
        extract::{Id, JsonBody, Params, PathId, invalid_query},
        pagination::{Cursor, Page, next_cursor, page},
        problem::{Problem, ProblemCode},
        responses::{ListProblems, problem_responses},
    },
    state::ApiState,
};

problem_responses! {
    /// Of creating a key.
    NewKeyProblems: InvalidBody, UploadTimeout, NotJson, BodyTooLarge;
    /// Of a key.
    KeyProblems: KeyNotFound;
}

/// The routes for keys.
pub fn routes() -> ApiRoutes {
    let admin = RouteAccess::scopes(&[Scope::Admin]);
    ApiRoutes::new().route(admin, routes!(create, list)).route(admin, routes!(revoke))
}

/// A key's id.
#[derive(Clone, Copy)]
pub struct KeyId(Uuid);

impl Cursor for KeyId {
    const MARK: u8 = b'k';

    fn from_uuid(id: Uuid) -> Self {
        Self(id)
    }

    fn uuid(self) -> Uuid {
        self.0
    }
}

impl std::str::FromStr for KeyId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::parse_str(text).map(Self)
    }
}

impl PathId for KeyId {
    const NOT_FOUND: ProblemCode = ProblemCode::KeyNotFound;
}

/// A key to create.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewKey)]
pub struct KeyRequest {
    /// The owner of the key.
    #[schema(value_type = String, example = "ada", min_length = 1, max_length = 64)]
    owner: Owner,
    /// The scopes of the key, at least one.
    #[schema(value_type = Vec<Scope>, min_items = 1)]
    scopes: Scopes,
    /// Seconds until the key expires, at most 100 years; by default it never expires.
    #[schema(minimum = 1, maximum = 3_155_760_000_u64)]
    expires_in: Option<u64>,
}

/// A key, without its secret.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Key)]
pub struct KeyDocument {
    /// Its id.
    pub id: Uuid,
    /// The first characters of its secret.
    pub prefix: String,
    /// The owner.
    #[schema(value_type = String)]
    pub owner: Owner,
    /// The scopes of the key.
    #[schema(value_type = Vec<Scope>)]
    pub scopes: Scopes,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it expires; null if never.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
    /// When it was last used, accurate to about a minute.
    pub last_used_at: Option<DateTime<Utc>>,
}

impl From<ApiKey> for KeyDocument {
    fn from(key: ApiKey) -> Self {
        let ApiKey { id, prefix, owner, scopes, created_at, expires_at, revoked_at, last_used_at } =
            key;
        Self { id, prefix, owner, scopes, created_at, expires_at, revoked_at, last_used_at }
    }
}

/// A key that was just created.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MadeKey)]
pub struct MadeKeyDocument {
    /// Its id.
    pub id: Uuid,
    /// The first characters of its secret.
    pub prefix: String,
    /// The secret. The server does not keep it and never shows it again.
    pub secret: String,
}

/// Create a key.
#[utoipa::path(
    post, path = "/v1/keys", operation_id = "create_key", tag = "keys",
    request_body = KeyRequest,
    responses(
        (status = 201, description = "The key with its secret, which no later response contains", body = MadeKeyDocument, headers(
            ("Location" = String, description = "The URL of the key"),
        )),
        NewKeyProblems,
    ),
)]
pub async fn create(
    State(state): State<ApiState>,
    JsonBody(request): JsonBody<KeyRequest>,
) -> Result<Response, Problem> {
    let lifetime = request.expires_in.map(Duration::from_secs);
    if request.scopes.iter().next().is_none() {
        return Err(Problem::new(ProblemCode::InvalidBody, "A key needs at least one scope."));
    }
    if lifetime.is_some_and(|lifetime| !ApiKey::LIFETIME.contains(&lifetime)) {
        let seconds = ApiKey::LIFETIME.end().as_secs();
        let detail = format!("`expires_in` must be 1 to {seconds} seconds.");
        return Err(Problem::new(ProblemCode::InvalidBody, detail)
            .hint("omit it for a key that never expires"));
    }
    let secret = ApiSecret::new().map_err(|error| Problem::internal(&error))?;
    let new = NewApiKey {
        id: new_id(),
        prefix: secret.prefix().to_owned(),
        owner: request.owner,
        scopes: request.scopes,
        secret_sha256: secret.hash(),
        lifetime,
    };
    state.store.create_api_key(&new).await?;
    let location = HeaderValue::from_str(&format!("/v1/keys/{}", new.id))
        .map_err(|error| Problem::internal(&error))?;
    let made =
        MadeKeyDocument { id: new.id, prefix: new.prefix, secret: secret.reveal().to_owned() };
    let headers = [
        (header::LOCATION, location),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((StatusCode::CREATED, headers, Json(made)).into_response())
}

/// A page of keys.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = KeyList)]
pub struct KeyListDocument {
    /// The keys, newest first.
    pub keys: Vec<KeyDocument>,
    /// The `cursor` of the next page; null on the last page.
    pub next_cursor: Option<String>,
}

/// List keys, newest first.
#[utoipa::path(
    get, path = "/v1/keys", operation_id = "list_keys", tag = "keys",
    params(
        ("owner" = Option<String>, Query, description = "Only keys of this owner"),
        ("limit" = Option<u32>, Query, description = "Maximum number of keys; default 50", minimum = 1, maximum = 500),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page"),
    ),
    responses(
        (status = 200, description = "A page of keys", body = KeyListDocument, headers(
            ("Link" = String, description = "`rel=\"next\"`: the next page (RFC 8288); absent on the last one"),
        )),
        ListProblems,
    ),
)]
pub async fn list(
    State(state): State<ApiState>,
    uri: Uri,
    mut params: Params,
) -> Result<Page<KeyListDocument>, Problem> {
    let owner = owner(&mut params)?;
    let request = page::<KeyId>(&mut params)?.map(|id| id.0);
    params.finish()?;
    let keys = state.store.list_api_keys(owner.as_ref(), &request).await?;
    let next = next_cursor(&request, &keys, |key| KeyId(key.id));
    let keys = keys.into_iter().map(Into::into).collect();
    Ok(Page { document: KeyListDocument { keys, next_cursor: next.clone() }, uri, next })
}

/// Revoke a key.
///
/// Every node rejects the key from its next request on. Revoking a revoked key changes nothing.
#[utoipa::path(
    delete, path = "/v1/keys/{id}", operation_id = "revoke_key", tag = "keys",
    params(("id" = Uuid, Path, description = "The key's id")),
    responses((status = 200, description = "The revoked key", body = KeyDocument), KeyProblems),
)]
pub async fn revoke(
    State(state): State<ApiState>,
    Id(id): Id<KeyId>,
) -> Result<Json<KeyDocument>, Problem> {
    let revoked = state.store.revoke_api_key(id.0).await?;
    Ok(Json(revoked.ok_or_else(|| KeyId::not_found(id.0))?.into()))
}

/// The owner that a query names.
fn owner(params: &mut Params) -> Result<Option<Owner>, Problem> {
    let Some(name) = params.take("owner")? else { return Ok(None) };
    name.parse().map(Some).map_err(|error| invalid_query("owner", error))
}
