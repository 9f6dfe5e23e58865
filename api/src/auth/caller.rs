//! The caller of a request, and the problems of callers without access.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts},
};
use safelight_domain::{Owner, Scope, Scopes};

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
        caller.ok_or_else(|| Problem::internal(&"a public route needs its caller"))
    }
}

/// The request needs a key.
pub fn key_missing() -> Problem {
    challenge(Problem::new(ProblemCode::KeyMissing, "This needs a key."))
        .hint("send `Authorization: Bearer sl_…`; `safelight keys create` makes a key")
}

/// The key is not valid. The response does not say which of the three reasons it is.
pub(super) fn invalid_key() -> Problem {
    let detail = "The key is unknown, revoked or expired.";
    challenge(Problem::new(ProblemCode::InvalidKey, detail))
}

/// Every 401 carries the challenge (RFC 9110, section 11.6.1).
fn challenge(problem: Problem) -> Problem {
    let scheme = HeaderValue::from_static("Bearer realm=\"safelight\"");
    problem.header(header::WWW_AUTHENTICATE, scheme)
}

/// The key lacks a scope.
pub fn scope_missing(scope: Scope) -> Problem {
    Problem::new(ProblemCode::ScopeMissing, format!("The key lacks the scope `{scope}`."))
        .with("scope", scope.as_str())
}
