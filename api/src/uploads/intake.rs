//! Where an upload's bytes go: judged by their first bytes, counted, staged or only hashed.

use safelight_common::{
    blobs::{Blobs, Staging},
    domain::{ContentHash, ContentHasher, ImageFormat, ImageId},
};

use super::body::too_large;
use crate::problem::{Problem, ProblemCode};

/// The formats that uploads may have, for people.
const READABLE: &str = "JPEG, PNG, GIF, WebP, AVIF, TIFF and BMP";

/// The bytes of a picture on their way in. Dropping it unfinished leaves nothing behind.
pub struct Intake {
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
    /// The replay of an upload that was accepted before: only its hash is wanted.
    Hash(ContentHasher),
}

/// All bytes of a picture, durable if they were to be staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Their hash.
    pub sha256: ContentHash,
    /// How many.
    pub bytes: u64,
    /// The format that the first bytes announce.
    pub format: ImageFormat,
}

impl Intake {
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
    pub async fn write(&mut self, chunk: &[u8]) -> Result<(), Problem> {
        self.bytes += chunk.len() as u64;
        if self.bytes > self.limit {
            return Err(too_large(self.limit));
        }
        if self.format.is_some() {
            return self.pass_on(chunk).await;
        }
        self.head.extend_from_slice(chunk);
        if self.head.len() >= ImageFormat::SNIFF_BYTES { self.judge().await } else { Ok(()) }
    }

    /// Makes everything durable.
    pub async fn finish(mut self) -> Result<Content, Problem> {
        if self.format.is_none() {
            self.judge().await?;
        }
        let Some(format) = self.format else { return Err(empty()) };
        let sha256 = match self.target {
            Target::Staging(staging) => staging.finish().await?.sha256,
            Target::Hash(hasher) => hasher.finish(),
            Target::Stage(..) => return Err(empty()),
        };
        Ok(Content { sha256, bytes: self.bytes, format })
    }

    /// Decides by the first bytes, and passes them on.
    async fn judge(&mut self) -> Result<(), Problem> {
        if self.head.is_empty() {
            return Err(empty());
        }
        self.format = Some(readable(&self.head)?);
        if let Target::Stage(blobs, image) = &self.target {
            self.target = Target::Staging(Box::new(blobs.stage(*image).await?));
        }
        let head = std::mem::take(&mut self.head);
        self.pass_on(&head).await
    }

    async fn pass_on(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        match &mut self.target {
            Target::Staging(staging) => staging.write(bytes).await?,
            Target::Hash(hasher) => hasher.update(bytes),
            Target::Stage(..) => {}
        }
        Ok(())
    }
}

fn empty() -> Problem {
    Problem::new(ProblemCode::EmptyBody, "The upload has no bytes.")
}

/// The format of bytes that can become an image here.
fn readable(head: &[u8]) -> Result<ImageFormat, Problem> {
    let found = match ImageFormat::sniff(head) {
        Some(format) => return Ok(format),
        None if is_heif(head) => "HEIC pictures are not read here",
        None => "The bytes are no picture that is read here",
    };
    Err(Problem::new(ProblemCode::UnsupportedMediaType, format!("{found}; {READABLE} are.")))
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
        let mut intake = Intake::hashing(1000);
        intake.write(b"\x89PN").await.expect("too few to tell");
        let rest = [b"G\r\n\x1a\n".as_slice(), &[0; 40]].concat();
        intake.write(&rest).await.expect("a PNG");
        let content = intake.finish().await.expect("content");
        assert_eq!(content.format, ImageFormat::Png);
        assert_eq!(content.bytes, 3 + rest.len() as u64);
        assert_eq!(content.sha256, ContentHash::of(&[b"\x89PN".as_slice(), &rest].concat()));
    }

    #[tokio::test]
    async fn refuses_what_is_no_picture_at_once() {
        for (head, word) in [
            (b"<svg xmlns=\"http://www.w3.org/2000/svg\">".as_slice(), "no picture"),
            (b"\0\0\0\x1cftypheic\0\0\0\0heicmif1miaf\0\0\0\0\0\0", "HEIC"),
        ] {
            let problem = Intake::hashing(1000).write(head).await.expect_err(word);
            assert_eq!(problem.code(), ProblemCode::UnsupportedMediaType);
            assert!(format!("{problem:?}").contains(word), "{problem:?}");
        }
        let problem = Intake::hashing(9).finish().await.expect_err("empty");
        assert_eq!(problem.code(), ProblemCode::EmptyBody);
        let mut short = Intake::hashing(9);
        short.write(b"hello").await.expect("too few to tell");
        assert!(short.finish().await.is_err());
        let problem = Intake::hashing(2).write(b"abc").await.expect_err("too large");
        assert_eq!(problem.code(), ProblemCode::UploadTooLarge);
    }
}
