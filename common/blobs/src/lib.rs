//! Bytes: a small struct over `object_store`, with typed keys.
//!
//! ```text
//! incoming/<image>                                bytes of an upload, until its write job
//! blobs/<2 hex>/<sha256>                          bytes under their content's name
//! renditions/<2 hex>/<sha256>/<preset>-<fingerprint>.<ext>
//! trash/blob=<token>=<path>                       a blob or rendition in the trash
//! probe/<token>                                   for a moment, to find out whether writing works
//! clock                                           empty; its age tells the store's time
//! ```

mod blocking;
mod bucket;
mod error;
mod ingest;
mod key;
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
