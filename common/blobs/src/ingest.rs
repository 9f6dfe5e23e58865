//! A picture on its way in: judged by its first bytes, counted, and staged or only hashed.

use safelight_domain::{ContentHash, ContentHasher, ImageFormat, ImageId};

use super::{BlobError, Blobs, Staging};

/// The formats that are read, for people.
const READABLE: &str = "JPEG, PNG, GIF, WebP, AVIF, TIFF and BMP are";

/// The bytes of a picture on their way in. Dropping it unfinished leaves nothing behind.
pub struct Ingest {
    target: Target,
    /// The first bytes, until there are enough to tell the format.
    head: Vec<u8>,
    format: Option<ImageFormat>,
    bytes: u64,
    limit: u64,
}

enum Target {
    /// To be staged as soon as the format is known: what is refused never touches the disk.
    Stage(Blobs, ImageId),
    Staging(Box<Staging>),
    /// Not to be kept: only the hash is wanted.
    Hash(ContentHasher),
}

/// What all bytes of a picture are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Their hash.
    pub sha256: ContentHash,
    /// How many.
    pub bytes: u64,
    /// The format that the first bytes announce.
    pub format: ImageFormat,
}

/// A picture that has come to its end. Dropping it leaves nothing behind.
pub struct Whole {
    /// What it is.
    pub content: Content,
    staging: Option<Box<Staging>>,
}

/// Why bytes are not taken in.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// There are none.
    #[error("it has no bytes")]
    Empty,
    /// They are of the HEIF family.
    #[error("HEIC pictures are not read here; {}", READABLE)]
    Heic,
    /// They are nothing that is known.
    #[error("it is no picture that is read here; {}", READABLE)]
    NotAnImage,
    /// There are more than this.
    #[error("it has more than the {0} bytes that are allowed")]
    TooLarge(u64),
    /// They cannot be staged.
    #[error(transparent)]
    Blobs(#[from] BlobError),
}

impl Ingest {
    /// For at most `limit` bytes that are staged for `image`.
    pub fn staging(blobs: Blobs, image: ImageId, limit: u64) -> Self {
        Self::new(Target::Stage(blobs, image), limit)
    }

    /// For at most `limit` bytes that are not kept.
    pub fn hashing(limit: u64) -> Self {
        Self::new(Target::Hash(ContentHasher::default()), limit)
    }

    fn new(target: Target, limit: u64) -> Self {
        Self { target, head: Vec::new(), format: None, bytes: 0, limit }
    }

    /// Takes the next bytes.
    pub async fn write(&mut self, chunk: &[u8]) -> Result<(), IngestError> {
        self.bytes += chunk.len() as u64;
        if self.bytes > self.limit {
            return Err(IngestError::TooLarge(self.limit));
        }
        if self.format.is_some() {
            return Ok(self.pass_on(chunk).await?);
        }
        self.head.extend_from_slice(chunk);
        if self.head.len() >= ImageFormat::SNIFF_BYTES {
            self.judge().await?;
        }
        Ok(())
    }

    /// There are no more bytes.
    pub async fn end(mut self) -> Result<Whole, IngestError> {
        let format = match self.format {
            Some(format) => format,
            None => self.judge().await?,
        };
        let (sha256, staging) = match self.target {
            Target::Staging(staging) => (staging.hash(), Some(staging)),
            Target::Hash(hasher) => (hasher.finish(), None),
            // Judging has begun to stage.
            Target::Stage(..) => return Err(IngestError::Empty),
        };
        Ok(Whole { content: Content { sha256, bytes: self.bytes, format }, staging })
    }

    /// Decides by the first bytes, and passes them on.
    async fn judge(&mut self) -> Result<ImageFormat, IngestError> {
        let format = match ImageFormat::sniff(&self.head) {
            Some(format) => format,
            None if self.head.is_empty() => return Err(IngestError::Empty),
            None if is_heif(&self.head) => return Err(IngestError::Heic),
            None => return Err(IngestError::NotAnImage),
        };
        self.format = Some(format);
        if let Target::Stage(blobs, image) = &self.target {
            self.target = Target::Staging(Box::new(blobs.stage(*image).await?));
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
    /// Makes it durable, if it was to be staged.
    pub async fn keep(self) -> Result<Content, BlobError> {
        if let Some(staging) = self.staging {
            staging.finish().await?;
        }
        Ok(self.content)
    }
}

/// Brands of the HEIF family (ISO/IEC 23008-12, annex on brands).
fn is_heif(head: &[u8]) -> bool {
    const BRANDS: [&[u8]; 6] = [b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1"];
    head.get(4..8) == Some(b"ftyp") && head.get(8..12).is_some_and(|brand| BRANDS.contains(&brand))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn decides_as_soon_as_it_can_and_not_before() {
        let mut ingest = Ingest::hashing(1000);
        ingest.write(b"\x89PN").await.expect("too few to tell");
        let rest = [b"G\r\n\x1a\n".as_slice(), &[0; 40]].concat();
        ingest.write(&rest).await.expect("a PNG");
        let content = ingest.end().await.expect("a picture").content;
        assert_eq!(content.format, ImageFormat::Png);
        assert_eq!(content.bytes, 3 + rest.len() as u64);
        assert_eq!(content.sha256, ContentHash::of(&[b"\x89PN".as_slice(), &rest].concat()));
    }

    #[tokio::test]
    async fn refuses_what_is_no_picture_at_once() {
        let svg = b"<svg xmlns=\"http://www.w3.org/2000/svg\">".as_slice();
        let refused = Ingest::hashing(1000).write(svg).await;
        assert!(matches!(refused, Err(IngestError::NotAnImage)), "{refused:?}");
        let heic = b"\0\0\0\x1cftypheic\0\0\0\0heicmif1miaf\0\0\0\0\0\0".as_slice();
        let refused = Ingest::hashing(1000).write(heic).await;
        assert!(matches!(refused, Err(IngestError::Heic)), "{refused:?}");
        let refused = Ingest::hashing(9).end().await.err();
        assert!(matches!(refused, Some(IngestError::Empty)), "{refused:?}");
        let mut short = Ingest::hashing(9);
        short.write(b"hello").await.expect("too few to tell");
        assert!(short.end().await.is_err());
        let refused = Ingest::hashing(2).write(b"abc").await;
        assert!(matches!(refused, Err(IngestError::TooLarge(2))), "{refused:?}");
    }
}
