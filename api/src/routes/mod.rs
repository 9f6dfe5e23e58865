//! The routes, a file or folder per resource.

pub mod access;
pub mod backfills;
pub mod documents;
pub mod images;
pub mod keys;
pub mod probes;
pub mod queues;
pub mod tasks;
pub mod workers;
