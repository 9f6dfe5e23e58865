//! Where each kind of object lies.

use object_store::path::Path;

use crate::domain::{ContentHash, ImageFormat, ImageId, Rendition};

/// The name of an object. There is no other way to name one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobKey {
    /// An upload's bytes until its write job has run.
    Incoming(ImageId),
    /// Bytes under their content's name.
    Blob(ContentHash),
    /// A rendition of a blob.
    Rendition {
        /// The blob.
        of: ContentHash,
        /// The preset's name.
        preset: String,
        /// The preset's fingerprint.
        fingerprint: String,
        /// The rendition's format.
        format: ImageFormat,
    },
}

impl BlobKey {
    /// The folder of [`BlobKey::Incoming`].
    pub const INCOMING: &'static str = "incoming";

    /// The key of a rendition of the blob `of`.
    pub fn rendition(of: ContentHash, rendition: &Rendition) -> Self {
        Self::Rendition {
            of,
            preset: rendition.preset.clone(),
            fingerprint: rendition.fingerprint.clone(),
            format: rendition.format,
        }
    }

    /// The object's path in the store, under its prefix.
    pub fn path(&self) -> Path {
        match self {
            Self::Incoming(image) => Path::from_iter([Self::INCOMING, &image.to_string()]),
            Self::Blob(hash) => {
                let hash = hash.to_string();
                Path::from_iter(["blobs", &hash[..2], &hash])
            }
            Self::Rendition { of, preset, fingerprint, format } => {
                let of = of.to_string();
                let name = format!("{preset}-{fingerprint}.{}", format.extension());
                Path::from_iter(["renditions", &of[..2], &of, &name])
            }
        }
    }
}
