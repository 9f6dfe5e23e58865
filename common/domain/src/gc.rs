//! The collection of garbage: what it found before it removes anything, and when it refuses to.
//!
//! ```text
//! survey ──the last object──▶ collect ──the last object──▶ ended
//!    └──── refused: nothing, or nothing more, is removed ────▲
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use super::TaskId;

/// The cursor of a collection starts with this. It follows the path of every object, and the paths in it are
/// encoded: nodes of 0.1.0, which take a cursor for the path of the last object, find nothing after it and end
/// the walk. They neither survey nor know a quarantine.
const PREFIX: &str = "renditions/ff/zz:";

/// At most one original in this many goes without `force`.
const SPARED: u64 = 10;

/// Which objects a take-back moves back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TakeBack {
    /// Everything in the quarantine.
    All,
    /// What this collection moved there.
    Run(TaskId),
}

impl TakeBack {
    /// Whether it moves back what `run` has moved.
    pub fn includes(self, run: TaskId) -> bool {
        match self {
            Self::All => true,
            Self::Run(one) => one == run,
        }
    }
}

/// Objects, and the bytes in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Their number.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Amount {
    /// Adds an object of this size.
    pub fn add(&mut self, bytes: u64) {
        self.objects = self.objects.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            objects: self.objects.saturating_add(other.objects),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    /// Whether this is more than its share of `whole`, by number or by bytes.
    fn is_too_much_of(self, whole: Self) -> bool {
        let exceeds = |part: u64, whole: u64| part.saturating_mul(SPARED) > whole;
        exceeds(self.objects, whole.objects) || exceeds(self.bytes, whole.bytes)
    }
}

/// What a collection found before its first removal. Renditions are counted only: they can be made again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcSurvey {
    /// All objects.
    pub objects: u64,
    /// All originals.
    pub originals: Amount,
    /// Originals that nothing refers to, and that are old enough to go.
    pub unreferenced: Amount,
    /// Renditions that nothing refers to, and that are old enough to go.
    pub unreferenced_renditions: u64,
    /// Why the same collection without the dry run would remove nothing; only of a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
}

/// The phase of a collection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GcPhase {
    /// It counts what would go.
    #[default]
    Survey,
    /// It moves unreferenced objects to the quarantine.
    Collect,
}

/// How far a collection, or a take-back, has come: its cursor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcProgress {
    /// The phase.
    pub phase: GcPhase,
    /// The path after which the walk of this phase continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Where the second phase begins: after the objects that a node of 0.1.0 has visited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_after: Option<String>,
    /// What the survey found so far.
    #[serde(default)]
    pub survey: GcSurvey,
    /// Originals that were moved to the quarantine.
    #[serde(default)]
    pub moved: Amount,
}

impl GcProgress {
    /// The progress that a backfill's cursor tells. A collection that a node of 0.1.0 began had no survey, so
    /// it gets one first.
    pub fn of_cursor(cursor: Option<&str>) -> Self {
        let Some(cursor) = cursor else { return Self::default() };
        match cursor.strip_prefix(PREFIX) {
            Some(progress) => serde_json::from_str(progress).unwrap_or_default(),
            None => Self { resume_after: Some(cursor.to_owned()), ..Self::default() },
        }
    }

    /// The cursor of this progress.
    pub fn to_cursor(&self) -> String {
        // Numbers and texts: serializing them to JSON cannot fail.
        format!("{PREFIX}{}", serde_json::to_string(self).unwrap_or_default())
    }
}

/// Why a collection removes nothing, or nothing more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GcRefusal {
    /// The store is not that of this installation; with the reason.
    WrongStore(String),
    /// The database knows no image, but there are originals.
    NoImages(Amount),
    /// The database may know less than what was stored.
    OlderDatabase,
    /// Too many of the originals would go.
    TooMany {
        /// Those that would go.
        unreferenced: Amount,
        /// All of them.
        originals: Amount,
    },
}

impl GcRefusal {
    /// The refusal of a survey that is over, or whose walk has moved `more` originals; `None` if as few would
    /// go as may.
    pub fn of_amount(survey: &GcSurvey, unreferenced: Amount) -> Option<Self> {
        let originals = survey.originals;
        unreferenced.is_too_much_of(originals).then_some(Self::TooMany { unreferenced, originals })
    }

    /// Whether a collection with `force` does it nevertheless.
    pub fn yields_to_force(&self) -> bool {
        !matches!(self, Self::WrongStore(_))
    }
}

impl fmt::Display for GcRefusal {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongStore(reason) => {
                return write!(to, "{reason}; hint: check `blob_url`, and that the volume is mounted");
            }
            Self::NoImages(originals) => write!(
                to,
                "the database knows no image, but {} originals ({} bytes) are stored: it may be empty, or \
                 another installation's",
                originals.objects, originals.bytes
            )?,
            Self::OlderDatabase => to.write_str(
                "the database is an older copy, or a standby that was promoted lately, and may not know \
                 what was stored last",
            )?,
            Self::TooMany { unreferenced, originals } => write!(
                to,
                "{} of {} originals ({} of {} bytes) would go, which is more than a tenth: the database \
                 may not know all that is stored",
                unreferenced.objects, originals.objects, unreferenced.bytes, originals.bytes
            )?,
        }
        to.write_str(
            "; hint: `safelight backfill gc --dry-run` lists the objects; if nobody needs them, add \
             `--force`",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(objects: u64, bytes: u64) -> GcSurvey {
        GcSurvey { originals: Amount { objects, bytes }, ..GcSurvey::default() }
    }

    #[test]
    fn more_than_a_tenth_is_refused_by_number_and_by_bytes() {
        let some = |objects, bytes| Amount { objects, bytes };
        for (part, is_refused) in [
            (some(0, 0), false),
            (some(10, 100), false),
            (some(11, 100), true),
            (some(1, 101), true),
            (some(100, 1000), true),
        ] {
            let refusal = GcRefusal::of_amount(&survey(100, 1000), part);
            assert_eq!(refusal.is_some(), is_refused, "{part:?}");
        }
        assert_eq!(GcRefusal::of_amount(&survey(0, 0), some(0, 0)), None);
        assert!(GcRefusal::of_amount(&survey(0, 0), some(1, 0)).is_some());
    }

    #[test]
    fn cursor_follows_every_object_and_is_read_back() {
        let progress = GcProgress {
            phase: GcPhase::Collect,
            after: Some("blobs/ab/abc".to_owned()),
            resume_after: None,
            survey: survey(3, 4),
            moved: Amount { objects: 1, bytes: 2 },
        };
        let cursor = progress.to_cursor();
        assert!(*cursor > *format!("renditions/ff/{}", "f".repeat(64)));
        assert_eq!(GcProgress::of_cursor(Some(&cursor)), progress);
    }

    #[test]
    fn collection_of_an_older_node_is_surveyed_first() {
        let progress = GcProgress::of_cursor(Some("blobs/ab/abc"));
        let (phase, survey) = (GcPhase::Survey, GcSurvey::default());
        assert_eq!((progress.phase, &progress.survey, &progress.after), (phase, &survey, &None));
        assert_eq!(progress.resume_after.as_deref(), Some("blobs/ab/abc"));
        assert_eq!(GcProgress::of_cursor(None), GcProgress::default());
    }
}
