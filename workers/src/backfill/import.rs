//! Takes existing pictures in: reads what the source names, stages what is new.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use safelight_common::{
    blobs::{BlobKey, Staging},
    domain::{
        Backfill, ContentHash, ContentHasher, ErrorCode, ImageFormat, ImageId, ItemOutcome, JobId,
        JobKind, TaskId, TaskKind,
    },
    services::Services,
    store::{Advance, Child, Imported, Item},
};
use uuid::Uuid;

use super::{
    BackfillError, reason,
    source::{Entry, Source, SourceError},
};

/// Entries read in one step: few, so that a step is soon over.
const ENTRIES: u32 = 64;

/// Entries read at the same time.
const AT_ONCE: usize = 4;

/// What an entry came to.
enum Found {
    Work(Child),
    Settled(Item),
}

/// The next step through a source, with at most `room` pictures to take in.
pub(super) async fn step(
    services: &Services,
    backfill: &Backfill,
    room: u32,
) -> Result<Advance, BackfillError> {
    let source = Source::of(&backfill.spec)?;
    let mut step = Advance::of(backfill.id, backfill.cursor.clone());
    if backfill.expected.is_none() {
        step.expected = Some(source.count().await?);
        return Ok(step);
    }
    let limit = room.min(ENTRIES);
    let entries = source.page(backfill.cursor.as_deref(), limit).await?;
    step.is_last = entries.len() < limit as usize;
    step.to = entries.last().map(|entry| entry.cursor.clone()).or(step.to);
    let import = Import { services, source, backfill, seen: Mutex::default() };
    // In the order of the source, whichever is read first.
    let mut found = stream::iter(entries).map(|entry| import.take(entry)).buffered(AT_ONCE);
    while let Some(found) = found.try_next().await? {
        match found {
            Found::Work(child) => step.work.push(child),
            Found::Settled(item) => step.settled.push(item),
        }
    }
    Ok(step)
}

/// Removes what was staged for a step that did not count. What is left in spite of it, the janitor finds.
pub(super) async fn give_up(services: &Services, step: &Advance) {
    for child in step.work.iter().filter(|child| child.import.is_some()) {
        if let Err(error) = services.blobs.delete(&BlobKey::Incoming(child.image)).await {
            tracing::warn!(%error, image = %child.image, "cannot remove bytes of an import");
        }
    }
}

struct Import<'a> {
    services: &'a Services,
    source: Source,
    backfill: &'a Backfill,
    /// What this step has taken in already.
    seen: Mutex<HashSet<ContentHash>>,
}

impl Import<'_> {
    /// Reads one entry. What is wrong with it is a line of the report; an error is one of the store, or
    /// of the way to the source, and the whole step is tried again.
    async fn take(&self, entry: Entry) -> Result<Found, BackfillError> {
        match &entry.invalid {
            Some(why) => {
                return Ok(settled(&entry, ItemOutcome::Failed, "invalid_line", Some(why.clone())));
            }
            None if !entry.is_file => {
                return Ok(settled(&entry, ItemOutcome::Skipped, "not_a_file", None));
            }
            None => {}
        }
        let mut bytes = match self.source.open(&entry).await {
            Ok(bytes) => bytes,
            Err(SourceError::Unusable(why)) => {
                return Ok(settled(&entry, ItemOutcome::Failed, "unreadable", Some(why)));
            }
            Err(error) => return Err(error.into()),
        };
        let image = ImageId::new();
        let mut intake = Intake::new(self.services.config.max_upload_bytes);
        loop {
            match bytes.try_next().await {
                Ok(Some(chunk)) => {
                    if let Some((code, why)) = intake.write(self, image, &chunk).await? {
                        return Ok(not_taken(&entry, code, why));
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    let why = reason(&error);
                    return Ok(settled(&entry, ItemOutcome::Failed, "unreadable", Some(why)));
                }
            }
        }
        if let Some((code, why)) = intake.judge(self, image).await? {
            return Ok(not_taken(&entry, code, why));
        }
        self.keep(entry, image, intake).await
    }

    /// Keeps a picture that was read to its end, unless it is there already.
    async fn keep(
        &self,
        entry: Entry,
        image: ImageId,
        intake: Intake,
    ) -> Result<Found, BackfillError> {
        let (Some(format), Some(sha256)) = (intake.format, intake.hash()) else {
            return Ok(not_taken(&entry, ErrorCode::NotAnImage, String::new()));
        };
        let known = self.services.store.images_with_blobs(&self.backfill.owner, &[sha256]).await?;
        let detail = match known.first() {
            Some((_, id)) => Some(format!("equal to image {id}")),
            None if !self.first(sha256) => Some("equal to another one of this import".to_owned()),
            None => None,
        };
        if detail.is_some() {
            return Ok(settled(&entry, ItemOutcome::Skipped, "duplicate", detail));
        }
        let bytes = intake.bytes;
        if let Target::Staging(staging) = intake.target {
            staging.finish().await?;
        }
        let import = Imported {
            source: entry.name,
            sha256,
            bytes,
            format,
            title: entry.title,
            tags: entry.tags,
            filename: entry.filename,
        };
        Ok(Found::Work(Child {
            task: TaskId::new(),
            kind: TaskKind::Upload,
            image,
            jobs: [JobKind::Write, JobKind::Thumbnail].map(|kind| (JobId::new(), kind)).to_vec(),
            import: Some(import),
        }))
    }

    /// Whether no other entry of this step has these bytes.
    fn first(&self, sha256: ContentHash) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(sha256)
    }
}

/// A picture on its way in: judged by its first bytes, staged from then on; of a dry run, only hashed.
struct Intake {
    head: Vec<u8>,
    format: Option<ImageFormat>,
    target: Target,
    bytes: u64,
    limit: u64,
}

enum Target {
    Undecided,
    Staging(Box<Staging>),
    Hash(ContentHasher),
}

type Refusal = (ErrorCode, String);

impl Intake {
    fn new(limit: u64) -> Self {
        Self { head: Vec::new(), format: None, target: Target::Undecided, bytes: 0, limit }
    }

    async fn write(
        &mut self,
        import: &Import<'_>,
        image: ImageId,
        chunk: &Bytes,
    ) -> Result<Option<Refusal>, BackfillError> {
        self.bytes += chunk.len() as u64;
        if self.bytes > self.limit {
            let why = format!("it has more than the {} bytes that are allowed", self.limit);
            return Ok(Some((ErrorCode::TooLarge, why)));
        }
        if self.format.is_some() {
            self.pass_on(chunk).await?;
            return Ok(None);
        }
        self.head.extend_from_slice(chunk);
        if self.head.len() < ImageFormat::SNIFF_BYTES {
            return Ok(None);
        }
        self.judge(import, image).await
    }

    /// Decides by the first bytes, and passes them on.
    async fn judge(
        &mut self,
        import: &Import<'_>,
        image: ImageId,
    ) -> Result<Option<Refusal>, BackfillError> {
        if self.format.is_some() {
            return Ok(None);
        }
        self.format = ImageFormat::sniff(&self.head);
        if self.format.is_none() {
            let why = if self.head.is_empty() { "it is empty" } else { "no picture read here" };
            return Ok(Some((ErrorCode::NotAnImage, why.to_owned())));
        }
        self.target = if import.backfill.spec.dry_run {
            Target::Hash(ContentHasher::default())
        } else {
            Target::Staging(Box::new(import.services.blobs.stage(image).await?))
        };
        let head = std::mem::take(&mut self.head);
        self.pass_on(&head).await?;
        Ok(None)
    }

    async fn pass_on(&mut self, bytes: &[u8]) -> Result<(), BackfillError> {
        match &mut self.target {
            Target::Staging(staging) => staging.write(bytes).await?,
            Target::Hash(hasher) => hasher.update(bytes),
            Target::Undecided => {}
        }
        Ok(())
    }

    fn hash(&self) -> Option<ContentHash> {
        match &self.target {
            Target::Staging(staging) => Some(staging.hash()),
            Target::Hash(hasher) => Some(hasher.clone().finish()),
            Target::Undecided => None,
        }
    }
}

/// An entry that is no picture: a failure if it is named like one, else of no interest.
fn not_taken(entry: &Entry, code: ErrorCode, why: String) -> Found {
    let outcome = if code == ErrorCode::NotAnImage && !entry.is_named_like_a_picture() {
        ItemOutcome::Skipped
    } else {
        ItemOutcome::Failed
    };
    settled(entry, outcome, code.as_str(), Some(why).filter(|why| !why.is_empty()))
}

fn settled(entry: &Entry, outcome: ItemOutcome, reason: &str, detail: Option<String>) -> Found {
    Found::Settled(Item {
        id: Uuid::now_v7(),
        outcome,
        reason: Some(reason.to_owned()),
        detail,
        source: Some(entry.name.clone()),
    })
}
