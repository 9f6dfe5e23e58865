//! The documents that several resources answer with.

pub mod backfill;
pub mod task;
