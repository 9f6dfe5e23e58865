//! Middleware of every route: rejects a request whose caller does not meet what the route requires, and
//! passes the caller to the handler.

use std::sync::Arc;

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, Method, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use safelight_domain::Scope;
use safelight_store::AuditEntry;
use tracing::Instrument;

use crate::{
    auth::{AuditLog, Caller, Client, Sender, scope_missing},
    http::{problem::Problem, turns::Turn},
    limits::{Counted, Held},
    routes::registry::{AccessTable, RouteAccess},
    state::ApiState,
};

/// What the guard knows. Clones share it.
#[derive(Clone)]
pub struct Guard {
    /// The parts that identify and count.
    pub state: ApiState,
    /// What each route requires.
    pub access: Arc<AccessTable>,
}

/// Middleware: see the module.
pub async fn enforce(
    State(Guard { state, access }): State<Guard>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let RouteAccess { scopes, counted, takes_json, .. } =
        access.of(request.method(), path.unwrap_or_default());
    let Some(scopes) = scopes else { return next.run(request).await };
    let (mut parts, body) = request.into_parts();
    let admitted = match admit(&state, &parts, scopes, counted).await {
        Ok((caller, rates)) => {
            let held = hold(&state, &caller, &parts.method, takes_json).await;
            held.map(|held| (caller, rates, held))
        }
        Err(problem) => Err(problem),
    };
    // Held until the response.
    let (caller, rates, (turn, _body)) = match admitted {
        Ok(admitted) => admitted,
        Err(problem) => {
            // A client that is still sending would not see a response that comes with a reset.
            state.body_policy.discard(&parts.headers, body);
            return problem.into_response();
        }
    };
    let is_read = parts.method.is_safe();
    let entry = AuditLog::entry(scopes, &caller, &parts);
    parts.extensions.insert(caller.clone());
    parts.extensions.insert(turn.clone());
    let request = Request::from_parts(parts, body);
    let mut response = match entry {
        None => next.run(request).await,
        Some(entry) => audited(state.audit_log.clone(), entry, request, next).await,
    };
    drop(turn);
    // What had an effect is answered, whatever is held: its documents are small, and a client would repeat it.
    if is_read {
        response = state.limits.in_memory().hold(&caller, response);
    }
    response.headers_mut().extend(rates);
    response
}

/// What a request holds while it is handled: one that reads, a turn; one with a JSON document, a permit for that.
async fn hold(
    state: &ApiState,
    caller: &Caller,
    method: &Method,
    takes_json: bool,
) -> Result<(Turn, Option<Held>), Problem> {
    let in_memory = state.limits.in_memory();
    let turn = if method.is_safe() { in_memory.turn(caller).await? } else { Turn::default() };
    let body = takes_json.then(|| in_memory.body(caller)).transpose()?;
    Ok((turn, body))
}

/// The caller, if it meets what the route requires, with the rate limit headers.
async fn admit(
    state: &ApiState,
    request: &Parts,
    scopes: &[Scope],
    counted: &[Counted],
) -> Result<(Caller, HeaderMap), Problem> {
    let (headers, client) = (&request.headers, request.extensions.get::<Client>());
    let sender = Sender::new(&request.uri, headers, client);
    let caller = state.authenticator.identify(sender, scopes).await??;
    let mut rates = HeaderMap::new();
    for counted in counted {
        for (name, value) in &state.limits.count(&caller.owner, *counted).await? {
            rates.append(name, value.clone());
        }
    }
    if let Some(missing) = scopes.iter().find(|scope| !caller.has(**scope)) {
        return Err(scope_missing(*missing, scopes));
    }
    Ok((caller.on_behalf(headers)?, rates))
}

/// Handles an admin's request, and records it. In a separate task: a client that hangs up meanwhile stops
/// neither.
async fn audited(log: AuditLog, entry: AuditEntry, request: Request, next: Next) -> Response {
    let carried_out = async move {
        let mut response = next.run(request).await;
        log.record(entry, &mut response).await;
        response
    };
    match tokio::spawn(carried_out.in_current_span()).await {
        Ok(response) => response,
        Err(error) => Problem::internal(&error).into_response(),
    }
}
