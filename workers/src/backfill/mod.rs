//! Backfills: walks over many images, whose work is handed out as it is done.
//!
//! ```text
//! coordinator ─ for each backfill, by themselves ─┬ collect  ended tasks ─▶ report lines, counts; the end
//!                                                 └ feed     failed images again, on request;
//!                                                            next images ─▶ tasks with jobs, report lines
//! ```
//!
//! At most a window of images is under way for each backfill, so that neither the queue nor the
//! database holds a job for each of a million images, and several backfills share the workers evenly.
//! Each step is one transaction that counts only if the walk stands where the step began: a coordinator
//! may die anywhere, and two may work on the same backfill. No backfill waits for another: the results of
//! one whose source hangs are collected and it can be cancelled, and the others go on.

mod blocking_jobs;
mod coordinator;
mod error;
mod feeder;
mod garbage;
mod images;
mod import;
mod pace;
mod source;

pub(crate) use self::coordinator::BackfillCoordinator;
