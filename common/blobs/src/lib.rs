//! The blob store: a small struct over `object_store`, with typed keys.
//!
//! ```text
//! incoming/<token>#1                              an upload that is being received
//! incoming/<image>                                the bytes of an upload that a node of the version before accepted
//! blobs/<2 hex>/<sha256>                          bytes under their hash
//! renditions/<2 hex>/<sha256>/<preset>-<fingerprint>.<ext>
//! trash/blob=<token>=<path>                       objects of a blob that may be deleted
//! installation.json                               whose store this is
//! generation                                      the database's, to notice an older copy of it
//! quarantine/<2 hex>/<time>=<gc>=<token>=<path>   objects that `gc` found unreferenced, until they are deleted
//! probe/<token>                                   temporary, to check whether the store is writable
//! clock                                           empty; its modification time is the store's clock
//! ```

mod blocking;
mod bucket;
mod copy;
mod error;
mod free_space;
mod ingest;
mod key;
mod mark;
mod move_limits;
mod moves;
mod owner;
mod partial;
mod promote;
mod proven;
mod proven_files;
mod quarantine;
mod rendition;
mod reserve;
mod shared_look;
mod spool;
mod staging;
mod stamp;
mod store;
#[cfg(test)]
mod testing;
mod time_limits;
mod trash;
mod unfinished;
mod upload_file;
mod walk;

pub use blocking::blocking;
pub use bucket::{Bucket, Listed};
pub use copy::ObjectWriter;
pub use error::{BlobError, WrongStore};
pub use free_space::StoragePlace;
pub use ingest::{Content, Ingest, IngestError, IngestLimits, Whole};
pub use key::BlobKey;
pub use moves::EndedMoves;
pub use promote::{Digest, StagedUpload, VerifiedUpload};
pub use quarantine::{Quarantined, TakenBack, WalkedQuarantine};
pub use staging::{StagedBytes, Staging, StoredBytes};
pub use stamp::Stamp;
pub use store::{BlobContent, BlobLocation, Blobs, Incoming, OpenBlob};
pub use time_limits::BlobStream;
pub use trash::{TrashOfOthers, Trashed};
pub use walk::{Shard, Stored, Walked};
