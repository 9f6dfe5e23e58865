//! Backfills: walks over many images, which create child tasks as earlier ones end.
//!
//! ```text
//! coordinator ─ for each backfill, concurrently ─┬ collect  ended tasks ─▶ report lines, counts; the end
//!                                                └ feed     failed images again, on request;
//!                                                           next images ─▶ tasks with jobs, report lines
//! ```
//!
//! At most a window of images is under way for each backfill, so that neither the queue nor the database
//! holds a job for each of a million images, and several backfills share the workers evenly. Each step is one
//! transaction that counts only if the walk is still where the step started: a coordinator may die anywhere,
//! and two may work on the same backfill. No backfill waits for another: if the source of one hangs, its
//! results are still collected, it can be cancelled, and the others continue.

mod blocking_jobs;
mod coordinator;
mod error;
mod feeder;
mod garbage;
mod images;
mod import;
mod pace;
mod safeguards;
mod source;
mod take_back;

pub(crate) use self::coordinator::BackfillCoordinator;
