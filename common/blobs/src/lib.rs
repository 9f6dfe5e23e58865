//! The blob store: a small struct over `object_store`, with typed keys.
//!
//! ```text
//! incoming/<image>                                staged bytes of an upload, until its write job
//! blobs/<2 hex>/<sha256>                          bytes under their hash
//! renditions/<2 hex>/<sha256>/<preset>-<fingerprint>.<ext>
//! trash/blob=<token>=<path>                       objects of a blob that may be deleted
//! probe/<token>                                   temporary, to check whether the store is writable
//! clock                                           empty; its modification time is the store's clock
//! ```

mod blocking;
mod bucket;
mod error;
mod ingest;
mod key;
mod spool;
mod staging;
mod store;
mod trash;
mod walk;

pub use blocking::blocking;
pub use bucket::{Bucket, Listed};
pub use error::BlobError;
pub use ingest::{Content, Ingest, IngestError, Whole};
pub use key::BlobKey;
pub use staging::{StagedUpload, Staging};
pub use store::{BlobContent, BlobLocation, BlobStream, Blobs, Incoming, OpenBlob};
pub use trash::Trashed;
pub use walk::{Stored, Walked};
