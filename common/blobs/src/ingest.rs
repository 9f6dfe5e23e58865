//! Receives a picture: detects its format from the first bytes, counts them, and stages or only hashes them.

use safelight_domain::{ContentHash, ContentHasher, ImageFormat};

use super::{BlobError, Blobs, StagedBytes, Staging, StoredBytes};

/// The formats that are always supported, for messages.
const SUPPORTED: &str = "JPEG, PNG, GIF, WebP, AVIF, TIFF and BMP";

/// What is accepted.
#[derive(Debug, Clone, Copy)]
pub struct IngestLimits {
    /// The maximum number of bytes.
    pub max_bytes: u64,
    /// Whether HEIC is accepted.
    pub heic: bool,
}

/// A picture that is being received. Dropping it unfinished leaves nothing behind.
pub struct Ingest {
    target: Target,
    /// The first bytes, until they suffice to detect the format.
    head: Vec<u8>,
    format: Option<ImageFormat>,
    bytes: u64,
    limits: IngestLimits,
}

enum Target {
    /// To be staged once the format is known, so that rejected bytes are never written to disk.
    Stage(Blobs),
    Staging(Box<Staging>),
    /// Not stored; only hashed.
    Hash(ContentHasher),
}

/// The hash, size and format of a received picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// The hash of the bytes.
    pub sha256: ContentHash,
    /// The number of bytes.
    pub bytes: u64,
    /// The format, detected from the first bytes.
    pub format: ImageFormat,
}

/// A completely received picture. Dropping it leaves nothing behind.
pub struct Whole {
    /// Its hash, size and format.
    pub content: Content,
    staged: Option<Box<StagedBytes>>,
}

/// Why bytes are rejected.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// There are no bytes.
    #[error("it has no bytes")]
    Empty,
    /// The format is of the HEIF family.
    #[error(
        "HEIC is switched off here, or this is another format of the HEIF family; \
             supported formats: {SUPPORTED}"
    )]
    Heic,
    /// The format is unknown.
    #[error(
        "it is not a picture in a supported format; supported formats: {SUPPORTED}, \
             and HEIC unless it is switched off"
    )]
    NotAnImage,
    /// There are more bytes than allowed.
    #[error("it has more than the allowed {0} bytes")]
    TooLarge(u64),
    /// The bytes cannot be staged.
    #[error(transparent)]
    Blobs(#[from] BlobError),
}

impl Ingest {
    /// Receives bytes within the limits, to be stored in `blobs`.
    pub fn staging(blobs: Blobs, limits: IngestLimits) -> Self {
        Self::new(Target::Stage(blobs), limits)
    }

    /// Receives bytes within the limits without storing them.
    pub fn hashing(limits: IngestLimits) -> Self {
        Self::new(Target::Hash(ContentHasher::default()), limits)
    }

    fn new(target: Target, limits: IngestLimits) -> Self {
        Self { target, head: Vec::new(), format: None, bytes: 0, limits }
    }

    /// Adds the next bytes.
    pub async fn write(&mut self, chunk: &[u8]) -> Result<(), IngestError> {
        self.bytes += chunk.len() as u64;
        if self.bytes > self.limits.max_bytes {
            return Err(IngestError::TooLarge(self.limits.max_bytes));
        }
        if self.format.is_some() {
            return Ok(self.pass_on(chunk).await?);
        }
        self.head.extend_from_slice(chunk);
        if self.head.len() >= ImageFormat::SNIFF_BYTES {
            self.detect().await?;
        }
        Ok(())
    }

    /// Ends the picture.
    pub async fn end(mut self) -> Result<Whole, IngestError> {
        let format = match self.format {
            Some(format) => format,
            None => self.detect().await?,
        };
        let (sha256, staged) = match self.target {
            Target::Staging(staging) => {
                let staged = staging.end().await?;
                (staged.sha256(), Some(Box::new(staged)))
            }
            Target::Hash(hasher) => (hasher.finish(), None),
            // `detect` has started to stage.
            Target::Stage(..) => return Err(IngestError::Empty),
        };
        Ok(Whole { content: Content { sha256, bytes: self.bytes, format }, staged })
    }

    /// Detects the format from the first bytes, and forwards them.
    async fn detect(&mut self) -> Result<ImageFormat, IngestError> {
        let format = match ImageFormat::sniff(&self.head) {
            Some(ImageFormat::Heic) if !self.limits.heic => return Err(IngestError::Heic),
            Some(format) => format,
            None if self.head.is_empty() => return Err(IngestError::Empty),
            None if is_heif(&self.head) => return Err(IngestError::Heic),
            None => return Err(IngestError::NotAnImage),
        };
        self.format = Some(format);
        if let Target::Stage(blobs) = &self.target {
            self.target = Target::Staging(Box::new(blobs.stage().await?));
        }
        let head = std::mem::take(&mut self.head);
        self.pass_on(&head).await?;
        Ok(format)
    }

    async fn pass_on(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        match &mut self.target {
            Target::Staging(staging) => staging.write(bytes).await?,
            Target::Hash(hasher) => hasher.update(bytes),
            Target::Stage(..) => {}
        }
        Ok(())
    }
}

impl Whole {
    /// Stores it durably under its hash; `None` if it was only hashed.
    pub async fn store(self) -> Result<Option<StoredBytes>, BlobError> {
        Ok(match self.staged {
            Some(staged) => Some(staged.store().await?),
            None => None,
        })
    }
}

/// Brands of the HEIF family that tell no codec (ISO/IEC 23008-12, annex on brands).
fn is_heif(head: &[u8]) -> bool {
    const BRANDS: [&[u8]; 2] = [b"mif1", b"msf1"];
    head.get(4..8) == Some(b"ftyp") && head.get(8..12).is_some_and(|brand| BRANDS.contains(&brand))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(max_bytes: u64) -> IngestLimits {
        IngestLimits { max_bytes, heic: false }
    }

    #[tokio::test]
    async fn heic_is_accepted_if_it_is_switched_on() {
        let heic = [b"\0\0\0\x1cftypheic\0\0\0\0mif1heic".as_slice(), &[0; 40]].concat();
        let mut ingest = Ingest::hashing(IngestLimits { heic: true, ..limits(1000) });
        ingest.write(&heic).await.expect("accepted");
        assert_eq!(ingest.end().await.expect("an image").content.format, ImageFormat::Heic);
        let rejected = Ingest::hashing(limits(1000)).write(&heic).await;
        assert!(matches!(rejected, Err(IngestError::Heic)), "{rejected:?}");
    }

    #[tokio::test]
    async fn format_is_detected_as_early_as_possible() {
        let mut ingest = Ingest::hashing(limits(1000));
        ingest.write(b"\x89PN").await.expect("too few bytes to decide");
        let rest = [b"G\r\n\x1a\n".as_slice(), &[0; 40]].concat();
        ingest.write(&rest).await.expect("a PNG");
        let content = ingest.end().await.expect("an image").content;
        assert_eq!(content.format, ImageFormat::Png);
        assert_eq!(content.bytes, 3 + rest.len() as u64);
        assert_eq!(content.sha256, ContentHash::of(&[b"\x89PN".as_slice(), &rest].concat()));
    }

    #[tokio::test]
    async fn other_data_is_rejected_immediately() {
        let svg = b"<svg xmlns=\"http://www.w3.org/2000/svg\">".as_slice();
        let rejected = Ingest::hashing(limits(1000)).write(svg).await;
        assert!(matches!(rejected, Err(IngestError::NotAnImage)), "{rejected:?}");
        let heic = b"\0\0\0\x1cftypheic\0\0\0\0heicmif1miaf\0\0\0\0\0\0".as_slice();
        let rejected = Ingest::hashing(limits(1000)).write(heic).await;
        assert!(matches!(rejected, Err(IngestError::Heic)), "{rejected:?}");
        let rejected = Ingest::hashing(limits(9)).end().await.err();
        assert!(matches!(rejected, Some(IngestError::Empty)), "{rejected:?}");
        let mut short = Ingest::hashing(limits(9));
        short.write(b"hello").await.expect("too few bytes to decide");
        assert!(short.end().await.is_err());
        let rejected = Ingest::hashing(limits(2)).write(b"abc").await;
        assert!(matches!(rejected, Err(IngestError::TooLarge(2))), "{rejected:?}");
    }
}
