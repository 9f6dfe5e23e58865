//! What a source offers to an import.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::stream::BoxStream;
use safelight_domain::Labels;

use super::error::SourceError;

/// The content of a candidate.
pub(crate) type ByteStream = BoxStream<'static, Result<Bytes, SourceError>>;

/// Something that may be a picture.
#[derive(Debug)]
pub(crate) struct Candidate {
    /// The walk's cursor after this candidate.
    pub cursor: String,
    /// Its name in a report.
    pub name: String,
    /// Where its bytes are.
    pub location: Location,
    /// Why it is no picture, if that is known without reading it.
    pub verdict: Option<Verdict>,
    /// What the source calls it.
    pub labels: Labels,
}

/// Why a candidate is not read at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is a symbolic link, a pipe or a device; in a bucket the mark of a folder.
    NotAFile,
    /// A folder that cannot be read.
    Unreadable(String),
    /// A line of a list that names nothing.
    Invalid(String),
}

/// Where bytes are.
#[derive(Debug)]
pub(crate) enum Location {
    /// In a file.
    File(PathBuf),
    /// In a bucket, under a key.
    Object { bucket: String, key: String },
}

impl Candidate {
    /// A candidate of which only the location is known.
    pub(super) fn at(cursor: String, name: &str, location: Location) -> Self {
        let mut labels = Labels::default();
        match &location {
            Location::File(path) => {
                if let Some(name) = path.file_name() {
                    labels.set_filename(&name.to_string_lossy());
                }
            }
            Location::Object { key, .. } => labels.set_filename(key),
        }
        // PostgreSQL cannot store text with a NUL.
        let name = name.replace('\0', "\u{fffd}");
        Self { cursor, name, location, verdict: None, labels }
    }

    /// Whether its name is that of a picture.
    pub fn is_named_like_a_picture(&self) -> bool {
        const EXTENSIONS: [&str; 12] = [
            "jpg", "jpeg", "jpe", "png", "gif", "webp", "avif", "tif", "tiff", "bmp", "heic",
            "heif",
        ];
        let extension = Path::new(&self.name).extension().and_then(|e| e.to_str());
        extension.is_some_and(|e| EXTENSIONS.iter().any(|known| e.eq_ignore_ascii_case(known)))
    }
}
