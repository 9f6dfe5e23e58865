//! What clients were promised.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// An upload that was answered with 202. Ids are in plain hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its task.
    pub task: String,
    /// Its image.
    pub image: String,
    /// The hash of the bytes that were sent.
    pub sha256: String,
    /// How many there were.
    pub bytes: u64,
}

/// All of them. Several clients may write at once.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Vec<Entry>>);

impl Ledger {
    /// Notes that `body` was answered with the task document `task`.
    pub fn record(&self, task: &Value, body: &[u8]) -> Result<()> {
        let id = |id: &Value| -> Result<String> {
            Ok(id.as_str().with_context(|| format!("no id in {task}"))?.replace('-', ""))
        };
        let entry = Entry {
            task: id(&task["id"])?,
            image: id(&task["image"]["id"])?,
            sha256: sha256(body),
            bytes: body.len() as u64,
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        Ok(())
    }

    /// Everything that was noted.
    pub fn entries(&self) -> Vec<Entry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How much was noted.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The hash in hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
