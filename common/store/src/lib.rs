//! The interface of the database: images, tasks, jobs, leases and the outbox.
//!
//! [`Store`] is one trait made of twelve aspects, each in a file with its records. A part of the program takes
//! the aspect that it uses: an `Arc<dyn Store>` coerces to an `Arc<dyn Outbox>`. Two backends implement all
//! aspects (the crate `safelight-store-sql`), and one contract suite (`tests/contract/store.rs`) runs on both.
//!
//! Every method is one atomic decision: it happens completely or not at all, and it is durable once the call
//! returns `Ok`. After an error the caller cannot know whether it happened; every method may be called again.
//!
//! Times on which processes must agree (due times, leases) come from the database's clock: callers pass
//! durations, never points in time.

mod access;
mod backfills;
mod clock;
mod control;
mod deletions;
pub mod ending;
mod error;
mod installation;
mod jobs;
mod outbox;
mod reads;
mod schema;
#[cfg(feature = "testing")]
pub mod testing;
mod uploads;
mod workers;

use std::sync::Arc;

pub use access::{Access, AuditEntry, KnownApiKey, LiveSigningKey, NewApiKey, NewSigningKey};
pub use backfills::{
    BackfillStep, Backfills, BlockingJob, ChildTask, CollectedResults, ImageFilter, ImportedImage,
    NewBackfill, ReportLine,
};
pub use clock::{DatabaseClock, LongestWaits};
pub use control::Control;
pub use deletions::{Deletion, DeletionRequest, Deletions, Reference, plan_removal};
pub use error::{Cause, StoreError};
pub use installation::{Installation, Installations};
pub use jobs::{Claim, ClaimedJob, Effect, JobCount, Jobs, Lease, Outcome, Renewed, Settled};
pub use outbox::{Outbox, OutboxBatch, QueueCapacity};
pub use reads::{ImagePage, PageRequest, Reads, TaskFilter, TaskPage, TaskVersion};
pub use schema::Schema;
pub use uploads::{
    Accepted, DamagedRendition, IdempotencyKey, KeyState, KeyTicket, LastRenditionJob, NewUpload,
    RenditionRequest, Requested, Uploads,
};
pub use workers::{Heartbeat, QueueSlots, RegisteredWorker, ServiceRun, WorkerStatus, Workers};

/// A shared handle to the backend that the configuration names.
pub type DynStore = Arc<dyn Store>;

/// All aspects of the database. Implemented for every type that implements each of them.
pub trait Store:
    Uploads
    + Reads
    + Outbox
    + Jobs
    + Control
    + Deletions
    + Backfills
    + Workers
    + Access
    + Schema
    + Installations
    + DatabaseClock
{
}

impl<S> Store for S where
    S: Uploads
        + Reads
        + Outbox
        + Jobs
        + Control
        + Deletions
        + Backfills
        + Workers
        + Access
        + Schema
        + Installations
        + DatabaseClock
{
}
