//! How much an owner may store, and how often it may ask.

mod bucket;

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, header},
};
use safelight_config::{Config, OwnerLimits};
use safelight_domain::{Owner, Quota, Usage};
use safelight_shared_cache::SharedCache;
use serde::Serialize;
use utoipa::ToSchema;

use self::bucket::{Buckets, Rate, Taken};
use crate::{
    access::Caller,
    openapi::LimitProblems,
    problem::{Problem, ProblemCode},
    state::ApiState,
};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What rates are counted over.
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

/// The rates of everybody.
pub struct Rates(Buckets);

impl Rates {
    /// Nobody has asked for anything yet.
    pub fn new(shared_cache: Option<SharedCache>) -> Self {
        Self(Buckets::new(shared_cache, WINDOW))
    }

    /// Counts one of `counted` for `owner`. Answers with the headers that tell how it stands; the problem that
    /// it was too many has them too.
    pub async fn count(
        &self,
        config: &Config,
        owner: &Owner,
        counted: Counted,
    ) -> Result<HeaderMap, Problem> {
        let Some(rate) = counted.rate(config.limits_of(owner)) else { return Ok(HeaderMap::new()) };
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

/// `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10).
fn headers(counted: Counted, rate: Rate, taken: Taken) -> HeaderMap {
    let (name, window) = (counted.as_str(), rate.window.as_secs());
    let policy = format!("\"{name}\";q={};w={window}", rate.tokens);
    let stands = format!("\"{name}\";r={};t={}", taken.remaining, seconds(taken.wait));
    let texts = [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, stands)];
    let values = texts.into_iter().map(|(name, text)| (name, HeaderValue::from_str(&text)));
    values.filter_map(|(name, value)| Some((name, value.ok()?))).collect()
}

/// Whole seconds, rounded up: a client that waits for them does not come too early.
fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// What an owner may store.
pub fn quota(config: &Config, owner: &Owner) -> Quota {
    let limits = config.limits_of(owner);
    let limit = |number: u64| (number > 0).then_some(number);
    Quota { images: limit(limits.quota_images), bytes: limit(limits.quota_bytes) }
}

/// How many uploads of the caller's owner a node receives at once. Who needs no key is alone on its machine, and
/// leaves nothing to anybody.
pub fn uploads_at_once(config: &Config, caller: &Caller) -> usize {
    if caller.has_key() {
        config.limits_of(&caller.owner).max_uploads_in_flight
    } else {
        config.max_uploads_in_flight
    }
}

/// There is no room for an upload.
pub fn over_quota(quota: Quota, used: Usage) -> Problem {
    let mut problem = Problem::new(
        ProblemCode::OverQuota,
        "The owner's quota has no room for this upload; deleting images makes some.",
    )
    .with("used_images", used.images)
    .with("used_bytes", used.bytes);
    if let Some(images) = quota.images {
        problem = problem.with("quota_images", images);
    }
    if let Some(bytes) = quota.bytes {
        problem = problem.with("quota_bytes", bytes);
    }
    problem
}

/// Refuses, before its body is read, an upload of `bytes` bytes that certainly does not fit. That it does is
/// decided when it is accepted.
pub async fn admit(state: &ApiState, owner: &Owner, bytes: Option<u64>) -> Result<(), Problem> {
    let quota = quota(&state.services.config, owner);
    if quota.is_unlimited() {
        return Ok(());
    }
    let used = state.services.store.usage(owner).await?;
    // Whatever comes has at least one byte.
    if quota.has_room(used, bytes.unwrap_or(1).max(1)) {
        Ok(())
    } else {
        Err(over_quota(quota, used))
    }
}

/// What a client can know beforehand.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Limits)]
pub struct LimitsDocument {
    /// Whose limits these are.
    #[schema(value_type = String)]
    pub owner: Owner,
    /// The largest upload, in bytes.
    pub max_upload_bytes: u64,
    /// Pixels that a picture may have at most.
    pub max_pixels: u64,
    /// Pixels that a side of a picture may have at most.
    pub max_side: u32,
    /// Images and bytes that are stored, and may be.
    pub quota: QuotaDocument,
    /// Calls of the API per minute; null for any number.
    pub requests_per_minute: Option<u32>,
    /// Uploads per minute; null for any number.
    pub uploads_per_minute: Option<u32>,
    /// Uploads of the owner that a node receives at once.
    pub max_uploads_in_flight: usize,
}

/// What an owner has stored, and may store.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = QuotaUse)]
pub struct QuotaDocument {
    /// Images that it has.
    pub used_images: u64,
    /// Images that it may have; null for any number.
    pub max_images: Option<u64>,
    /// Bytes of its originals.
    pub used_bytes: u64,
    /// Bytes that these may have; null for any number.
    pub max_bytes: Option<u64>,
}

/// What the caller may store and how often it may ask, and how much of that is used.
#[utoipa::path(
    get, path = "/v1/limits", operation_id = "get_limits", tag = "images",
    responses((status = 200, description = "The limits", body = LimitsDocument), LimitProblems),
)]
pub async fn show(
    State(state): State<ApiState>,
    caller: Caller,
) -> Result<Json<LimitsDocument>, Problem> {
    let config = &state.services.config;
    let used = state.services.store.usage(&caller.owner).await?;
    let (limits, quota) = (config.limits_of(&caller.owner), quota(config, &caller.owner));
    let rate = |number: u32| (number > 0).then_some(number);
    Ok(Json(LimitsDocument {
        max_upload_bytes: config.max_upload_bytes,
        max_pixels: config.max_pixels,
        max_side: config.max_side,
        quota: QuotaDocument {
            used_images: used.images,
            max_images: quota.images,
            used_bytes: used.bytes,
            max_bytes: quota.bytes,
        },
        requests_per_minute: rate(limits.requests_per_minute),
        uploads_per_minute: rate(limits.uploads_per_minute),
        max_uploads_in_flight: uploads_at_once(config, &caller),
        owner: caller.owner,
    }))
}
