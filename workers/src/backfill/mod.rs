//! The foreman: walks for backfills, hands out their work as it is done, and counts what has ended.
//!
//! ```text
//! lead ─ for each backfill ─ tally   ended tasks ─▶ report lines, counts; the end, after the last
//!                          ├ retry   failed images, when somebody asked
//!                          └ walk    next images ─▶ tasks with jobs on the bulk lane, report lines
//! ```
//!
//! At most a window of images is under way for each backfill, so that neither the queue nor the
//! database holds a job for each of a million images, and several backfills share the workers evenly.
//! Each step is one transaction that counts only if the walk stands where the step began: a foreman
//! may die anywhere, and two may work on the same backfill.

mod garbage;
mod images;
mod import;
mod source;

use std::{error::Error, time::Duration};

use futures::future::join_all;
use safelight_common::{
    blobs::BlobError,
    domain::{Backfill, BackfillKind, BackfillState, WorkerId},
    services::Services,
    store::{Advance, StoreError},
};
use tokio_util::sync::CancellationToken;

use self::source::SourceError;
use crate::{removal::RemovalError, trouble::Trouble};

/// How long a foreman that died keeps its backfills from others.
const HOLD: Duration = Duration::from_secs(10);

/// Backfills that one foreman leads.
const BACKFILLS: u32 = 16;

/// How often it looks for backfills while there are none.
const IDLE: Duration = Duration::from_millis(500);

/// How often it looks at those there are: while nothing moves, and while something does.
const WAITING: Duration = Duration::from_millis(100);
const MOVING: Duration = Duration::from_millis(20);

/// Ended tasks counted in one transaction.
const TALLY: u32 = 500;

#[derive(Debug, thiserror::Error)]
pub(crate) enum BackfillError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blobs(#[from] BlobError),
    #[error(transparent)]
    Removal(#[from] RemovalError),
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// Leads backfills until `shutdown`.
pub async fn run(services: Services, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = lead(&services) => {}
    }
}

async fn lead(services: &Services) {
    let foreman = WorkerId::new();
    let mut trouble = Trouble::new("go on with backfills");
    loop {
        let pause = match step(services, foreman).await {
            Ok(pause) => {
                trouble.over();
                pause
            }
            Err(error) => trouble.failed(&error),
        };
        tokio::time::sleep(pause).await;
    }
}

/// One look at every backfill that `foreman` leads; answers how long to wait before the next.
pub(crate) async fn step(
    services: &Services,
    foreman: WorkerId,
) -> Result<Duration, BackfillError> {
    let led = services.store.lead_backfills(foreman, HOLD, BACKFILLS).await?;
    if led.is_empty() {
        return Ok(IDLE);
    }
    let mut moving = false;
    let mut failure = None;
    for result in join_all(led.iter().map(|backfill| go_on(services, backfill))).await {
        match result {
            Ok(moved) => moving |= moved,
            Err(error) => failure = Some(error),
        }
    }
    // The others went on all the same.
    match failure {
        Some(error) => Err(error),
        None => Ok(if moving { MOVING } else { WAITING }),
    }
}

/// Takes one backfill a step further; answers whether anything moved.
async fn go_on(services: &Services, backfill: &Backfill) -> Result<bool, BackfillError> {
    let store = &services.store;
    let tallied = store.tally_backfill(backfill.id, TALLY).await?;
    let under_way = backfill.under_way().saturating_sub(tallied);
    let room = room(backfill, under_way, services.config.backfill_window);
    let mut moved = tallied > 0;
    if backfill.paused || room == 0 {
        return Ok(moved);
    }
    if backfill.retrying {
        moved |= store.retry_backfill(backfill.id, room).await? > 0;
    } else if backfill.state == BackfillState::Walking {
        moved |= walk(services, backfill, room).await?;
    }
    if moved {
        services.wake.ring();
    }
    Ok(moved)
}

async fn walk(services: &Services, backfill: &Backfill, room: u32) -> Result<bool, BackfillError> {
    let step = match backfill.spec.kind {
        BackfillKind::Renditions | BackfillKind::Verify => {
            images::step(services, backfill, room).await?
        }
        BackfillKind::Gc => garbage::step(services, backfill, room).await?,
        BackfillKind::Import => match import::step(services, backfill, room).await {
            // What is not there will not come: the backfill ends with what it has.
            Err(BackfillError::Source(SourceError::Unusable(problem))) => Advance {
                is_last: true,
                problem: Some(problem),
                ..Advance::of(backfill.id, backfill.cursor.clone())
            },
            step => step?,
        },
    };
    let paced = backfill.spec.rate.filter(|_| !backfill.spec.dry_run);
    #[allow(clippy::cast_precision_loss)] // at most a window
    let paced_seconds = paced.map_or(0.0, |rate| (step.work.len() + step.done.len()) as f64 / rate);
    let step = Advance { paced_seconds, max_attempts: services.config.max_attempts, ..step };
    if services.store.advance_backfill(&step).await? {
        return Ok(true);
    }
    import::give_up(services, &step).await;
    Ok(false)
}

/// How many more images may be handed out now.
fn room(backfill: &Backfill, under_way: u64, window: u32) -> u32 {
    if backfill.spec.dry_run {
        return window;
    }
    let window = backfill.spec.concurrency.map_or(window, |limit| limit.min(window));
    let left = u64::from(window).saturating_sub(under_way);
    let left = u32::try_from(left).unwrap_or(u32::MAX);
    match (backfill.spec.rate, backfill.rested_seconds) {
        (Some(_), Some(rested)) if rested < 0.0 => 0,
        (Some(rate), rested) => {
            // Of a pause that was longer than a second, only a second is made up for.
            let due = (rate * rested.unwrap_or(0.0).min(1.0)).floor().max(1.0);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
            left.min(due as u32)
        }
        (None, _) => left,
    }
}

/// The text of an error with its causes, for a report.
fn reason(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use safelight_common::domain::{BackfillSpec, TaskId};

    use super::*;

    fn backfill(rate: Option<f64>, rested_seconds: Option<f64>) -> Backfill {
        let mut spec = BackfillSpec::new(BackfillKind::Verify);
        spec.rate = rate;
        Backfill {
            id: TaskId::new(),
            owner: safelight_common::domain::Owner::local(),
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
    fn a_window_bounds_what_is_under_way() {
        assert_eq!(room(&backfill(None, None), 0, 100), 100);
        assert_eq!(room(&backfill(None, None), 99, 100), 1);
        assert_eq!(room(&backfill(None, None), 150, 100), 0);
        let mut narrow = backfill(None, None);
        narrow.spec.concurrency = Some(3);
        assert_eq!(room(&narrow, 1, 100), 2);
    }

    #[test]
    fn a_rate_is_kept_whatever_the_pauses() {
        for (rate, rested, due) in [
            (100.0, Some(0.1), 10),
            (100.0, Some(60.0), 100),
            (100.0, None, 1),
            (0.2, Some(0.0), 1),
            (0.2, Some(-4.9), 0),
            (1e9, Some(1.0), 1000),
        ] {
            assert_eq!(room(&backfill(Some(rate), rested), 0, 1000), due, "{rate} {rested:?}");
        }
    }
}
