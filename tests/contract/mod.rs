//! The suites that every backend of a seam must pass.

pub mod store;
