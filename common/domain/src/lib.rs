//! The domain model and its decisions: ids, hashes, images, tasks, jobs, presets, owners and keys, and which
//! failures are retried and when. No I/O.

mod access;
mod backfill;
mod cache_key;
mod deletion;
mod failure;
mod gc;
mod hash;
mod ids;
mod image;
mod job_kind;
mod job_notice;
mod labels;
mod owner;
mod preset;
pub mod retry;
pub mod secrets;
mod size;
#[cfg(feature = "sqlx")]
mod sql;
mod task;
mod text_enum;
mod trace;

pub use access::{ApiKey, Quota, Scope, Scopes, SigningKey, Usage, Visibility};
pub use backfill::{Backfill, BackfillKind, BackfillSpec, BackfillState, ItemOutcome};
pub use cache_key::CacheKey;
pub use deletion::{Receipt, Removal, RemovedRendition};
pub use failure::{ErrorCode, Failure, MAX_MESSAGE_CHARS, Retries, clean};
pub use gc::{Amount, GcPhase, GcProgress, GcRefusal, GcSurvey, TakeBack};
pub use hash::{ContentHash, ContentHasher, InvalidHash};
pub use ids::{ImageId, InstallationId, JobId, TaskId, WorkerId, new_id};
pub use image::{Gps, Image, ImageFacts, ImageFormat, Placeholder, Rendition};
pub use job_kind::{JobKind, Lane};
pub use job_notice::JobNotice;
pub use labels::{Label, Labels, is_invisible_control};
pub use owner::{InvalidOwner, Owner};
pub use preset::{Fit, Focus, Formats, Preset, PresetFormat, Presets};
pub use size::Size;
pub use task::{JOB_VERSION, Job, Progress, Status, Task, TaskKind};
pub use text_enum::UnknownName;
pub use trace::{InvalidTraceContext, TraceContext};
