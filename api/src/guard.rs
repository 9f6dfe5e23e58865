//! Middleware of every route: rejects a request whose caller does not meet what the route requires, and
//! passes the caller to the handler.

use std::sync::Arc;

use axum::{
    body::{Body, HttpBody as _},
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, Method, Version, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use safelight_domain::Scope;
use safelight_store::AuditEntry;
use tracing::Instrument;

use crate::{
    auth::{AuditLog, Caller, Client, Sender, scope_missing},
    http::{draining::Draining, problem::Problem, turns::Turn},
    limits::{Counted, Held, Refused},
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
    let sender = Sender::new(&parts.uri, &parts.headers, parts.extensions.get::<Client>());
    let caller = match identify(&state, sender, scopes).await {
        Ok(caller) => caller,
        Err(problem) => return problem.into_response(),
    };
    // Over HTTP/2, the beginning of a body that nobody reads would wait in memory with the refusal.
    let may_wait = parts.version != Version::HTTP_2 || body.is_end_stream();
    let refused = may_wait.then(|| Refused::of(&caller, sender.client.and_then(Client::address)));
    let draining = parts.extensions.get::<Draining>().cloned().unwrap_or_default();
    if let Some(refused) = &refused {
        parts.extensions.insert(refused.clone());
    }
    let requirements = (scopes, counted, takes_json);
    let response = handle(&state, caller, requirements, (parts, body), next).await;
    let problem = response.extensions().get::<Problem>();
    if let Some(refused) = refused
        && problem.is_some_and(|problem| problem.code().is_beyond_limit())
    {
        state.limits.refusals().delay(refused, &draining).await;
    }
    response
}

/// Handles a request of `caller`, if it meets what the route requires: scopes, what is counted, and whether it is to have
/// a JSON document.
async fn handle(
    state: &ApiState,
    caller: Caller,
    (scopes, counted, takes_json): (&[Scope], &[Counted], bool),
    (mut parts, body): (Parts, Body),
    next: Next,
) -> Response {
    let admitted = match admit(state, caller, &parts, scopes, counted).await {
        Ok((caller, rates)) => {
            let held = hold(state, &caller, &parts.method, takes_json).await;
            held.map(|held| (caller, rates, held))
        }
        Err(problem) => Err(problem),
    };
    // Held until the response.
    let (caller, rates, (turn, _body)) = match admitted {
        Ok(admitted) => admitted,
        Err(problem) => return problem.into_response(),
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

/// Who sends a request.
async fn identify(
    state: &ApiState,
    sender: Sender<'_>,
    scopes: &[Scope],
) -> Result<Caller, Problem> {
    Ok(state.authenticator.identify(sender, scopes).await??)
}

/// The caller, if it meets what the route requires, with the rate limit headers.
async fn admit(
    state: &ApiState,
    caller: Caller,
    request: &Parts,
    scopes: &[Scope],
    counted: &[Counted],
) -> Result<(Caller, HeaderMap), Problem> {
    let mut rates = HeaderMap::new();
    for counted in counted {
        for (name, value) in &state.limits.count(&caller.owner, *counted).await? {
            rates.append(name, value.clone());
        }
    }
    if let Some(missing) = scopes.iter().find(|scope| !caller.has(**scope)) {
        return Err(scope_missing(*missing, scopes));
    }
    Ok((caller.on_behalf(&request.headers)?, rates))
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
