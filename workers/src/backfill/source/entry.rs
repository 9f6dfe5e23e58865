//! The entries of a source.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::stream::BoxStream;
use safelight_domain::Labels;

use super::error::SourceError;

/// The content of an entry.
pub(crate) type ByteStream = BoxStream<'static, Result<Bytes, SourceError>>;

/// Something that may be a picture.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The walk's cursor after this entry.
    pub cursor: String,
    /// Its name in a report.
    pub name: String,
    /// Where its bytes are.
    pub place: Place,
    /// Why it is no picture, if that is known without reading it.
    pub verdict: Option<Verdict>,
    /// What the source calls it.
    pub labels: Labels,
}

/// Why an entry is not read at all.
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
pub(crate) enum Place {
    /// In a file.
    File(PathBuf),
    /// In a bucket, under a key.
    Object { bucket: String, key: String },
}

impl Entry {
    /// An entry of which only the location is known.
    pub(super) fn at(cursor: String, name: &str, place: Place) -> Self {
        let mut labels = Labels::default();
        match &place {
            Place::File(path) => {
                if let Some(name) = path.file_name() {
                    labels.set_filename(&name.to_string_lossy());
                }
            }
            Place::Object { key, .. } => labels.set_filename(key),
        }
        // PostgreSQL cannot store text with a NUL.
        let name = name.replace('\0', "\u{fffd}");
        Self { cursor, name, place, verdict: None, labels }
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
