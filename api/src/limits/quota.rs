//! What an owner may store.

use safelight_config::OwnerLimits;
use safelight_domain::{Quota, Usage};

use crate::http::problem::{Problem, ProblemCode};

/// The quota of an owner with these limits.
pub fn quota(limits: OwnerLimits) -> Quota {
    let limit = |number: u64| (number > 0).then_some(number);
    Quota { images: limit(limits.quota_images), bytes: limit(limits.quota_bytes) }
}

/// The quota has no room for an upload.
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
