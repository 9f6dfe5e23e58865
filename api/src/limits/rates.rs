//! How often an owner may ask.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use safelight_config::OwnerLimits;
use safelight_domain::Owner;
use safelight_shared_cache::SharedCache;

use super::bucket::{Buckets, Rate, Taken};
use crate::http::problem::{Problem, ProblemCode};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The window over which rates are counted.
const WINDOW: Duration = Duration::from_mins(1);

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Every call of the API.
    Requests,
    /// Uploads, beside that.
    Uploads,
}

impl Counted {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Uploads => "uploads",
        }
    }

    fn rate(self, limits: OwnerLimits) -> Option<Rate> {
        let tokens = match self {
            Self::Requests => limits.requests_per_minute,
            Self::Uploads => limits.uploads_per_minute,
        };
        (tokens > 0).then_some(Rate { tokens, window: WINDOW })
    }
}

/// The rates of all owners.
pub struct Rates(Buckets);

impl Rates {
    /// Without any requests yet.
    pub fn new(shared_cache: Option<SharedCache>) -> Self {
        Self(Buckets::new(shared_cache, WINDOW))
    }

    /// Counts one of `counted` for `owner`. Returns the headers that show what is left; the problem beyond
    /// the limit has them too.
    pub async fn count(
        &self,
        owner: &Owner,
        counted: Counted,
        limits: OwnerLimits,
    ) -> Result<HeaderMap, Problem> {
        let Some(rate) = counted.rate(limits) else { return Ok(HeaderMap::new()) };
        let taken = self.0.take(&format!("{owner}:{}", counted.as_str()), rate).await;
        let headers = headers(counted, rate, taken);
        if taken.allowed {
            return Ok(headers);
        }
        let seconds = seconds(taken.wait);
        let problem = Problem::new(
            ProblemCode::RateLimited,
            format!("No more than {} {} a minute.", rate.tokens, counted.as_str()),
        );
        let problem = problem.header(header::RETRY_AFTER, HeaderValue::from(seconds));
        Err(headers.into_iter().fold(problem, |problem, (name, value)| match name {
            Some(name) => problem.header(name, value),
            None => problem,
        }))
    }
}

/// `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10): `r` requests are left for the
/// next `t` seconds, after which there is one more, whether or not this one was allowed.
fn headers(counted: Counted, rate: Rate, taken: Taken) -> HeaderMap {
    let (name, window) = (counted.as_str(), rate.window.as_secs());
    let policy = format!("\"{name}\";q={};w={window}", rate.tokens);
    let limit = format!("\"{name}\";r={};t={}", taken.remaining, seconds(taken.wait));
    let texts = [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, limit)];
    let values = texts.into_iter().map(|(name, text)| (name, HeaderValue::from_str(&text)));
    values.filter_map(|(name, value)| Some((name, value.ok()?))).collect()
}

/// Whole seconds, rounded up: a client that waits for them does not ask too early.
fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}
