//! An image's bytes, staged or stored.

use bytes::Bytes;
use safelight_blobs::{BlobError, BlobKey, Blobs};
use safelight_domain::{ErrorCode, Failure, Image};

/// Reads all of an image's bytes.
pub(super) async fn read(blobs: &Blobs, image: &Image) -> Result<Bytes, Failure> {
    for key in places(image) {
        match blobs.read(&key, image.bytes).await {
            Err(BlobError::NotFound) => {}
            Err(error) => return Err(failure(error)),
            Ok(bytes) if bytes.len() as u64 == image.bytes => return Ok(bytes),
            Ok(bytes) => {
                return Err(Failure::new(
                    ErrorCode::BlobMissing,
                    format!("{} of the {} bytes are there", bytes.len(), image.bytes),
                ));
            }
        }
    }
    Err(failure(BlobError::NotFound))
}

/// Reads an image's first bytes, at most `count`.
pub(super) async fn read_head(blobs: &Blobs, image: &Image, count: u64) -> Result<Bytes, Failure> {
    for key in places(image) {
        match blobs.read_head(&key, count).await {
            Err(BlobError::NotFound) => {}
            other => return other.map_err(failure),
        }
    }
    Err(failure(BlobError::NotFound))
}

/// Where to look, in order: the expected place, the other one, and the first again, because the write job may
/// move the bytes between two looks.
fn places(image: &Image) -> [BlobKey; 3] {
    let (staged, blob) = (BlobKey::Incoming(image.id), BlobKey::Blob(image.sha256));
    if image.stored_at.is_some() {
        [blob.clone(), staged, blob]
    } else {
        [staged.clone(), blob, staged]
    }
}

/// A blob error as a job's failure; its text, which may name paths and hosts, goes to the log only.
#[allow(clippy::needless_pass_by_value)] // the shape that `map_err` wants
pub(super) fn failure(error: BlobError) -> Failure {
    match error {
        BlobError::NotFound => {
            Failure::new(ErrorCode::BlobMissing, "the image's bytes are not in the store")
        }
        BlobError::TooLarge { bytes: found, limit: expected }
        | BlobError::WrongSize { found, expected } => Failure::new(
            ErrorCode::BlobMissing,
            format!("the stored object has {found} bytes where {expected} were uploaded"),
        ),
        BlobError::Full => {
            Failure::new(ErrorCode::StoreUnavailable, "the blob store has no space left")
        }
        BlobError::Store(_) | BlobError::Late | BlobError::Spool(_) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the blob store failed");
            Failure::new(ErrorCode::StoreUnavailable, "the blob store did not answer or refused")
        }
    }
}
