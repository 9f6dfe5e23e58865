//! Contracts of the seams. Each test runs on every backend.

mod blobs;
mod broker;
mod bucket;
mod store;
