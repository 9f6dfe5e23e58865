//! Creates the child tasks of a backfill, step by step.

use std::{sync::Arc, time::Duration};

use safelight_blobs::{Blobs, IngestLimits};
use safelight_config::Config;
use safelight_domain::{Backfill, BackfillKind, BackfillState, TaskId};
use safelight_queue::OutboxSignal;
use safelight_removal::InstallationGuard;
use safelight_store::{BackfillStep, Backfills, DynStore, Reads};

use super::{
    error::BackfillError,
    garbage::GarbageWalk,
    images::ImageWalk,
    import::{ImportWalk, StepState},
    pace,
    safeguards::Safeguards,
    take_back::TakeBackWalk,
};
use crate::removal::Quarantine;

/// Feeds backfills.
pub(super) struct Feeder {
    tasks: Arc<dyn Reads>,
    backfills: Arc<dyn Backfills>,
    outbox_signal: OutboxSignal,
    images: ImageWalk,
    garbage: GarbageWalk,
    take_back: TakeBackWalk,
    import: ImportWalk,
    /// Concurrent images.
    window: u32,
    /// Attempts of each job.
    max_attempts: u32,
}

impl Feeder {
    pub fn new(
        store: DynStore,
        blobs: Blobs,
        guard: InstallationGuard,
        outbox_signal: OutboxSignal,
        config: &Config,
    ) -> Self {
        let keep = Duration::from_millis(config.quarantine_ms);
        let quarantine = Quarantine::new(store.clone(), blobs.clone(), keep);
        let safeguards = Safeguards::new(blobs.clone(), store.clone(), guard);
        Self {
            images: ImageWalk::new(store.clone(), blobs.clone(), config.presets.clone()),
            garbage: GarbageWalk::new(
                store.clone(),
                blobs.clone(),
                quarantine,
                safeguards.clone(),
                config.staged_grace_ms,
            ),
            take_back: TakeBackWalk::new(blobs.clone(), safeguards),
            import: ImportWalk::new(
                store.clone(),
                store.clone(),
                blobs,
                IngestLimits { max_bytes: config.max_upload_bytes, heic: config.heic },
            ),
            tasks: store.clone(),
            backfills: store,
            outbox_signal,
            window: config.backfill_window,
            max_attempts: config.max_attempts,
        }
    }

    /// Creates as many child tasks as a backfill has capacity for. Returns whether it made progress.
    pub async fn feed(&self, id: TaskId, state: &mut StepState) -> Result<bool, BackfillError> {
        let Some(backfill) = self.tasks.task(id).await?.and_then(|task| task.backfill) else {
            return Ok(false);
        };
        let capacity = pace::capacity(&backfill, backfill.under_way(), self.window);
        if backfill.paused || capacity == 0 {
            return Ok(false);
        }
        let has_progress = if backfill.retrying {
            self.backfills.retry_backfill(backfill.id, capacity).await? > 0
        } else if backfill.state == BackfillState::Walking {
            self.walk(&backfill, capacity, state).await?
        } else {
            false
        };
        if has_progress {
            self.outbox_signal.notify();
        }
        Ok(has_progress)
    }

    async fn walk(
        &self,
        backfill: &Backfill,
        capacity: u32,
        state: &mut StepState,
    ) -> Result<bool, BackfillError> {
        let step = match backfill.spec.kind {
            BackfillKind::Renditions | BackfillKind::Verify => {
                self.images.step(backfill, capacity).await?
            }
            BackfillKind::Gc => match backfill.spec.take_back {
                None => self.garbage.step(backfill, capacity).await?,
                Some(which) => self.take_back.step(backfill, which, capacity).await?,
            },
            BackfillKind::Import => match self.import.step(backfill, capacity, state).await {
                // A source that does not exist will not appear: the backfill ends.
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
        let paced_seconds =
            paced.map_or(0.0, |rate| (step.work.len() + step.done.len()) as f64 / rate);
        let step = BackfillStep { paced_seconds, max_attempts: self.max_attempts, ..step };
        let counted = self.backfills.advance_backfill(&step).await;
        state.step_ended(matches!(counted, Ok(true))).await;
        Ok(counted?)
    }
}
