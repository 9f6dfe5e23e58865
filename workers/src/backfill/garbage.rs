//! Collects garbage: walks over all stored blobs and renditions, and removes those that nobody refers to.
//! That an object is missing which somebody refers to, `verify` finds.
//!
//! A first look tells what seems to be garbage; it is believed only of objects that are older than
//! `staged_grace_ms`. Then they are moved aside, and looked at again before they are removed (ADR 4), so
//! that neither an upload nor a job that stores the same object at that moment loses it.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use safelight_blobs::{BlobKey, Stored};
use safelight_domain::{Backfill, ContentHash, ItemOutcome};
use safelight_services::Services;
use safelight_store::{BackfillStep, Reference, ReportLine};
use uuid::Uuid;

use super::BackfillError;
use crate::removal::{RemovalError, remove_blob};

/// Objects looked at in one step.
const PAGE: usize = 500;

/// Objects removed in one step: few, so that a step is soon over.
const REMOVALS: usize = 32;

/// What the first look says of an object.
enum Verdict {
    /// Needs nothing, for this reason.
    Passed(&'static str),
    /// It is not one of ours, and stays.
    Unknown,
    /// Nobody refers to it.
    Garbage(Box<Garbage>),
}

/// An object that nobody seems to refer to.
struct Garbage {
    item: ReportLine,
    key: BlobKey,
    /// The blob that it is, or was made of.
    blob: ContentHash,
    /// Whether some image has that blob, so that the blob stays and only this rendition goes.
    is_blob_referred_to: bool,
}

/// The next step of the walk, in which at most `room` objects are removed.
pub(super) async fn step(
    services: &Services,
    backfill: &Backfill,
    room: u32,
) -> Result<BackfillStep, BackfillError> {
    let mut step = BackfillStep::of(backfill.id, backfill.cursor.clone());
    let walked = services.blobs.walk(backfill.cursor.as_deref(), PAGE).await?;
    let old = old_before(services).await?;
    let references = references(services, &walked.objects).await?;
    let room = (room as usize).min(REMOVALS);
    let (mut garbage, mut is_whole) = (Vec::new(), true);
    for object in walked.objects {
        let at = object.path.clone();
        match judge(object, old, &references) {
            Verdict::Garbage(_) if garbage.len() == room => {
                is_whole = false;
                break;
            }
            Verdict::Garbage(found) => garbage.push(*found),
            Verdict::Passed(reason) => pass(&mut step.passed, reason),
            Verdict::Unknown => step.settled.push(item(&at, ItemOutcome::Skipped, "unknown_name")),
        }
        step.to = Some(at);
    }
    collect(services, backfill.spec.dry_run, garbage, &mut step).await?;
    if is_whole {
        step.is_last = walked.next.is_none();
        step.to = walked.next.or(step.to);
    }
    if step.is_last {
        // To count them beforehand would take as long as the walk.
        let found =
            step.passed.values().sum::<u64>() + (step.settled.len() + step.done.len()) as u64;
        step.expected = Some(backfill.walked() + found);
    }
    Ok(step)
}

/// When an object must have been written last to be old enough, by the store's own clock.
async fn old_before(services: &Services) -> Result<Option<DateTime<Utc>>, BackfillError> {
    let now = services.blobs.clock().await?;
    let grace = i64::try_from(services.config.staged_grace_ms).unwrap_or(i64::MAX);
    let grace = TimeDelta::try_milliseconds(grace);
    Ok(grace.and_then(|grace| now.checked_sub_signed(grace)))
}

async fn references(
    services: &Services,
    objects: &[Stored],
) -> Result<HashMap<ContentHash, Reference>, BackfillError> {
    let mut hashes: Vec<ContentHash> =
        objects.iter().filter_map(|object| object.key.as_ref()?.blob()).collect();
    hashes.sort_unstable();
    hashes.dedup();
    let found = services.store.references(&hashes).await?;
    Ok(found.into_iter().map(|reference| (reference.sha256, reference)).collect())
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

/// Whether an object is needed by images that have its blob: the blob itself always, a rendition if it is on
/// record, or if some job may yet record it.
fn refers_to(reference: &Reference, key: &BlobKey) -> bool {
    let blob = reference.sha256;
    let is_recorded =
        || reference.renditions.iter().any(|made| BlobKey::rendition(blob, made) == *key);
    *key == BlobKey::Blob(blob) || reference.is_busy || is_recorded()
}

/// Removes garbage, or of a dry run only says what would be.
async fn collect(
    services: &Services,
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
            (false, false) => remove_blob(services, &blob, &keys).await?,
            (false, true) => remove_renditions(services, &blob, &keys).await?,
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

/// Removes renditions of a blob that stays, unless they came on record, or may yet. Answers whether they
/// did not.
async fn remove_renditions(
    services: &Services,
    blob: &ContentHash,
    keys: &[BlobKey],
) -> Result<bool, RemovalError> {
    let aside = services.blobs.move_aside(keys).await?;
    safelight_fail_points::hit("gc.moved").await;
    let now = services.store.references(&[*blob]).await?;
    if now.iter().any(|now| keys.iter().any(|key| refers_to(now, key))) {
        services.blobs.put_back(aside).await?;
        return Ok(false);
    }
    services.blobs.remove_aside(aside).await?;
    Ok(true)
}

fn pass(passed: &mut BTreeMap<String, u64>, reason: &str) {
    *passed.entry(reason.to_owned()).or_default() += 1;
}

/// A report line of an object; its id is made for the purpose.
fn item(path: &str, outcome: ItemOutcome, reason: &str) -> ReportLine {
    ReportLine {
        id: Uuid::now_v7(),
        outcome,
        reason: Some(reason.to_owned()),
        detail: None,
        source: Some(path.to_owned()),
    }
}
