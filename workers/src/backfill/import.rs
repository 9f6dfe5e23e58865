//! Imports existing pictures: reads the candidates of the source, and stores new pictures.

use std::{
    collections::HashSet,
    future::ready,
    sync::{Arc, Mutex, PoisonError},
};

use futures::{StreamExt, TryStreamExt, stream};
use safelight_blobs::{
    BlobKey, Blobs, Content, Ingest, IngestError, IngestLimits, StoredBytes, Whole,
};
use safelight_domain::{
    Backfill, ContentHash, ErrorCode, ImageId, ItemOutcome, JobKind, TaskId, TaskKind, Usage,
    new_id,
};
use safelight_store::{Access, BackfillStep, Backfills, ChildTask, ImportedImage, ReportLine};

use super::{
    blocking_jobs::failure,
    error::{BackfillError, with_causes},
    source::{Candidate, Reader, Source, SourceError, Verdict},
};

/// Entries read in one step: few, so that a step is short.
const CANDIDATES: u32 = 64;

/// How often a step is tried if the source answers, but not for all of its candidates. Then those count as
/// unreadable.
const TRIES: u32 = 8;

/// Entries read at the same time.
const AT_ONCE: usize = 4;

/// Once a step has stored so many bytes, it begins no further entry: until it is recorded, a remote store's are in spool
/// files, too. In unit tests, a few pictures are more than one step.
const STEP_BYTES: u64 = if cfg!(test) { 1 << 10 } else { 256 << 20 };

/// Hashes that a dry run keeps at most. Beyond this number it may count equal files more than once.
const SEEN: usize = 1_000_000;

/// What an import keeps from step to step. A coordinator that takes it over starts without it.
#[derive(Default)]
pub(super) struct StepState {
    reader: Reader,
    /// In a dry run, the first bytes of the hashes found so far.
    seen: HashSet<u64>,
    /// The same for the step that is not counted yet.
    pending: HashSet<u64>,
    /// How often the next step has failed because of a candidate.
    tries: u32,
    /// The bytes of the step that is not recorded yet.
    stored: Vec<StoredBytes>,
}

/// The result of reading a candidate.
enum ReadResult {
    Work(ChildTask),
    Settled(ReportLine),
}

/// Walks through a source.
pub(super) struct ImportWalk {
    backfills: Arc<dyn Backfills>,
    /// Counts what owners have stored.
    access: Arc<dyn Access>,
    blobs: Blobs,
    ingest: IngestLimits,
}

impl ImportWalk {
    pub fn new(
        backfills: Arc<dyn Backfills>,
        access: Arc<dyn Access>,
        blobs: Blobs,
        ingest: IngestLimits,
    ) -> Self {
        Self { backfills, access, blobs, ingest }
    }

    /// The next step through a source, with at most `capacity` pictures to import.
    pub async fn step(
        &self,
        backfill: &Backfill,
        capacity: u32,
        state: &mut StepState,
    ) -> Result<BackfillStep, BackfillError> {
        let source = Source::of(&backfill.spec, state.reader.clone()).await?;
        let mut step = BackfillStep::of(backfill.id, backfill.cursor.clone());
        if backfill.expected.is_none() {
            step.expected = Some(source.count().await?);
            return Ok(step);
        }
        let limit = capacity.min(CANDIDATES);
        let candidates = source.page(backfill.cursor.as_deref(), limit).await?;
        let cursors: Vec<_> = candidates.iter().map(|candidate| candidate.cursor.clone()).collect();
        let quota = backfill.spec.quota;
        let used = if quota.is_unlimited() {
            Usage::default()
        } else {
            self.access.usage(&backfill.owner).await?
        };
        let import = Import {
            walk: self,
            source,
            backfill,
            is_last_try: state.tries >= TRIES,
            seen: Mutex::default(),
            used: Mutex::new(used),
            stored: Mutex::default(),
        };
        // Results keep the order of the source.
        let mut found = stream::iter(candidates)
            .take_while(|_| ready(import.begins_another()))
            .map(|candidate| import.take(candidate))
            .buffered(AT_ONCE);
        while let Some(found) = found.next().await {
            match found {
                Ok(ReadResult::Work(child)) => step.work.push(child),
                Ok(ReadResult::Settled(item)) => step.without_work.push(item),
                Err(error) => {
                    state.tries += u32::from(matches!(error, BackfillError::Source(_)));
                    return Err(error);
                }
            }
        }
        drop(found);
        let read = step.work.len() + step.without_work.len();
        step.is_last = read == cursors.len() && read < limit as usize;
        step.to = cursors.into_iter().take(read).next_back().or(step.to);
        state.stored = import.stored.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.tries = 0;
        if backfill.spec.dry_run {
            state.skip_duplicates(&mut step);
        }
        Ok(step)
    }
}

impl StepState {
    /// Removes pictures from the step of a dry run that an earlier step has found.
    fn skip_duplicates(&mut self, step: &mut BackfillStep) {
        let found = std::mem::take(&mut step.work);
        let (first, equal): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|child| self.is_first(child));
        step.work = first;
        step.without_work.extend(equal.into_iter().map(|child| ReportLine {
            id: child.image.0,
            outcome: ItemOutcome::Skipped,
            reason: Some("duplicate".to_owned()),
            detail: None,
            source: None,
        }));
    }

    fn is_first(&mut self, child: &ChildTask) -> bool {
        let Some(import) = &child.import else { return true };
        let beginning = import.sha256.as_bytes().iter().take(8);
        let beginning = beginning.fold(0, |all, byte| all << 8 | u64::from(*byte));
        !self.seen.contains(&beginning) && self.pending.insert(beginning)
    }

    /// Records whether the step has counted. If so, looks whether a removal has taken bytes of it before it was
    /// recorded (ADR 17). Bytes of a step that did not count, and that no image has, are garbage.
    pub async fn step_ended(&mut self, counted: bool) {
        for stored in std::mem::take(&mut self.stored).into_iter().filter(|_| counted) {
            if let Err(error) = stored.ensure_stored().await {
                tracing::warn!(%error, "cannot see whether the bytes of an import are still there");
            }
        }
        let pending = std::mem::take(&mut self.pending);
        if counted {
            self.seen.extend(pending.into_iter().take(SEEN.saturating_sub(self.seen.len())));
        }
    }
}

struct Import<'a> {
    walk: &'a ImportWalk,
    source: Source,
    backfill: &'a Backfill,
    /// Entries that cannot be read now are not retried.
    is_last_try: bool,
    /// The pictures that this step has imported already.
    seen: Mutex<HashSet<ContentHash>>,
    /// What the owner has stored, including this step's pictures, if its quota limits that.
    used: Mutex<Usage>,
    /// What this step has stored.
    stored: Mutex<Vec<StoredBytes>>,
}

impl Import<'_> {
    /// Reads one candidate. Its own problem becomes a line of the report; an error is one of the store or of
    /// the connection to the source, after which the whole step is retried.
    async fn take(&self, candidate: Candidate) -> Result<ReadResult, BackfillError> {
        let failed = |reason, why| Ok(settled(&candidate, ItemOutcome::Failed, reason, Some(why)));
        match &candidate.verdict {
            Some(Verdict::Invalid(why)) => return failed("invalid_line", why.clone()),
            Some(Verdict::Unreadable(why)) => return failed("unreadable", why.clone()),
            Some(Verdict::NotAFile) => {
                return Ok(settled(&candidate, ItemOutcome::Skipped, "not_a_file", None));
            }
            None => {}
        }
        let mut bytes = match self.source.open(&candidate).await {
            Ok(bytes) => bytes,
            Err(SourceError::NotAFile) => {
                return Ok(settled(&candidate, ItemOutcome::Skipped, "not_a_file", None));
            }
            Err(SourceError::Forbidden(why)) => return failed("invalid_line", why),
            Err(error) if self.is_retried(&error) => return Err(error.into()),
            Err(error) => return failed("unreadable", with_causes(&error)),
        };
        let mut ingest = self.ingest();
        loop {
            match bytes.try_next().await {
                Ok(Some(chunk)) => {
                    if let Err(error) = ingest.write(&chunk).await {
                        return not_imported(&candidate, error);
                    }
                }
                Ok(None) => break,
                Err(error) if self.is_retried(&error) => return Err(error.into()),
                Err(error) => return failed("unreadable", with_causes(&error)),
            }
        }
        match ingest.end().await {
            Ok(picture) => self.keep(candidate, picture).await,
            Err(error) => not_imported(&candidate, error),
        }
    }

    /// Whether the step reads one more candidate.
    fn begins_another(&self) -> bool {
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        stored.iter().map(StoredBytes::bytes).sum::<u64>() < STEP_BYTES
    }

    /// Receives the bytes of a candidate. A dry run only hashes them.
    fn ingest(&self) -> Ingest {
        let limits = self.walk.ingest;
        if self.backfill.spec.dry_run {
            Ingest::hashing(limits)
        } else {
            Ingest::staging(self.walk.blobs.clone(), limits)
        }
    }

    /// Whether a candidate that cannot be read is retried with the whole step. One that hangs is not: each
    /// try would take as long.
    fn is_retried(&self, error: &SourceError) -> bool {
        !self.is_last_try && matches!(error, SourceError::Io(_) | SourceError::Store(_))
    }

    /// Keeps a completely read picture, unless it is stored already.
    async fn keep(
        &self,
        candidate: Candidate,
        picture: Whole,
    ) -> Result<ReadResult, BackfillError> {
        let Content { sha256, bytes, format } = picture.content;
        if let Some(known) = self.known(&candidate, sha256, bytes).await? {
            if known.is_bad && !self.backfill.spec.dry_run {
                self.store(picture).await?;
            }
            return Ok(ReadResult::Settled(known.line));
        }
        // The transaction that records the step makes the final check of the quota. A picture that certainly
        // exceeds it need not be stored.
        if !self.has_room(bytes) {
            return Ok(ReadResult::Settled(ReportLine::over_quota(new_id(), candidate.name)));
        }
        self.store(picture).await?;
        let import = ImportedImage {
            source: candidate.name,
            sha256,
            bytes,
            format,
            labels: candidate.labels,
        };
        Ok(ReadResult::Work(ChildTask {
            task: TaskId::new(),
            kind: TaskKind::Upload,
            image: ImageId::new(),
            jobs: JobKind::jobs_of_new_image(),
            import: Some(import),
        }))
    }

    /// Stores a picture durably.
    async fn store(&self, picture: Whole) -> Result<(), BackfillError> {
        let stored = picture.store().await?;
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).extend(stored);
        Ok(())
    }

    /// An equal picture that exists already. If that failed for good, it is imported again on request.
    async fn known(
        &self,
        candidate: &Candidate,
        sha256: ContentHash,
        bytes: u64,
    ) -> Result<Option<Known>, BackfillError> {
        let skipped = |reason, detail| {
            let line = item(candidate, ItemOutcome::Skipped, reason, Some(detail));
            Some(Known { line, is_bad: false })
        };
        let backfills = &self.walk.backfills;
        let known = backfills.images_with_blobs(&self.backfill.owner, &[sha256]).await?;
        let Some(&(_, equal)) = known.first() else {
            let detail = "equal to another one of this import".to_owned();
            return Ok(if self.first(sha256) { None } else { skipped("duplicate", detail) });
        };
        let blocking = backfills.blocking_jobs(&[equal]).await?;
        if let Some(failed) = failure(&blocking, &JobKind::OF_NEW_IMAGE) {
            let spec = &self.backfill.spec;
            let detail = format!("equal to image {equal}, which failed: {failed}");
            let is_imported = spec.retry_failed && self.first(sha256);
            return Ok(if is_imported { None } else { skipped("failed_before", detail) });
        }
        let is_under_way = blocking.iter().any(|job| job.kind != JobKind::Verify);
        let bad =
            if is_under_way { None } else { self.bad(sha256, bytes, !blocking.is_empty()).await? };
        let bad_was = bad.map(|bad| format!(", whose bytes were {bad} and are back"));
        let detail = format!("equal to image {equal}{}", bad_was.unwrap_or_default());
        Ok(skipped("duplicate", detail).map(|known| Known { is_bad: bad.is_some(), ..known }))
    }

    /// What is wrong with a stored original, if anything. It is read only if a verification has failed;
    /// otherwise its size suffices.
    async fn bad(
        &self,
        sha256: ContentHash,
        bytes: u64,
        is_suspect: bool,
    ) -> Result<Option<&'static str>, BackfillError> {
        let (blobs, key) = (&self.walk.blobs, BlobKey::Blob(sha256));
        Ok(match blobs.size(&key).await? {
            None => Some("gone"),
            Some(size) if size != bytes => Some("damaged"),
            Some(_) if is_suspect && blobs.hash(&key).await? != (sha256, bytes) => Some("damaged"),
            Some(_) => None,
        })
    }

    /// Whether the owner's quota has room for one more picture of `bytes` bytes. Always true in a dry run,
    /// which imports nothing.
    fn has_room(&self, bytes: u64) -> bool {
        let Backfill { spec, .. } = self.backfill;
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        spec.dry_run || spec.quota.take(&mut used, bytes)
    }

    /// Whether no other candidate of this step has these bytes.
    fn first(&self, sha256: ContentHash) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(sha256)
    }
}

/// A picture that exists already.
struct Known {
    line: ReportLine,
    /// Its bytes are missing or damaged, and are to be restored.
    is_bad: bool,
}

/// A candidate whose bytes are not imported: a failure if it is a picture or named like one, otherwise
/// skipped.
fn not_imported(candidate: &Candidate, error: IngestError) -> Result<ReadResult, BackfillError> {
    let code = match error {
        IngestError::Blobs(error) => return Err(error.into()),
        IngestError::TooLarge(_) => ErrorCode::TooLarge,
        IngestError::Empty | IngestError::Heic | IngestError::NotAnImage => ErrorCode::NotAnImage,
    };
    let outcome = if code == ErrorCode::NotAnImage && !candidate.is_named_like_a_picture() {
        ItemOutcome::Skipped
    } else {
        ItemOutcome::Failed
    };
    Ok(settled(candidate, outcome, code.as_str(), Some(error.to_string())))
}

fn settled(
    candidate: &Candidate,
    outcome: ItemOutcome,
    reason: &str,
    detail: Option<String>,
) -> ReadResult {
    ReadResult::Settled(item(candidate, outcome, reason, detail))
}

fn item(
    candidate: &Candidate,
    outcome: ItemOutcome,
    reason: &str,
    detail: Option<String>,
) -> ReportLine {
    ReportLine {
        id: new_id(),
        outcome,
        reason: Some(reason.to_owned()),
        detail,
        source: Some(candidate.name.clone()),
    }
}
