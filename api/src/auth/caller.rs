//! The caller of a request, and the problems of callers without access.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, request::Parts},
};
use safelight_domain::{Owner, Scope, Scopes};

use super::key_needed::challenge;
use crate::http::{
    extract::single_header,
    problem::{Problem, ProblemCode},
};

/// The owner on whose behalf an admin acts: a name, or `*` for all.
pub const ON_BEHALF: HeaderName = HeaderName::from_static("safelight-owner");

/// Who sends a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The owner of what the caller creates.
    pub owner: Owner,
    /// The owner whose objects it sees; `None` for all owners.
    pub(super) sees: Option<Owner>,
    pub(super) scopes: Scopes,
    /// The prefix of its key; `None` for loopback access without keys.
    pub(super) key: Option<String>,
}

impl Caller {
    /// A client on this machine before any key exists: it may do and see everything.
    pub(super) fn local() -> Self {
        Self { owner: Owner::local(), sees: None, scopes: Scopes::all(), key: None }
    }

    /// The holder of a key with all scopes; without an owner, a client on this machine before any key exists.
    #[cfg(test)]
    pub fn test(owner: Option<&str>) -> Self {
        let Some(owner) = owner.and_then(|name| name.parse::<Owner>().ok()) else {
            return Self::local();
        };
        let sees = Some(owner.clone());
        Self { owner, sees, scopes: Scopes::all(), key: Some("sl_test".to_owned()) }
    }

    /// Whether this caller sees objects of `owner`. Objects that it does not see answer 404.
    pub fn may_see(&self, owner: &Owner) -> bool {
        self.sees.as_ref().is_none_or(|seen| seen == owner)
    }

    /// The owner that lists are limited to; `None` for all owners.
    pub fn sees(&self) -> Option<&Owner> {
        self.sees.as_ref()
    }

    /// Whether it came with a key, rather than by loopback access.
    pub fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Whether it may do what a scope allows.
    pub fn has(&self, scope: Scope) -> bool {
        self.scopes.allow(scope)
    }

    /// The same caller, acting for the owner that the request names.
    pub fn on_behalf(self, headers: &HeaderMap) -> Result<Self, Problem> {
        let code = ProblemCode::InvalidHeader;
        let Some(name) = single_header(headers, &ON_BEHALF, code)? else { return Ok(self) };
        if !self.has(Scope::Admin) {
            return Err(scope_missing(Scope::Admin, &[Scope::Admin]));
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
        caller.ok_or_else(|| Problem::internal(&"a public route needs its caller"))
    }
}

/// The key is not valid. The response does not say which of the three reasons it is.
pub(super) fn invalid_key() -> Problem {
    let detail = "The key is unknown, revoked or expired.";
    let problem = Problem::new(ProblemCode::InvalidKey, detail);
    challenge(problem, ", error=\"invalid_token\"")
}

/// The request presents something else than a key. It is answered like one that presents nothing.
pub(super) fn other_scheme() -> Problem {
    let problem = Problem::new(ProblemCode::InvalidKey, "The request presents no key.");
    challenge(problem, "").hint("the only scheme is `Bearer`")
}

/// The key lacks the scope `missing`, one of those that the route `needs`.
pub fn scope_missing(missing: Scope, needs: &[Scope]) -> Problem {
    let names: Vec<_> = needs.iter().map(|scope| scope.as_str()).collect();
    let error = format!(", error=\"insufficient_scope\", scope=\"{}\"", names.join(" "));
    let detail = format!("The key lacks the scope `{missing}`.");
    challenge(Problem::new(ProblemCode::ScopeMissing, detail), &error)
        .with("scope", missing.as_str())
}

#[cfg(test)]
mod tests {
    use axum::http::header;

    use super::*;
    use crate::auth::key_needed::key_missing;

    #[test]
    fn rejected_callers_learn_why_as_rfc_6750_says() {
        let challenge = |problem: Problem| problem.sent_header(&header::WWW_AUTHENTICATE);
        assert_eq!(challenge(key_missing()), "Bearer realm=\"safelight\"");
        assert_eq!(challenge(other_scheme()), "Bearer realm=\"safelight\"");
        let invalid = "Bearer realm=\"safelight\", error=\"invalid_token\"";
        assert_eq!(challenge(invalid_key()), invalid);
        assert_eq!(
            challenge(scope_missing(Scope::Read, &[Scope::Upload, Scope::Read])),
            "Bearer realm=\"safelight\", error=\"insufficient_scope\", scope=\"upload read\""
        );
    }
}
