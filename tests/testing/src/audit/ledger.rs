//! The uploads that clients know to be accepted.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// An upload whose response was 202. Ids are hexadecimal without dashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedUpload {
    /// Its task.
    pub task: String,
    /// Its image.
    pub image: String,
    /// The hash of the bytes sent.
    pub sha256: String,
    /// The number of bytes sent.
    pub bytes: u64,
}

/// All accepted uploads. Several clients may record concurrently.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Vec<AcceptedUpload>>);

impl Ledger {
    /// Records that the response to `body` was the task document `task`.
    pub fn record(&self, task: &Value, body: &[u8]) -> Result<()> {
        let id = |id: &Value| -> Result<String> {
            Ok(id.as_str().with_context(|| format!("no id in {task}"))?.replace('-', ""))
        };
        let upload = AcceptedUpload {
            task: id(&task["id"])?,
            image: id(&task["image"]["id"])?,
            sha256: sha256(body),
            bytes: body.len() as u64,
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(upload);
        Ok(())
    }

    /// All recorded uploads.
    pub fn uploads(&self) -> Vec<AcceptedUpload> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds all uploads of another ledger.
    pub fn append(&self, other: &Self) {
        let mut added = other.uploads();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).append(&mut added);
    }

    /// Keeps only the uploads for which `wanted` holds.
    pub fn retain(&self, wanted: impl FnMut(&AcceptedUpload) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(wanted);
    }

    /// The number of recorded uploads.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The SHA-256 in hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
