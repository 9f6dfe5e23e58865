//! The verify job: reads an image's bytes and renditions back, compares each with its hash, and repairs
//! what it can: a blob from its staged bytes or the quarantine, a rendition from the blob.

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use safelight_blobs::{BlobError, BlobKey};
use safelight_domain::{ContentHash, ErrorCode, Failure, Image, Rendition};
use safelight_store::{ClaimedJob, Effect, Outcome};

use super::{
    job::{Context, Job, SlotClass},
    source, thumbnail,
};

/// Renditions read back at the same time.
const AT_ONCE: usize = 4;

/// The result of reading an object back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ObjectState {
    Good,
    Missing,
    Damaged,
}

impl ObjectState {
    fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Missing => "missing",
            Self::Damaged => "damaged",
        }
    }
}

/// Reads an image's bytes and renditions back, and repairs what is bad.
pub(super) struct Verify;

#[async_trait]
impl Job for Verify {
    fn slots(&self) -> SlotClass {
        SlotClass::Processor
    }

    async fn run(&self, context: &Context, job: &ClaimedJob) -> Result<Outcome, Failure> {
        verify(context, &job.image).await
    }
}

async fn verify(context: &Context, image: &Image) -> Result<Outcome, Failure> {
    let mut notes = Vec::new();
    let bad: Vec<(Rendition, ObjectState)> = stream::iter(image.renditions.clone())
        .map(|made| async {
            let key = BlobKey::rendition(image.sha256, &made);
            let found = check_object(context, &key, made.sha256, made.bytes).await?;
            Ok::<_, Failure>((made, found))
        })
        .buffered(AT_ONCE)
        .try_filter(|(_, found)| std::future::ready(*found != ObjectState::Good))
        .try_collect()
        .await?;
    for (made, found) in &bad {
        notes.push(format!("{} ({}) was {}", made.preset, made.format, found.word()));
    }
    let original = look_at_original(context, image).await?;
    if original != ObjectState::Good {
        restore(context, image, original, &notes).await?;
        notes.insert(0, format!("the original was {}, and was restored", original.word()));
    }
    if notes.is_empty() {
        return Ok(Outcome::Succeeded(Vec::new()));
    }
    let (repaired, forgotten) = repair(context, image, bad).await?;
    let names = |list: &[Rendition]| {
        let names = list.iter().map(|made| format!("{} ({})", made.preset, made.format));
        names.collect::<Vec<_>>().join(", ")
    };
    if !repaired.is_empty() {
        notes.push(format!("made again: {}", names(&repaired)));
    }
    if !forgotten.is_empty() {
        notes.push(format!("no longer made, records removed: {}", names(&forgotten)));
    }
    tracing::warn!(image = %image.id, found = notes.join("; "), "stored bytes were bad");
    Ok(Outcome::Succeeded(vec![
        Effect::UpsertRenditions(repaired),
        Effect::ForgetRenditions(forgotten),
        Effect::Note(notes.join("; ")),
    ]))
}

/// Reads one object to its end; twice if it seems damaged, because the damage may have been on the way.
async fn check_object(
    context: &Context,
    key: &BlobKey,
    sha256: ContentHash,
    bytes: u64,
) -> Result<ObjectState, Failure> {
    for _ in 0..2 {
        match context.parts.blobs.hash(key).await {
            Ok(read) if read == (sha256, bytes) => return Ok(ObjectState::Good),
            Ok(_) => {}
            Err(BlobError::NotFound) => return Ok(ObjectState::Missing),
            Err(error) => return Err(source::failure(error)),
        }
    }
    Ok(ObjectState::Damaged)
}

/// Reads an image's bytes to their end. Those of an upload that is not stored yet may be staged.
async fn look_at_original(context: &Context, image: &Image) -> Result<ObjectState, Failure> {
    for key in BlobKey::of_upload(image.id, image.sha256) {
        let found = check_object(context, &key, image.sha256, image.bytes).await?;
        if found != ObjectState::Missing || image.stored_at.is_some() {
            return Ok(found);
        }
    }
    Ok(ObjectState::Missing)
}

/// Restores a blob from the staged bytes of its upload, if those still exist.
async fn restore(
    context: &Context,
    image: &Image,
    found: ObjectState,
    notes: &[String],
) -> Result<(), Failure> {
    match context.parts.blobs.promote(&source::upload_of(image)).await {
        Err(BlobError::NotFound | BlobError::Damaged) => {}
        restored => return restored.map_err(source::failure),
    }
    let blob = BlobKey::Blob(image.sha256);
    if found == ObjectState::Missing
        && context.parts.blobs.take_back_key(&blob).await.map_err(source::failure)?
        && check_object(context, &blob, image.sha256, image.bytes).await? == ObjectState::Good
    {
        return Ok(());
    }
    let code = match found {
        ObjectState::Damaged => ErrorCode::BlobDamaged,
        ObjectState::Good | ObjectState::Missing => ErrorCode::BlobMissing,
    };
    let renditions = if notes.is_empty() {
        "its renditions are as they were recorded"
    } else {
        &notes.join("; ")
    };
    let advice = "uploading the same picture again repairs it";
    Err(Failure::new(code, format!("the original is {}; {renditions}; {advice}", found.word())))
}

/// Makes bad renditions again, as far as they are still configured. Returns those made, and those that
/// cannot be.
async fn repair(
    context: &Context,
    image: &Image,
    bad: Vec<(Rendition, ObjectState)>,
) -> Result<(Vec<Rendition>, Vec<Rendition>), Failure> {
    let configured = &context.parts.presets;
    let (repairable, forgotten): (Vec<_>, Vec<_>) =
        bad.into_iter().map(|(made, _)| made).partition(|made| {
            configured.get(&made.preset).is_some_and(|p| p.fingerprint() == made.fingerprint)
        });
    let mut presets = configured.clone();
    presets.retain(|name, _| repairable.iter().any(|made| made.preset == *name));
    for made in &forgotten {
        let key = BlobKey::rendition(image.sha256, made);
        context.parts.blobs.delete(&key).await.map_err(source::failure)?;
    }
    if presets.is_empty() {
        return Ok((Vec::new(), forgotten));
    }
    let bytes = source::read(&context.parts.blobs, image).await?;
    let (repaired, _) = thumbnail::make(context, image, bytes, presets).await?;
    Ok((repaired, forgotten))
}
