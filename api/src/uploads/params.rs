//! The headers and query parameters of an upload.

use axum::http::{HeaderMap, header};
use safelight_domain::{ContentHash, Label, Labels, Owner};
use safelight_store::IdempotencyKey;

use super::{idempotency, labels, multipart};
use crate::http::{
    content_disposition::ContentDisposition,
    digest,
    extract::Params,
    prefer::Wait,
    problem::{Problem, ProblemCode},
};

/// The parameters of an upload, beside its bytes.
pub struct UploadParams {
    /// The owner of the image.
    pub owner: Owner,
    /// The labels of a raw upload; `None` for multipart, where they are in the body.
    pub labels: Option<Labels>,
    /// Its idempotency key.
    pub key: Option<IdempotencyKey>,
    /// The hashes that its content must have.
    pub digests: Vec<ContentHash>,
    /// How long the client wants to wait for the end of the task.
    pub wait: Option<Wait>,
}

impl UploadParams {
    /// Reads and checks them.
    pub fn read(owner: Owner, headers: &HeaderMap, params: Params) -> Result<Self, Problem> {
        let labels = raw_labels(headers, params)?;
        reject_encodings(headers)?;
        Ok(Self {
            labels,
            key: idempotency::from_headers(headers, &owner)?,
            owner,
            digests: digest::from_headers(headers)?,
            wait: Wait::from_headers(headers),
        })
    }
}

/// The labels of a raw upload; `None` for multipart.
fn raw_labels(headers: &HeaderMap, mut params: Params) -> Result<Option<Labels>, Problem> {
    let labels = if is_multipart(headers) {
        None
    } else {
        let mut given = Labels::default();
        for &label in Label::ALL {
            let texts = if label.is_repeatable() {
                params.take_all(label.as_str())
            } else {
                params.take(label.as_str())?.into_iter().collect()
            };
            for text in texts {
                labels::set(&mut given, label, &text)?;
            }
        }
        let disposition = ContentDisposition::of(headers);
        if let Some(name) = disposition.and_then(|disposition| disposition.filename()) {
            given.set_filename(&name);
        }
        Some(given)
    };
    params.finish()?;
    Ok(labels)
}

/// Whether the body is `multipart/form-data`.
pub fn is_multipart(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.and_then(|value| value.split(';').next()).unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("multipart/form-data")
}

/// Bytes that a body may have beside those of its file.
pub fn overhead_bytes(headers: &HeaderMap) -> u64 {
    if is_multipart(headers) { multipart::OVERHEAD_BYTES } else { 0 }
}

/// A compressed body would be stored as it is, and would not be an image.
fn reject_encodings(headers: &HeaderMap) -> Result<(), Problem> {
    let plain = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    if plain {
        return Ok(());
    }
    Err(Problem::new(
        ProblemCode::UnsupportedMediaType,
        "Content codings are not supported; send the image as it is.",
    ))
}

/// The size of the body, if the client announces it.
pub fn declared_bytes(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
