//! How fast a backfill creates child tasks: its window and its rate.

use safelight_domain::Backfill;

/// How many more child tasks may be created now.
pub(super) fn capacity(backfill: &Backfill, under_way: u64, window: u32) -> u32 {
    if backfill.spec.dry_run {
        return window;
    }
    let window = backfill.spec.concurrency.map_or(window, |limit| limit.min(window));
    let left = u64::from(window).saturating_sub(under_way);
    let left = u32::try_from(left).unwrap_or(u32::MAX);
    match (backfill.spec.rate, backfill.rested_seconds) {
        (Some(_), Some(rested)) if rested < 0.0 => 0,
        (Some(rate), rested) => {
            // Of a longer pause, only the last second counts.
            let due = (rate * rested.unwrap_or(0.0).min(1.0)).floor().max(1.0);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
            left.min(due as u32)
        }
        (None, _) => left,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use chrono::Utc;
    use safelight_domain::{BackfillKind, BackfillSpec, BackfillState, TaskId};

    use super::*;

    fn backfill(rate: Option<f64>, rested_seconds: Option<f64>) -> Backfill {
        let mut spec = BackfillSpec::new(BackfillKind::Verify);
        spec.rate = rate;
        Backfill {
            id: TaskId::new(),
            owner: safelight_domain::Owner::local(),
            started_at: Utc::now(),
            spec,
            state: BackfillState::Walking,
            paused: false,
            cancelled: false,
            retrying: false,
            cursor: None,
            expected: None,
            planned: 0,
            skipped: BTreeMap::new(),
            refused: 0,
            succeeded: 0,
            failed: 0,
            cancelled_images: 0,
            problem: None,
            rested_seconds,
        }
    }

    #[test]
    fn window_bounds_images_in_progress() {
        assert_eq!(capacity(&backfill(None, None), 0, 100), 100);
        assert_eq!(capacity(&backfill(None, None), 99, 100), 1);
        assert_eq!(capacity(&backfill(None, None), 150, 100), 0);
        let mut narrow = backfill(None, None);
        narrow.spec.concurrency = Some(3);
        assert_eq!(capacity(&narrow, 1, 100), 2);
    }

    #[test]
    fn rate_holds_across_pauses() {
        for (rate, rested, due) in [
            (100.0, Some(0.1), 10),
            (100.0, Some(60.0), 100),
            (100.0, None, 1),
            (0.2, Some(0.0), 1),
            (0.2, Some(-4.9), 0),
            (1e9, Some(1.0), 1000),
        ] {
            assert_eq!(capacity(&backfill(Some(rate), rested), 0, 1000), due, "{rate} {rested:?}");
        }
    }
}
