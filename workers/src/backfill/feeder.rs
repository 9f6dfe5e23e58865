//! Creates the child tasks of a backfill, step by step.

use std::sync::Arc;

use safelight_blobs::Blobs;
use safelight_config::Config;
use safelight_domain::{Backfill, BackfillKind, BackfillState, TaskId};
use safelight_queue::OutboxSignal;
use safelight_store::{BackfillStep, Backfills, DynStore, Reads};

use super::{
    error::BackfillError,
    garbage::GarbageWalk,
    images::ImageWalk,
    import::{ImportWalk, StepState},
    pace,
};

/// Feeds backfills.
pub(super) struct Feeder {
    tasks: Arc<dyn Reads>,
    backfills: Arc<dyn Backfills>,
    outbox_signal: OutboxSignal,
    images: ImageWalk,
    garbage: GarbageWalk,
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
        outbox_signal: OutboxSignal,
        config: &Config,
    ) -> Self {
        Self {
            images: ImageWalk::new(store.clone(), blobs.clone(), config.presets.clone()),
            garbage: GarbageWalk::new(store.clone(), blobs.clone(), config.staged_grace_ms),
            import: ImportWalk::new(store.clone(), store.clone(), blobs, config.max_upload_bytes),
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
            BackfillKind::Gc => self.garbage.step(backfill, capacity).await?,
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
        state.step_ended(matches!(counted, Ok(true)));
        if matches!(counted, Ok(false)) {
            self.import.discard(&step).await;
        }
        Ok(counted?)
    }
}
