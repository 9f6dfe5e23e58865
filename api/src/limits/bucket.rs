//! Token buckets, as the generic cell rate algorithm keeps them (ITU-T I.371, annex A): one time for each
//! bucket, when it will be full again.

use std::{sync::Arc, time::Duration};

use moka::sync::Cache;
use redis::{Cmd, RedisResult};
use safelight_shared_cache::SharedCache;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How many tokens a bucket holds, and how long it takes to fill an empty one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tokens of a full bucket; not zero.
    pub tokens: u32,
    /// The time in which an empty bucket becomes full.
    pub window: Duration,
}

/// The outcome of taking a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Whether there was one.
    pub allowed: bool,
    /// Tokens that are left.
    pub remaining: u32,
    /// How long until there is one token more than `remaining`.
    pub wait: Duration,
}

impl Rate {
    /// Takes a token `now` from a bucket that will be full `full_in` from now. Returns the outcome, and in
    /// how long the bucket will then be full. (Microseconds, so that a script in the shared cache can do the
    /// same.)
    fn take(self, full_in: u64) -> (Taken, u64) {
        let window = u64::try_from(self.window.as_micros()).unwrap_or(u64::MAX);
        let tokens = u64::from(self.tokens.max(1));
        let each = (window / tokens).max(1);
        let after = full_in.saturating_add(each);
        let whole = each.saturating_mul(tokens);
        if after > whole {
            let wait = Duration::from_micros(after - whole);
            return (Taken { allowed: false, remaining: 0, wait }, full_in);
        }
        let tokens_left = (whole - after) / each;
        let wait = Duration::from_micros((tokens_left + 1) * each - (whole - after));
        let remaining = u32::try_from(tokens_left).unwrap_or(u32::MAX);
        (Taken { allowed: true, remaining, wait }, after)
    }
}

/// The buckets of all owners: in the shared cache if there is one, so that all nodes take from the same;
/// otherwise, or while it is unavailable, in this process.
pub struct Buckets {
    shared: Option<SharedCache>,
    own: Cache<String, Arc<Mutex<Instant>>>,
}

/// Buckets that a process keeps at most. An unused bucket is full after its window, and need not be kept.
const MAX_OWN: u64 = 100_000;

/// The same as [`Rate::take`], by the shared cache's clock. A full bucket is not stored.
const SCRIPT: &str = "
    local now = redis.call('TIME')
    now = now[1] * 1000000 + now[2]
    local window, tokens = tonumber(ARGV[1]), tonumber(ARGV[2])
    local each = math.max(math.floor(window / tokens), 1)
    local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
    local after = full_at - now + each
    if after > each * tokens then return {0, 0, after - each * tokens} end
    redis.call('SET', KEYS[1], string.format('%.0f', now + after), 'PX', math.ceil(after / 1000) + 1)
    local left = math.floor((each * tokens - after) / each)
    return {1, left, (left + 1) * each - (each * tokens - after)}";

impl Buckets {
    /// Full buckets.
    pub fn new(shared: Option<SharedCache>, longest_window: Duration) -> Self {
        let own = Cache::builder().max_capacity(MAX_OWN).time_to_idle(longest_window).build();
        Self { shared, own }
    }

    /// Takes a token from the bucket called `name`.
    pub async fn take(&self, name: &str, rate: Rate) -> Taken {
        if let Some(cache) = &self.shared {
            match take_shared(cache, name, rate).await {
                Ok(taken) => return taken,
                Err(error) => {
                    tracing::debug!(%error, "shared cache unavailable; this node counts rates alone");
                }
            }
        }
        let bucket = self.own.get_with_by_ref(name, || Arc::new(Mutex::new(Instant::now())));
        let mut full_at = bucket.lock().await;
        let now = Instant::now();
        let full_in = full_at.saturating_duration_since(now).as_micros();
        let (taken, after) = rate.take(u64::try_from(full_in).unwrap_or(u64::MAX));
        *full_at = now + Duration::from_micros(after);
        taken
    }
}

async fn take_shared(cache: &SharedCache, name: &str, rate: Rate) -> RedisResult<Taken> {
    let mut command = Cmd::new();
    command.arg("EVAL").arg(SCRIPT).arg(1).arg(format!("safelight:{{{name}}}:rate"));
    command.arg(u64::try_from(rate.window.as_micros()).unwrap_or(u64::MAX)).arg(rate.tokens);
    let (allowed, remaining, wait): (u8, u32, u64) = cache.run(&command).await?;
    Ok(Taken { allowed: allowed == 1, remaining, wait: Duration::from_micros(wait) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bucket_grants_its_tokens_and_refills_at_its_rate() {
        let rate = Rate { tokens: 3, window: Duration::from_secs(30) };
        let buckets = Buckets::new(None, rate.window);
        for left in [2, 1, 0] {
            let taken = buckets.take("a", rate).await;
            assert!(taken.allowed);
            assert_eq!(taken.remaining, left);
            assert_eq!(taken.wait, Duration::from_secs(10), "the next token, not a full bucket");
        }
        let rejected = buckets.take("a", rate).await;
        assert!(!rejected.allowed);
        assert!(rejected.wait <= Duration::from_secs(10) && rejected.wait > Duration::from_secs(9));
        assert!(buckets.take("b", rate).await.allowed, "each caller has its own bucket");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(buckets.take("a", rate).await.allowed);
        assert!(!buckets.take("a", rate).await.allowed);
        tokio::time::advance(Duration::from_mins(5)).await;
        assert_eq!(
            buckets.take("a", rate).await.remaining,
            2,
            "it never holds more than its capacity"
        );
    }
}
