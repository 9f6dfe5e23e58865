//! An image's bytes.

use bytes::Bytes;
use safelight_blobs::{BlobError, BlobKey, Blobs, StagedUpload};
use safelight_domain::{ErrorCode, Failure, Image};

/// Reads all of an image's bytes, and compares them with their hash. Copies that are damaged, or were damaged on the
/// way, are passed over.
pub(super) async fn read(blobs: &Blobs, image: &Image) -> Result<Bytes, Failure> {
    let mut last = BlobError::NotFound;
    for key in BlobKey::of_upload(image.id, image.sha256) {
        match blobs.read_verified(&key, image.sha256, image.bytes).await {
            Ok(bytes) => return Ok(bytes),
            Err(BlobError::NotFound) => {}
            Err(wrong @ BlobError::WrongStore(_)) => return Err(failure(wrong)),
            // A file that cannot be read must not hide a good copy.
            Err(error) => last = error,
        }
    }
    Err(failure(last))
}

/// An image's bytes as an upload.
pub(super) fn upload_of(image: &Image) -> StagedUpload {
    StagedUpload { image: image.id, sha256: image.sha256, bytes: image.bytes }
}

/// A blob error as a job's failure; its text, which may name paths and hosts, goes to the log only.
#[allow(clippy::needless_pass_by_value)] // the shape that `map_err` wants
pub(super) fn failure(error: BlobError) -> Failure {
    match error {
        BlobError::NotFound => {
            Failure::new(ErrorCode::BlobMissing, "the image's bytes are not in the store")
        }
        BlobError::TooLarge { .. } | BlobError::Damaged => Failure::new(
            ErrorCode::BlobDamaged,
            "the bytes in the store are not those that were uploaded, or were damaged on the way",
        ),
        BlobError::WrongStore(wrong) => {
            tracing::warn!(error = &wrong as &dyn std::error::Error, "not this store");
            Failure::new(ErrorCode::StoreUnavailable, wrong.to_string())
        }
        BlobError::Full => {
            Failure::new(ErrorCode::StoreUnavailable, "the blob store has no space left")
        }
        BlobError::Store(_) | BlobError::Late | BlobError::File(_) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the blob store failed");
            Failure::new(ErrorCode::StoreUnavailable, "the blob store did not answer or refused")
        }
    }
}
