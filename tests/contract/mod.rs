//! The suites that every backend of a seam must pass.

mod blobs;
pub mod broker;
pub mod store;
