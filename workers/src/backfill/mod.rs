//! The foreman: walks for backfills, hands out their work as it is done, and counts what has ended.
//!
//! ```text
//! lead ─ for each backfill, by themselves ─┬ tally   ended tasks ─▶ report lines, counts; the end
//!                                          └ feed    failed images again, when somebody asked;
//!                                                    next images ─▶ tasks with jobs, report lines
//! ```
//!
//! At most a window of images is under way for each backfill, so that neither the queue nor the
//! database holds a job for each of a million images, and several backfills share the workers evenly.
//! Each step is one transaction that counts only if the walk stands where the step began: a foreman
//! may die anywhere, and two may work on the same backfill. No backfill waits for another: one whose
//! source hangs is tallied, cancelled and led all the same, and the others go on.

mod garbage;
mod images;
mod import;
mod source;

use std::{collections::HashMap, error::Error, time::Duration};

use safelight_blobs::BlobError;
use safelight_domain::{
    Backfill, BackfillKind, BackfillState, Failure, JobKind, Status, TaskId, WorkerId,
};
use safelight_services::Services;
use safelight_store::{BackfillStep, BlockingJob, StoreError};
use safelight_telemetry::DependencyHealth;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use self::source::SourceError;
use crate::removal::RemovalError;

/// How long a foreman that died keeps its backfills from others.
const HOLD: Duration = Duration::from_secs(10);

/// Backfills that one foreman leads. Those that are paused wait for a place behind those that are not.
const BACKFILLS: u32 = 64;

/// How often it looks for backfills, and says that it still leads those it has.
const LOOK: Duration = Duration::from_millis(500);

/// How often it looks at each of them: while nothing moves, and while something does.
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

/// Leads backfills until `shutdown`, and then leaves them to others at once.
pub async fn run(services: Services, shutdown: CancellationToken) {
    let id = WorkerId::new();
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = lead(&services, id) => {}
    }
    // Whoever cannot be told waits for the end of the hold.
    if let Err(error) = services.store.lead_backfills(id, Duration::ZERO, BACKFILLS).await {
        tracing::debug!(%error, "could not let go of backfills");
    }
}

async fn lead(services: &Services, id: WorkerId) {
    let mut foreman = Foreman::new(services.clone(), id);
    let mut trouble = DependencyHealth::new("lead backfills");
    loop {
        let pause = match foreman.look().await {
            Ok(()) => {
                trouble.over();
                LOOK
            }
            Err(error) => trouble.failed(&error),
        };
        tokio::time::sleep(pause).await;
    }
}

/// Leads backfills, each in a task of its own. All end with it.
struct Foreman {
    services: Services,
    id: WorkerId,
    led: HashMap<TaskId, AbortHandle>,
    tasks: JoinSet<()>,
}

impl Foreman {
    fn new(services: Services, id: WorkerId) -> Self {
        Self { services, id, led: HashMap::new(), tasks: JoinSet::new() }
    }

    /// Keeps the lead, begins with what is new, and leaves what has ended or is another's.
    async fn look(&mut self) -> Result<(), StoreError> {
        let found = self.services.store.lead_backfills(self.id, HOLD, BACKFILLS).await?;
        self.led.retain(|id, work| {
            let is_led = found.iter().any(|backfill| backfill.id == *id);
            if !is_led {
                work.abort();
            }
            is_led && !work.is_finished()
        });
        for Backfill { id, .. } in found {
            if !self.led.contains_key(&id) {
                self.led.insert(id, self.tasks.spawn(work_on(self.services.clone(), id)));
            }
        }
        while self.tasks.try_join_next().is_some() {}
        Ok(())
    }
}

/// One look at every backfill that `foreman` leads, for tests that go step by step.
#[cfg(test)]
pub(crate) async fn step(services: &Services, foreman: WorkerId) -> Result<(), BackfillError> {
    for Backfill { id, .. } in services.store.lead_backfills(foreman, HOLD, BACKFILLS).await? {
        services.store.collect_results(id, TALLY).await?;
        feed(services, id, &mut import::Memory::default()).await?;
    }
    Ok(())
}

/// Tallies and feeds a backfill until it is left: whichever waits for something, the other goes on.
async fn work_on(services: Services, id: TaskId) {
    tokio::join!(keep_tallying(&services, id), keep_feeding(&services, id));
}

async fn keep_tallying(services: &Services, id: TaskId) {
    let mut trouble = DependencyHealth::new("count what a backfill has done");
    loop {
        let tallied = services.store.collect_results(id, TALLY).await;
        tokio::time::sleep(pause(&mut trouble, tallied.map(|count| count > 0))).await;
    }
}

async fn keep_feeding(services: &Services, id: TaskId) {
    let mut trouble = DependencyHealth::new("go on with a backfill");
    let mut memory = import::Memory::default();
    loop {
        let fed = feed(services, id, &mut memory).await;
        tokio::time::sleep(pause(&mut trouble, fed)).await;
    }
}

/// How long to wait after an act that says whether anything moved.
fn pause<E: Error + 'static>(trouble: &mut DependencyHealth, acted: Result<bool, E>) -> Duration {
    match acted {
        Ok(moved) => {
            trouble.over();
            if moved { MOVING } else { WAITING }
        }
        Err(error) => trouble.failed(&error),
    }
}

/// Hands out what a backfill has room for; answers whether anything moved.
async fn feed(
    services: &Services,
    id: TaskId,
    memory: &mut import::Memory,
) -> Result<bool, BackfillError> {
    let store = &services.store;
    let Some(backfill) = store.task(id).await?.and_then(|task| task.backfill) else {
        return Ok(false);
    };
    let room = room(&backfill, backfill.under_way(), services.config.backfill_window);
    if backfill.paused || room == 0 {
        return Ok(false);
    }
    let moved = if backfill.retrying {
        store.retry_backfill(backfill.id, room).await? > 0
    } else if backfill.state == BackfillState::Walking {
        walk(services, &backfill, room, memory).await?
    } else {
        false
    };
    if moved {
        services.outbox_signal.notify();
    }
    Ok(moved)
}

async fn walk(
    services: &Services,
    backfill: &Backfill,
    room: u32,
    memory: &mut import::Memory,
) -> Result<bool, BackfillError> {
    let step = match backfill.spec.kind {
        BackfillKind::Renditions | BackfillKind::Verify => {
            images::step(services, backfill, room).await?
        }
        BackfillKind::Gc => garbage::step(services, backfill, room).await?,
        BackfillKind::Import => match import::step(services, backfill, room, memory).await {
            // What is not there will not come: the backfill ends with what it has.
            Err(BackfillError::Source(error)) if error.is_final() => BackfillStep {
                is_last: true,
                problem: Some(error.to_string()),
                ..BackfillStep::of(backfill.id, backfill.cursor.clone())
            },
            step => step?,
        },
    };
    let paced = backfill.spec.rate.filter(|_| !backfill.spec.dry_run);
    #[allow(clippy::cast_precision_loss)] // at most a window
    let paced_seconds = paced.map_or(0.0, |rate| (step.work.len() + step.done.len()) as f64 / rate);
    let step = BackfillStep { paced_seconds, max_attempts: services.config.max_attempts, ..step };
    let counted = services.store.advance_backfill(&step).await;
    memory.step_ended(matches!(counted, Ok(true)));
    if matches!(counted, Ok(false)) {
        import::give_up(services, &step).await;
    }
    Ok(counted?)
}

/// Why jobs of these kinds have failed for good; `None` if they have not, or are being tried again.
fn failure<'a>(obstacles: &'a [BlockingJob], kinds: &[JobKind]) -> Option<&'a Failure> {
    let mut concerned = obstacles.iter().filter(|obstacle| kinds.contains(&obstacle.kind));
    if concerned.clone().any(|obstacle| obstacle.status != Status::Failed) {
        return None;
    }
    concerned.next()?.failure.as_ref()
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

    use chrono::Utc;
    use safelight_domain::BackfillSpec;

    use super::*;

    fn backfill(rate: Option<f64>, rested_seconds: Option<f64>) -> Backfill {
        let mut spec = BackfillSpec::new(BackfillKind::Verify);
        spec.rate = rate;
        Backfill {
            id: TaskId::new(),
            owner: safelight_domain::Owner::local(),
            begun_at: Utc::now(),
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
