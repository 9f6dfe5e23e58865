//! Moves objects back from the quarantine: undoes a collection of garbage.

use safelight_blobs::{Blobs, EndedMoves, Quarantined, TakenBack};
use safelight_domain::{Backfill, GcProgress, ItemOutcome, TakeBack};
use safelight_store::{BackfillStep, ReportLine};

use super::{
    error::BackfillError,
    garbage::{report_line, stop},
    safeguards::Safeguards,
};

/// Objects listed in one step.
const PAGE: usize = 500;

/// Objects moved in one step: few, so that a step is short.
const MOVES: usize = 32;

/// Walks over the quarantine.
pub(super) struct TakeBackWalk {
    blobs: Blobs,
    safeguards: Safeguards,
}

impl TakeBackWalk {
    pub fn new(blobs: Blobs, safeguards: Safeguards) -> Self {
        Self { blobs, safeguards }
    }

    /// The next step of the walk, in which at most `capacity` objects are moved back.
    pub async fn step(
        &self,
        backfill: &Backfill,
        which: TakeBack,
        capacity: u32,
    ) -> Result<BackfillStep, BackfillError> {
        let mut step = BackfillStep::of(backfill.id, backfill.cursor.clone());
        if let Some(refusal) = self.safeguards.wrong_store().await? {
            return Ok(stop(step, refusal.to_string()));
        }
        let mut progress = GcProgress::of_cursor(backfill.cursor.as_deref());
        let walked = self.blobs.walk_quarantine(progress.after.as_deref(), PAGE).await?;
        let capacity = (capacity as usize).min(MOVES);
        let ended = self.blobs.ended_moves().await?;
        for object in walked.objects {
            if which.includes(object.run) {
                if step.done.len() + step.without_work.len() == capacity {
                    step.to = Some(progress.to_cursor());
                    return Ok(step);
                }
                self.move_back(&object, &ended, backfill.spec.dry_run, &mut step).await?;
            }
            progress.after = Some(object.path().to_owned());
        }
        step.is_last = walked.next.is_none();
        progress.after = walked.next.or(progress.after);
        step.to = Some(progress.to_cursor());
        if step.is_last {
            let found = backfill.walked() + (step.done.len() + step.without_work.len()) as u64;
            step.expected = Some(found);
            if let (0, TakeBack::Run(run)) = (found, which) {
                return Ok(stop(
                    step,
                    format!("nothing of the collection {run} is left in the quarantine"),
                ));
            }
        }
        Ok(step)
    }

    async fn move_back(
        &self,
        object: &Quarantined,
        ended: &EndedMoves,
        dry_run: bool,
        step: &mut BackfillStep,
    ) -> Result<(), BackfillError> {
        let result = match dry_run {
            true if self.blobs.exists(&object.key).await? => TakenBack::StoredAgain,
            true => TakenBack::Yes,
            false if ended.include(object.written_at) => self.blobs.take_back(object).await?,
            // Its mover may need it again.
            false => self.blobs.copy_back(object).await?,
        };
        safelight_fail_points::hit("gc.taken_back").await;
        let line = |outcome, reason| ReportLine {
            detail: Some(format!("{} bytes", object.bytes)),
            ..report_line(object.key.path().as_ref(), outcome, reason)
        };
        match result {
            TakenBack::Yes => {
                let planned = if dry_run { ItemOutcome::Planned } else { ItemOutcome::Succeeded };
                step.done.push(line(planned, "taken_back"));
            }
            TakenBack::StoredAgain => {
                step.without_work.push(line(ItemOutcome::Skipped, "stored_again"));
            }
            // Another coordinator was faster, or its time was over.
            TakenBack::Gone => {}
        }
        Ok(())
    }
}
