//! Who asks, and whether they may: one place, before any handler.
//!
//! ```text
//! request ─▶ guard ─ rules: what does the route ask for?
//!              ├─ nothing (probes, pictures) ──────────────────────────▶ handler
//!              ├─ Bearer key ─ known, live, right secret, scope ─┐
//!              └─ no key ─ is this the local machine, and were ──┴─▶ Caller ─▶ handler
//!                 there never any keys?
//! ```
//!
//! Handlers get a [`Caller`] and look only at what it [may see](Caller::may_see); those that hold an answer back, or
//! send it bit by bit, give up when its [`Right`] is over. Pictures are the
//! exception: most are public, so delivery asks by itself once it knows that one is not.

mod keys;
mod loopback;
mod session_guard;
pub mod signed_urls;

pub use crate::routes::keys as admin;
pub use signed_urls as signed;
use crate::routes::access as rules;
use loopback as door;
use session_guard as right;

use axum::{
    extract::{FromRequestParts, MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header, request::Parts, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};
use safelight_domain::{Owner, Scope, Scopes};
use safelight_store::AuditEntry;
use tracing::Instrument;
use uuid::Uuid;

pub use door::Door;
pub use keys::KeyUses;
pub use right::{Right, Rights};
pub use rules::{Need, document};

use crate::{
    limits::Counted,
    problem::{Problem, ProblemCode},
    state::ApiState,
    uploads,
};

/// For whom an admin acts: an owner's name, or `*` for all.
pub const ON_BEHALF: HeaderName = HeaderName::from_static("safelight-owner");

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Whose what it makes will be.
    pub owner: Owner,
    /// Whose things it sees; `None` for everybody's.
    sees: Option<Owner>,
    /// What it may do.
    scopes: Scopes,
    /// The prefix of its key; `None` if it has none and needs none.
    key: Option<String>,
}

impl Caller {
    /// Somebody on this machine, where there are no keys: everything is theirs.
    fn local() -> Self {
        Self { owner: Owner::local(), sees: None, scopes: Scopes::all(), key: None }
    }

    /// Whether what belongs to `owner` is there for this caller.
    pub fn may_see(&self, owner: &Owner) -> bool {
        self.sees.as_ref().is_none_or(|seen| seen == owner)
    }

    /// The owner that lists are narrowed to; `None` for everybody's.
    pub fn sees(&self) -> Option<&Owner> {
        self.sees.as_ref()
    }

    /// Whether it came with a key; without one it is this machine, before there were any keys.
    pub fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Whether it may do what a scope allows.
    pub fn has(&self, scope: Scope) -> bool {
        self.scopes.allow(scope)
    }

    /// The same caller, acting for whom the request says.
    pub fn on_behalf(self, headers: &HeaderMap) -> Result<Self, Problem> {
        let code = ProblemCode::InvalidHeader;
        let Some(name) = crate::extract::single_header(headers, &ON_BEHALF, code)? else {
            return Ok(self);
        };
        if !self.has(Scope::Admin) {
            return Err(scope_missing(Scope::Admin));
        }
        if name == "*" {
            return Ok(Self { sees: None, ..self });
        }
        let owner: Owner = name.parse().map_err(|error| {
            Problem::new(code, format!("`Safelight-Owner`: {error}; `*` stands for all."))
        })?;
        Ok(Self { owner: owner.clone(), sees: Some(owner), ..self })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Problem::internal(&"a route without a rule asks who calls"))
    }
}

/// Middleware of every route: lets through who may, and tells handlers who it is.
pub async fn guard(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let need = rules::need(request.method(), path.unwrap_or_default());
    let Need::Scopes(scopes) = need else { return next.run(request).await };
    let (mut parts, body) = request.into_parts();
    let (caller, rate) = match admit(&state, &parts, scopes).await {
        Ok(admitted) => admitted,
        Err(problem) => {
            // A client that is still sending would not see an answer that comes with a reset.
            uploads::leave_unread(&state, &parts.headers, body);
            return problem.into_response();
        }
    };
    let deed = deed(scopes, &caller, &parts);
    parts.extensions.insert(caller);
    let request = Request::from_parts(parts, body);
    let mut response = match deed {
        None => next.run(request).await,
        Some(deed) => noted(state, deed, request, next).await,
    };
    response.headers_mut().extend(rate);
    response
}

/// What only a request's body says of a deed: a handler puts it into its answer, for the audit log.
#[derive(Debug, Clone)]
pub struct Particulars(pub String);

/// Does what an admin asks for, and notes it. In a task of its own: who hangs up meanwhile stops neither.
async fn noted(state: ApiState, mut deed: AuditEntry, request: Request, next: Next) -> Response {
    let done = async move {
        let mut response = next.run(request).await;
        // What failed on our side may have been done all the same.
        if !response.status().is_client_error() {
            if let Some(Particulars(what)) = response.extensions_mut().remove() {
                deed.target = format!("{} {what}", deed.target);
            }
            let made = response.headers().get(header::LOCATION).and_then(|at| at.to_str().ok());
            if let Some(made) = made {
                deed.target = format!("{} -> {made}", deed.target);
            }
            note_deed(&state, &deed).await;
        }
        response
    };
    match tokio::spawn(done.in_current_span()).await {
        Ok(response) => response,
        Err(error) => Problem::internal(&error).into_response(),
    }
}

/// The caller, if it may do what the route asks for, and how often it has asked.
async fn admit(
    state: &ApiState,
    request: &Parts,
    scopes: &[Scope],
) -> Result<(Caller, HeaderMap), Problem> {
    let headers = &request.headers;
    let authority = request.uri.authority().map(Authority::as_str);
    let caller = identify(state, headers, authority, scopes).await?.ok_or_else(key_missing)?;
    let config = &state.services.config;
    let counted = |counted| state.rates.count(config, &caller.owner, counted);
    let mut rate = counted(Counted::Requests).await?;
    if is_upload(request) {
        for (name, value) in &counted(Counted::Uploads).await? {
            rate.append(name, value.clone());
        }
    }
    if let Some(lacking) = scopes.iter().find(|scope| !caller.has(**scope)) {
        return Err(scope_missing(*lacking));
    }
    Ok((caller.on_behalf(headers)?, rate))
}

fn is_upload(request: &Parts) -> bool {
    request.method == Method::POST && request.uri.path() == "/v1/images"
}

/// Who sent a request with these headers to this `authority` (of an HTTP/2 request) for what `scopes` allow;
/// `None` if it does not say so and must. Whether it has them is for the caller to look at.
pub async fn identify(
    state: &ApiState,
    headers: &HeaderMap,
    authority: Option<&str>,
    scopes: &[Scope],
) -> Result<Option<Caller>, Problem> {
    if headers.contains_key(header::AUTHORIZATION) {
        return keys::holder(state, headers, scopes).await.map(Some);
    }
    let is_open = state.door.is_open(&state.services.store, headers, authority).await?;
    Ok(is_open.then(Caller::local))
}

/// What the audit log will say of a request, if it changes something with an admin's rights.
fn deed(scopes: &[Scope], caller: &Caller, request: &Parts) -> Option<AuditEntry> {
    let is_admins = scopes.contains(&Scope::Admin) || request.headers.contains_key(&ON_BEHALF);
    if !is_admins || matches!(request.method, Method::GET | Method::HEAD) {
        return None;
    }
    Some(AuditEntry {
        id: Uuid::now_v7(),
        at: chrono::Utc::now(),
        key: caller.key.clone(),
        owner: caller.owner.clone(),
        action: request.method.to_string(),
        target: request.uri.path_and_query().map_or_else(String::new, ToString::to_string),
    })
}

async fn note_deed(state: &ApiState, entry: &AuditEntry) {
    tracing::info!(
        target: "safelight_audit", key = entry.key, owner = %entry.owner, action = entry.action,
        on = entry.target, "an admin did this"
    );
    if let Err(error) = state.services.store.audit(entry).await {
        tracing::error!(%error, "the audit log could not be written; see the line before");
    }
}

/// The request needs a key.
pub fn key_missing() -> Problem {
    challenge(Problem::new(ProblemCode::KeyMissing, "This needs a key."))
        .hint("send `Authorization: Bearer sl_…`; `safelight keys create` makes a key")
}

/// The key is none, or none any more. Which of these is nobody's business.
fn invalid_key() -> Problem {
    let detail = "The key is unknown, revoked or expired.";
    challenge(Problem::new(ProblemCode::InvalidKey, detail))
}

/// What every 401 carries (RFC 9110, section 11.6.1).
fn challenge(problem: Problem) -> Problem {
    let scheme = HeaderValue::from_static("Bearer realm=\"safelight\"");
    problem.header(header::WWW_AUTHENTICATE, scheme)
}

/// The key may not do this.
pub fn scope_missing(scope: Scope) -> Problem {
    Problem::new(ProblemCode::ScopeMissing, format!("The key lacks the scope `{scope}`."))
        .with("scope", scope.as_str())
}
