//! Collects garbage: walks over all stored blobs and renditions, and moves those that nothing refers to into the
//! quarantine. (Missing objects are found by `verify`.)
//!
//! A first walk only counts: if too much would go, or the database may know too little, nothing is removed. In
//! the second walk a query shows what seems to be garbage; objects younger than `staged_grace_ms` are kept. The
//! others are moved, and the query is repeated (ADR 4), so that neither an upload nor a job that stores the same
//! object at that moment loses it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chrono::{DateTime, TimeDelta, Utc};
use safelight_blobs::{BlobKey, Blobs, Stored};
use safelight_domain::{
    Amount, Backfill, ContentHash, GcPhase, GcProgress, GcRefusal, ItemOutcome, new_id,
};
use safelight_store::{BackfillStep, Deletions, Reference, ReportLine};

use super::{error::BackfillError, safeguards::Safeguards};
use crate::removal::{Quarantine, by_blob, references, refers_to};

/// Objects listed in one step.
const PAGE: usize = 500;

/// Objects removed in one step: few, so that a step is short.
const REMOVALS: usize = 32;

/// The result of the first query for an object.
enum Verdict {
    /// It stays, for this reason.
    Passed(&'static str),
    /// Its name is not one of Safelight's, and it stays.
    Unknown,
    /// Nothing refers to it.
    Garbage(Box<Garbage>),
}

/// An object that nothing seems to refer to.
struct Garbage {
    object: Stored,
    /// The blob itself, or the blob that the rendition was made from.
    blob: ContentHash,
    /// Whether some image has that blob, so that the blob stays and only this rendition is removed.
    is_blob_referred_to: bool,
}

/// Objects of one step.
struct Page {
    objects: Vec<Stored>,
    references: HashMap<ContentHash, Reference>,
    next: Option<String>,
    /// The store's clock.
    now: DateTime<Utc>,
    /// Only objects that were last written before this are garbage.
    old: Option<DateTime<Utc>>,
}

/// Walks over stored objects.
pub(super) struct GarbageWalk {
    deletions: Arc<dyn Deletions>,
    blobs: Blobs,
    quarantine: Quarantine,
    safeguards: Safeguards,
    grace_ms: u64,
}

impl GarbageWalk {
    pub fn new(
        deletions: Arc<dyn Deletions>,
        blobs: Blobs,
        quarantine: Quarantine,
        safeguards: Safeguards,
        grace_ms: u64,
    ) -> Self {
        Self { deletions, blobs, quarantine, safeguards, grace_ms }
    }

    /// The next step of the walk, in which at most `capacity` objects are removed.
    pub async fn step(
        &self,
        backfill: &Backfill,
        capacity: u32,
    ) -> Result<BackfillStep, BackfillError> {
        let spec = &backfill.spec;
        let progress = GcProgress::of_cursor(backfill.cursor.as_deref());
        let step = BackfillStep::of(backfill.id, backfill.cursor.clone());
        if !spec.dry_run
            && let Some(refusal) = self.safeguards.refusal(&progress.survey, spec.force).await?
        {
            return Ok(refuse(step, &refusal));
        }
        match progress.phase {
            GcPhase::Survey => self.survey(backfill, progress, step).await,
            GcPhase::Collect => self.collect(backfill, progress, step, capacity).await,
        }
    }

    async fn page(&self, after: Option<&str>) -> Result<Page, BackfillError> {
        let walked = self.blobs.walk(after, PAGE).await?;
        // By the store's own clock.
        let now = self.blobs.clock().await?;
        let grace = i64::try_from(self.grace_ms).unwrap_or(i64::MAX);
        let grace = TimeDelta::try_milliseconds(grace);
        let old = grace.and_then(|grace| now.checked_sub_signed(grace));
        let hashes = walked.objects.iter().filter_map(|object| object.key.as_ref()?.blob());
        let references = references(&*self.deletions, hashes).await?;
        Ok(Page { objects: walked.objects, references, next: walked.next, now, old })
    }

    /// Counts what is stored and what would go. After the last object it decides whether the second walk begins.
    async fn survey(
        &self,
        backfill: &Backfill,
        mut progress: GcProgress,
        mut step: BackfillStep,
    ) -> Result<BackfillStep, BackfillError> {
        let page = self.page(progress.after.as_deref()).await?;
        let survey = &mut progress.survey;
        for object in page.objects {
            let original = matches!(object.key, Some(BlobKey::Blob(_))).then_some(object.bytes);
            survey.objects += 1;
            if let Some(bytes) = original {
                survey.originals.add(bytes);
            }
            if let Verdict::Garbage(_) = judge(object, page.old, &page.references) {
                match original {
                    Some(bytes) => survey.unreferenced.add(bytes),
                    None => survey.unreferenced_renditions += 1,
                }
            }
        }
        safelight_fail_points::hit("gc.surveyed").await;
        progress.after = page.next;
        if progress.after.is_none() {
            progress.phase = GcPhase::Collect;
            let refusal = self.verdict(backfill, &progress).await?;
            log_survey(backfill, &progress, refusal.as_ref());
            match refusal {
                Some(refusal) if !backfill.spec.dry_run => {
                    step.to = Some(progress.to_cursor());
                    return Ok(refuse(step, &refusal));
                }
                refusal => progress.survey.refusal = refusal.map(|refusal| refusal.to_string()),
            }
            progress.after = progress.resume_after.take();
            step.expected = progress.after.is_none().then_some(progress.survey.objects);
        }
        step.to = Some(progress.to_cursor());
        Ok(step)
    }

    /// The refusal of a survey that is over.
    async fn verdict(
        &self,
        backfill: &Backfill,
        progress: &GcProgress,
    ) -> Result<Option<GcRefusal>, BackfillError> {
        let (survey, force) = (&progress.survey, backfill.spec.force);
        let refusal = self.safeguards.refusal(survey, force).await?;
        Ok(refusal.or_else(|| GcRefusal::of_amount(survey, survey.unreferenced).filter(|_| !force)))
    }

    /// Moves unreferenced objects of the next page to the quarantine.
    async fn collect(
        &self,
        backfill: &Backfill,
        mut progress: GcProgress,
        mut step: BackfillStep,
        capacity: u32,
    ) -> Result<BackfillStep, BackfillError> {
        let page = self.page(progress.after.as_deref()).await?;
        let capacity = (capacity as usize).min(REMOVALS);
        let (mut garbage, mut is_whole) = (Vec::new(), true);
        for object in page.objects {
            let at = object.path.clone();
            match judge(object, page.old, &page.references) {
                Verdict::Garbage(_) if garbage.len() == capacity => {
                    is_whole = false;
                    break;
                }
                Verdict::Garbage(found) => garbage.push(*found),
                Verdict::Passed(reason) => pass(&mut step.passed, reason),
                Verdict::Unknown => {
                    let line = report_line(&at, ItemOutcome::Skipped, "unknown_name");
                    step.without_work.push(line);
                }
            }
            progress.after = Some(at);
        }
        let planned = progress.moved.plus(originals(&garbage));
        // The survey said so; but a database can be replaced after it.
        if !backfill.spec.dry_run
            && !backfill.spec.force
            && let Some(refusal) = GcRefusal::of_amount(&progress.survey, planned)
        {
            return Ok(refuse(BackfillStep::of(step.task, step.from), &refusal));
        }
        progress.moved =
            progress.moved.plus(self.remove(backfill, garbage, page.now, &mut step).await?);
        if is_whole {
            step.is_last = page.next.is_none();
            progress.after = page.next.or(progress.after);
        }
        if step.is_last {
            let found = step.passed.values().sum::<u64>()
                + (step.without_work.len() + step.done.len()) as u64;
            step.expected = Some(backfill.walked() + found);
        }
        step.to = Some(progress.to_cursor());
        Ok(step)
    }

    /// Moves garbage to the quarantine; in a dry run only reports it. Returns the originals among it.
    async fn remove(
        &self,
        backfill: &Backfill,
        garbage: Vec<Garbage>,
        now: DateTime<Utc>,
        step: &mut BackfillStep,
    ) -> Result<Amount, BackfillError> {
        let dry_run = backfill.spec.dry_run;
        let outcome = if dry_run { ItemOutcome::Planned } else { ItemOutcome::Succeeded };
        let mut moved = Amount::default();
        let objects = garbage.into_iter();
        for group in by_blob(objects.map(|one| (one.blob, one.is_blob_referred_to, one.object))) {
            if !dry_run && !self.quarantine.set_aside(&group, backfill.id, now).await? {
                group.objects.iter().for_each(|_| pass(&mut step.passed, "in_use"));
                continue;
            }
            for object in group.objects {
                if is_original(&object) {
                    moved.add(object.bytes);
                }
                let detail = Some(format!("{} bytes", object.bytes));
                let line = report_line(&object.path, outcome, "unreferenced");
                step.done.push(ReportLine { detail, ..line });
            }
        }
        Ok(moved)
    }
}

/// The last step of a collection that removes nothing more.
fn refuse(step: BackfillStep, refusal: &GcRefusal) -> BackfillStep {
    tracing::warn!(task = %step.task, reason = %refusal, "a collection of garbage was refused");
    stop(step, refusal.to_string())
}

/// The last step of a walk that breaks off.
pub(super) fn stop(step: BackfillStep, problem: String) -> BackfillStep {
    BackfillStep { is_last: true, problem: Some(problem), ..step }
}

fn log_survey(backfill: &Backfill, progress: &GcProgress, refusal: Option<&GcRefusal>) {
    let survey = &progress.survey;
    tracing::info!(
        task = %backfill.id, dry_run = backfill.spec.dry_run, force = backfill.spec.force,
        objects = survey.objects, originals = survey.originals.objects,
        unreferenced_originals = survey.unreferenced.objects,
        unreferenced_renditions = survey.unreferenced_renditions,
        is_refused = refusal.is_some(), "surveyed what is stored"
    );
}

fn is_original(object: &Stored) -> bool {
    matches!(object.key, Some(BlobKey::Blob(_)))
}

/// The originals among the garbage.
fn originals(garbage: &[Garbage]) -> Amount {
    let mut amount = Amount::default();
    for one in garbage.iter().filter(|one| is_original(&one.object)) {
        amount.add(one.object.bytes);
    }
    amount
}

fn judge(
    object: Stored,
    old: Option<DateTime<Utc>>,
    references: &HashMap<ContentHash, Reference>,
) -> Verdict {
    let Some(key) = &object.key else { return Verdict::Unknown };
    let Some(blob) = key.blob() else { return Verdict::Unknown };
    let reference = references.get(&blob);
    if reference.is_some_and(|reference| refers_to(reference, key)) {
        return Verdict::Passed("in_use");
    }
    if old.is_none_or(|old| object.modified >= old) {
        return Verdict::Passed("too_young");
    }
    let is_blob_referred_to = reference.is_some();
    Verdict::Garbage(Box::new(Garbage { object, blob, is_blob_referred_to }))
}

fn pass(passed: &mut BTreeMap<String, u64>, reason: &str) {
    *passed.entry(reason.to_owned()).or_default() += 1;
}

/// A report line of an object, with a new id.
pub(super) fn report_line(path: &str, outcome: ItemOutcome, reason: &str) -> ReportLine {
    ReportLine {
        id: new_id(),
        outcome,
        reason: Some(reason.to_owned()),
        detail: None,
        source: Some(path.to_owned()),
    }
}
