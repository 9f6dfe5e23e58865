//! What every backend of a seam promises, held to it on each of them.

mod blobs;
mod broker;
mod bucket;
mod store;
