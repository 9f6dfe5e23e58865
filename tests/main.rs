//! End-to-end and fault tests over real engines, one binary.

mod blobs;
