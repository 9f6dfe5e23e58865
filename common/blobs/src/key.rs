//! The paths of each kind of object.

use object_store::path::Path;
use safelight_domain::{ContentHash, ImageFormat, ImageId, Rendition};

/// The key of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobKey {
    /// Bytes of an upload that a node of the version before staged, until its write job has run.
    Incoming(ImageId),
    /// Bytes under their hash.
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
    /// The folder of [`BlobKey::Incoming`], and of unfinished uploads.
    pub const INCOMING: &'static str = "incoming";
    /// The folder of [`BlobKey::Blob`].
    pub const BLOBS: &'static str = "blobs";
    /// The folder of [`BlobKey::Rendition`].
    pub const RENDITIONS: &'static str = "renditions";

    /// The key of a rendition of the blob `of`.
    pub fn rendition(of: ContentHash, rendition: &Rendition) -> Self {
        Self::Rendition {
            of,
            preset: rendition.preset.clone(),
            fingerprint: rendition.fingerprint.clone(),
            format: rendition.format,
        }
    }

    /// Where the bytes of an upload may be, in the order in which to look: under their hash, or staged by a node of
    /// the version before; and under their hash again, because its write job may move them between two looks.
    pub fn of_upload(image: ImageId, sha256: ContentHash) -> [Self; 3] {
        [Self::Blob(sha256), Self::Incoming(image), Self::Blob(sha256)]
    }

    /// The object's path in the store, relative to the prefix.
    pub fn path(&self) -> Path {
        match self {
            Self::Incoming(image) => Path::from_iter([Self::INCOMING, &image.to_string()]),
            Self::Blob(hash) => {
                let hash = hash.to_string();
                Path::from_iter([Self::BLOBS, &hash[..2], &hash])
            }
            Self::Rendition { of, preset, fingerprint, format } => {
                let of = of.to_string();
                let name = format!("{preset}-{fingerprint}.{}", format.extension());
                Path::from_iter([Self::RENDITIONS, &of[..2], &of, &name])
            }
        }
    }

    /// The blob or rendition at `path`; `None` for any other path.
    pub fn parse(path: &Path) -> Option<Self> {
        let parts: Vec<_> = path.parts().collect();
        let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
        let key = match *parts.as_slice() {
            [Self::BLOBS, _, hash] => Self::Blob(hash.parse().ok()?),
            [Self::RENDITIONS, _, of, name] => {
                let (stem, extension) = name.rsplit_once('.')?;
                let (preset, fingerprint) = stem.rsplit_once('-')?;
                let format = ImageFormat::ALL.iter().find(|one| one.extension() == extension)?;
                Self::Rendition {
                    of: of.parse().ok()?,
                    preset: preset.to_owned(),
                    fingerprint: fingerprint.to_owned(),
                    format: *format,
                }
            }
            _ => return None,
        };
        // Only the canonical spelling counts.
        (key.path() == *path).then_some(key)
    }

    /// The blob itself, or the blob of a rendition; `None` for staged bytes.
    pub fn blob(&self) -> Option<ContentHash> {
        match self {
            Self::Incoming(_) => None,
            Self::Blob(hash) | Self::Rendition { of: hash, .. } => Some(*hash),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_paths_parse_as_keys() {
        let hash = ContentHash::of(b"x");
        let rendition = |preset: &str| BlobKey::Rendition {
            of: hash,
            preset: preset.to_owned(),
            fingerprint: "0123456789ab".to_owned(),
            format: ImageFormat::Jpeg,
        };
        for key in [BlobKey::Blob(hash), rendition("small"), rendition("two-words")] {
            assert_eq!(BlobKey::parse(&key.path()), Some(key.clone()));
            assert_eq!(key.blob(), Some(hash));
        }
        for other in [
            format!("blobs/{hash}"),
            format!("blobs/zz/{hash}"),
            format!("blobs/{}/{}", &hash.to_string()[..2], hash.to_string().to_uppercase()),
            format!("renditions/{}/{hash}/small.jpg", &hash.to_string()[..2]),
            format!("renditions/{}/{hash}/small-0123.exe", &hash.to_string()[..2]),
            BlobKey::Incoming(ImageId::new()).path().to_string(),
        ] {
            assert_eq!(BlobKey::parse(&Path::from(other.as_str())), None, "{other}");
        }
    }
}
