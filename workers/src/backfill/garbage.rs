//! Collects garbage: walks over all stored blobs and renditions, and removes those that nothing refers to.
//! (Missing objects are found by `verify`.)
//!
//! A first query shows what seems to be garbage; objects younger than `staged_grace_ms` are kept. The others
//! are moved to the trash, and the query is repeated before they are removed (ADR 4), so that neither an
//! upload nor a job that stores the same object at that moment loses it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chrono::{DateTime, TimeDelta, Utc};
use safelight_blobs::{BlobKey, Blobs, Stored};
use safelight_domain::{Backfill, ContentHash, ItemOutcome};
use safelight_store::{BackfillStep, Deletions, Reference, ReportLine};
use uuid::Uuid;

use super::error::BackfillError;
use crate::removal::{RemovalError, Remover};

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
    item: ReportLine,
    key: BlobKey,
    /// The blob itself, or the blob that the rendition was made from.
    blob: ContentHash,
    /// Whether some image has that blob, so that the blob stays and only this rendition is removed.
    is_blob_referred_to: bool,
}

/// Walks over stored objects.
pub(super) struct GarbageWalk {
    deletions: Arc<dyn Deletions>,
    blobs: Blobs,
    remover: Remover,
    grace_ms: u64,
}

impl GarbageWalk {
    pub fn new(deletions: Arc<dyn Deletions>, blobs: Blobs, grace_ms: u64) -> Self {
        let remover = Remover::new(deletions.clone(), blobs.clone());
        Self { deletions, blobs, remover, grace_ms }
    }

    /// The next step of the walk, in which at most `capacity` objects are removed.
    pub async fn step(
        &self,
        backfill: &Backfill,
        capacity: u32,
    ) -> Result<BackfillStep, BackfillError> {
        let mut step = BackfillStep::of(backfill.id, backfill.cursor.clone());
        let walked = self.blobs.walk(backfill.cursor.as_deref(), PAGE).await?;
        let old = self.old_before().await?;
        let references = self.references(&walked.objects).await?;
        let capacity = (capacity as usize).min(REMOVALS);
        let (mut garbage, mut is_whole) = (Vec::new(), true);
        for object in walked.objects {
            let at = object.path.clone();
            match judge(object, old, &references) {
                Verdict::Garbage(_) if garbage.len() == capacity => {
                    is_whole = false;
                    break;
                }
                Verdict::Garbage(found) => garbage.push(*found),
                Verdict::Passed(reason) => pass(&mut step.passed, reason),
                Verdict::Unknown => {
                    step.without_work.push(item(&at, ItemOutcome::Skipped, "unknown_name"));
                }
            }
            step.to = Some(at);
        }
        self.collect(backfill.spec.dry_run, garbage, &mut step).await?;
        if is_whole {
            step.is_last = walked.next.is_none();
            step.to = walked.next.or(step.to);
        }
        if step.is_last {
            // Counting them in advance would take as long as the walk.
            let found = step.passed.values().sum::<u64>()
                + (step.without_work.len() + step.done.len()) as u64;
            step.expected = Some(backfill.walked() + found);
        }
        Ok(step)
    }

    /// An object is old enough if it was last written before this, by the store's own clock.
    async fn old_before(&self) -> Result<Option<DateTime<Utc>>, BackfillError> {
        let now = self.blobs.clock().await?;
        let grace = i64::try_from(self.grace_ms).unwrap_or(i64::MAX);
        let grace = TimeDelta::try_milliseconds(grace);
        Ok(grace.and_then(|grace| now.checked_sub_signed(grace)))
    }

    async fn references(
        &self,
        objects: &[Stored],
    ) -> Result<HashMap<ContentHash, Reference>, BackfillError> {
        let mut hashes: Vec<ContentHash> =
            objects.iter().filter_map(|object| object.key.as_ref()?.blob()).collect();
        hashes.sort_unstable();
        hashes.dedup();
        let found = self.deletions.references(&hashes).await?;
        Ok(found.into_iter().map(|reference| (reference.sha256, reference)).collect())
    }

    /// Removes garbage; in a dry run only reports it.
    async fn collect(
        &self,
        dry_run: bool,
        garbage: Vec<Garbage>,
        step: &mut BackfillStep,
    ) -> Result<(), BackfillError> {
        let mut blobs: BTreeMap<(ContentHash, bool), Vec<Garbage>> = BTreeMap::new();
        for one in garbage {
            blobs.entry((one.blob, one.is_blob_referred_to)).or_default().push(one);
        }
        for ((blob, is_referred_to), garbage) in blobs {
            let keys: Vec<BlobKey> = garbage.iter().map(|one| one.key.clone()).collect();
            let is_removed = match (dry_run, is_referred_to) {
                (true, _) => true,
                (false, false) => self.remover.remove_blob(&blob, &keys).await?,
                (false, true) => self.remove_renditions(&blob, &keys).await?,
            };
            let outcome = if dry_run { ItemOutcome::Planned } else { ItemOutcome::Succeeded };
            for one in garbage {
                if is_removed {
                    step.done.push(ReportLine { outcome, ..one.item });
                } else {
                    pass(&mut step.passed, "in_use");
                }
            }
        }
        Ok(())
    }

    /// Removes renditions of a blob that stays, unless they were recorded meanwhile, or still may be. Returns
    /// whether they were removed.
    async fn remove_renditions(
        &self,
        blob: &ContentHash,
        keys: &[BlobKey],
    ) -> Result<bool, RemovalError> {
        let trashed = self.blobs.trash(keys).await?;
        safelight_fail_points::hit("gc.moved").await;
        let now = self.deletions.references(&[*blob]).await?;
        if now.iter().any(|now| keys.iter().any(|key| refers_to(now, key))) {
            self.blobs.restore(trashed).await?;
            return Ok(false);
        }
        self.blobs.delete_trashed(trashed).await?;
        Ok(true)
    }
}

fn judge(
    object: Stored,
    old: Option<DateTime<Utc>>,
    references: &HashMap<ContentHash, Reference>,
) -> Verdict {
    let Some(key) = object.key else { return Verdict::Unknown };
    let Some(blob) = key.blob() else { return Verdict::Unknown };
    let reference = references.get(&blob);
    if reference.is_some_and(|reference| refers_to(reference, &key)) {
        return Verdict::Passed("in_use");
    }
    if old.is_none_or(|old| object.modified >= old) {
        return Verdict::Passed("too_young");
    }
    let detail = Some(format!("{} bytes", object.bytes));
    let item = ReportLine { detail, ..item(&object.path, ItemOutcome::Succeeded, "unreferenced") };
    Verdict::Garbage(Box::new(Garbage {
        item,
        key,
        blob,
        is_blob_referred_to: reference.is_some(),
    }))
}

/// Whether an object is needed by images that have its blob: the blob itself always, a rendition if it is
/// recorded, or if some job may still record it.
fn refers_to(reference: &Reference, key: &BlobKey) -> bool {
    let blob = reference.sha256;
    let is_recorded =
        || reference.renditions.iter().any(|made| BlobKey::rendition(blob, made) == *key);
    *key == BlobKey::Blob(blob) || reference.is_busy || is_recorded()
}

fn pass(passed: &mut BTreeMap<String, u64>, reason: &str) {
    *passed.entry(reason.to_owned()).or_default() += 1;
}

/// A report line of an object, with a new id.
fn item(path: &str, outcome: ItemOutcome, reason: &str) -> ReportLine {
    ReportLine {
        id: Uuid::now_v7(),
        outcome,
        reason: Some(reason.to_owned()),
        detail: None,
        source: Some(path.to_owned()),
    }
}
