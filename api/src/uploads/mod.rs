//! Receiving uploads.
//!
//! Everything that can be rejected without the body is rejected before it is read: headers, size, the number of
//! uploads in flight. The body then streams through [`Ingest`](safelight_blobs::Ingest) to the blob store, and
//! the upload is committed.

mod backlog;
mod commit;
mod idempotency;
mod labels;
mod multipart;
mod params;
mod receive;
mod rejected_bytes;

pub use receive::{AcceptedUpload, Uploads, UploadsParts};
