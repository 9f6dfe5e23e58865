//! Delays before retries. The only module that uses the `backoff` crate, which is unmaintained: to replace it,
//! replace this file.
//!
//! `backoff` computes the exponential; the jitter comes from `fastrand`, because tests can seed its generator
//! for their thread, unlike `backoff`'s.

use std::time::Duration;

use backoff::{ExponentialBackoff, backoff::Backoff};

/// The delay before the attempt after `attempt` (1 for the first): exponential with full jitter,
/// uniform over 0 to min(`cap`, `base` × 2^(`attempt` − 1)), so that jobs that failed together are not
/// retried together.
///
/// Source: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
pub fn job_delay(attempt: u32, base: Duration, cap: Duration) -> Duration {
    let mut ceilings = doubling(base.min(cap), cap);
    // Any base reaches the cap in fewer steps.
    for _ in 1..attempt.min(64) {
        ceilings.next_backoff();
    }
    ceilings.next_backoff().unwrap_or(cap).min(cap).mul_f64(fastrand::f64())
}

/// Delays between attempts to reconnect: with jitter, growing from 100 ms to 5 s, without end.
pub struct Reconnect(ExponentialBackoff);

impl Default for Reconnect {
    fn default() -> Self {
        Self(doubling(Self::FIRST, Self::LONGEST))
    }
}

/// `first`, twice that, and so on up to `longest`, without end.
fn doubling(first: Duration, longest: Duration) -> ExponentialBackoff {
    ExponentialBackoff {
        current_interval: first,
        initial_interval: first,
        max_interval: longest,
        multiplier: 2.0,
        randomization_factor: 0.0,
        // The default of 15 minutes would silently end the loop.
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    }
}

impl Reconnect {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(Self::LONGEST).mul_f64(0.5 + fastrand::f64())
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn delays_stay_within_their_ceiling(attempt in 0_u32..200, base_ms in 1_u64..100_000, cap_ms in 1_u64..10_000_000) {
            let (base, cap) = (Duration::from_millis(base_ms), Duration::from_millis(cap_ms));
            let doubled = base_ms.saturating_mul(1 << attempt.saturating_sub(1).min(31));
            let delay = job_delay(attempt, base, cap);
            prop_assert!(delay <= cap);
            prop_assert!(delay <= Duration::from_millis(doubled));
        }
    }

    #[test]
    fn jitter_is_full() {
        let draws: Vec<_> = (0..1000)
            .map(|_| job_delay(1, Duration::from_secs(10), Duration::from_mins(10)).as_secs_f64())
            .collect();
        let below = draws.iter().filter(|d| **d < 2.5).count();
        let above = draws.iter().filter(|d| **d > 7.5).count();
        // 250 are expected in each quarter; 150 is seven standard deviations away.
        assert!(below > 150 && above > 150, "{below} below, {above} above");
    }

    #[test]
    fn reconnecting_never_gives_up() {
        let mut reconnect = Reconnect::default();
        for _ in 0..1000 {
            assert!(reconnect.next_delay() <= Reconnect::LONGEST.mul_f64(1.5));
        }
    }
}
