//! What goes into and comes out of the store for backfills.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use safelight_domain::{
    BackfillSpec, ContentHash, Failure, ImageFormat, ImageId, ItemOutcome, JobId, JobKind, Owner,
    Quota, Status, TaskId, TaskKind, Usage,
};
use uuid::Uuid;

/// A backfill to begin.
#[derive(Debug, Clone, PartialEq)]
pub struct NewBackfill {
    /// Its task. Images that are accepted later are not its business.
    pub task: TaskId,
    /// Whose task it is, and whose images an import makes.
    pub owner: Owner,
    /// What to do.
    pub spec: BackfillSpec,
}

/// Which images a walk looks at: never those that were discarded.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageFilter {
    /// None that was accepted later than this.
    pub until: DateTime<Utc>,
    /// Only those accepted at this time or later.
    pub created_after: Option<DateTime<Utc>>,
    /// Only originals of this format.
    pub format: Option<ImageFormat>,
}

/// Why an image may not be worth a job of a backfill: another job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// The image.
    pub image: ImageId,
    /// What the job does.
    pub kind: JobKind,
    /// The job's state: queued, running or failed.
    pub status: Status,
    /// Why it failed.
    pub failure: Option<Failure>,
}

/// One step of a walk: what it found, and where it stands now.
#[derive(Debug, Clone, PartialEq)]
pub struct Advance {
    /// The backfill.
    pub task: TaskId,
    /// Where the walk stood. The step counts only if it still does.
    pub from: Option<String>,
    /// Where it stands after the step.
    pub to: Option<String>,
    /// How many there are to look at, where the step has counted them.
    pub expected: Option<u64>,
    /// Images to work on. Of a dry run, only counted.
    pub work: Vec<Child>,
    /// Attempts that each job has at most.
    pub max_attempts: u32,
    /// Images, or sources of an import, that come to nothing.
    pub settled: Vec<Item>,
    /// What the step has done itself, or of a dry run would have: counted as work that has ended well, with
    /// a line each.
    pub done: Vec<Item>,
    /// What needs nothing and no line, by reason.
    pub passed: BTreeMap<String, u64>,
    /// Seconds' worth of the backfill's rate that the step uses up.
    pub paced_seconds: f64,
    /// The walk has come to its end.
    pub is_last: bool,
    /// Why it broke off there.
    pub problem: Option<String>,
}

/// An image that a backfill has work for: a task of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Child {
    /// The task to make.
    pub task: TaskId,
    /// What it is for.
    pub kind: TaskKind,
    /// Its image.
    pub image: ImageId,
    /// Its jobs, ids in ascending order.
    pub jobs: Vec<(JobId, JobKind)>,
    /// Of an import: the image, which is new.
    pub import: Option<Imported>,
}

/// An existing picture that was taken in, its bytes durably staged.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// Where it was found.
    pub source: String,
    /// The hash of the bytes.
    pub sha256: ContentHash,
    /// How many there are.
    pub bytes: u64,
    /// The format as sniffed.
    pub format: ImageFormat,
    /// Title, if there is one.
    pub title: Option<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// File name, if there is one.
    pub filename: Option<String>,
}

/// A line of a backfill's report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The image; of an import, for what never became one, an id made for the purpose.
    pub id: Uuid,
    /// What became of it.
    pub outcome: ItemOutcome,
    /// Why it was skipped, or the code of its failure.
    pub reason: Option<String>,
    /// More, for people.
    pub detail: Option<String>,
    /// Of an import: where it was found.
    pub source: Option<String>,
}

impl Item {
    /// The line of a picture that an import found at `source` and that the owner's quota has no room for.
    pub fn over_quota(id: Uuid, source: String) -> Self {
        Self {
            id,
            outcome: ItemOutcome::Failed,
            reason: Some("over_quota".to_owned()),
            detail: Some(
                "the owner's quota has no room for it; once there is some, another import takes it in"
                    .to_owned(),
            ),
            source: Some(source),
        }
    }
}

impl Advance {
    /// A step of the backfill `task` from `from`, that has found nothing yet and stays there.
    pub fn of(task: TaskId, from: Option<String>) -> Self {
        Self {
            task,
            to: from.clone(),
            from,
            expected: None,
            work: Vec::new(),
            max_attempts: 1,
            settled: Vec::new(),
            done: Vec::new(),
            passed: BTreeMap::new(),
            paced_seconds: 0.0,
            is_last: false,
            problem: None,
        }
    }

    /// The hashes of the pictures that the step takes in.
    pub fn hashes(&self) -> Vec<ContentHash> {
        self.work.iter().filter_map(|child| Some(child.import.as_ref()?.sha256)).collect()
    }

    /// The step without those of its pictures that are `known` by now: those are skipped. Their staged bytes
    /// are left over.
    pub fn without(&self, known: &[(ContentHash, ImageId)]) -> Self {
        let mut step = self.clone();
        for child in step.work.extract_if(.., |child| equal(child, known).is_some()) {
            step.settled.push(Item {
                id: child.image.0,
                outcome: ItemOutcome::Skipped,
                reason: Some("duplicate".to_owned()),
                detail: equal(&child, known).map(|image| format!("equal to image {image}")),
                source: child.import.map(|import| import.source),
            });
        }
        step
    }

    /// The step without those of its pictures that have no room in `quota` beside what is `used`. Their
    /// staged bytes are left over.
    pub fn within(mut self, quota: Quota, mut used: Usage) -> Self {
        let has_no_room = |child: &mut Child| {
            child.import.as_ref().is_some_and(|new| !quota.take(&mut used, new.bytes))
        };
        let refused = self.work.extract_if(.., has_no_room);
        let lines =
            refused.filter_map(|child| Some(Item::over_quota(child.image.0, child.import?.source)));
        self.settled.extend(lines);
        self
    }

    /// Adds what was skipped to the counts by reason; answers how many failed without being handed out.
    pub fn count(&self, skipped: &mut BTreeMap<String, u64>) -> u64 {
        for (reason, count) in &self.passed {
            *skipped.entry(reason.clone()).or_default() += count;
        }
        let mut refused = 0;
        for item in &self.settled {
            if item.outcome == ItemOutcome::Skipped {
                *skipped.entry(item.reason.clone().unwrap_or_default()).or_default() += 1;
            } else {
                refused += 1;
            }
        }
        refused
    }
}

/// The known image that an import's picture is equal to.
fn equal(child: &Child, known: &[(ContentHash, ImageId)]) -> Option<ImageId> {
    let sha256 = child.import.as_ref()?.sha256;
    known.iter().find(|(hash, _)| *hash == sha256).map(|(_, image)| *image)
}
