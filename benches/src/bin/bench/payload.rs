//! Upload bodies that are all different and cheap to generate.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use bytes::Bytes;
use reqwest::Body;
use safelight_testing::pictures;

/// A JPEG whose copies differ by a comment.
#[derive(Clone)]
pub struct Payload {
    /// Everything after the start-of-image marker.
    rest: Bytes,
}

/// Numbers all copies, so that they differ.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// The bytes that the comment adds to a copy: marker, length and twenty digits.
const COMMENT_BYTES: usize = 24;

impl Payload {
    /// The reference photograph.
    pub fn photograph() -> Result<Self> {
        let (width, height) = pictures::REFERENCE;
        Ok(Self { rest: Bytes::from(pictures::jpeg(width, height, 1)?).slice(2..) })
    }

    /// A file of the same size that is detected as a JPEG but cannot be decoded, so that the measurement
    /// does not include image processing on the same cores.
    pub fn undecodable() -> Result<Self> {
        Ok(Self::of_size(Self::photograph()?.len()))
    }

    /// A JPEG of `bytes` bytes that ends immediately after its start.
    pub fn of_size(bytes: usize) -> Self {
        let mut rest = vec![0; bytes - 2 - COMMENT_BYTES];
        rest[..2].copy_from_slice(&[0xFF, 0xD9]);
        Self { rest: rest.into() }
    }

    /// The length of a copy.
    pub fn len(&self) -> usize {
        self.rest.len() + 2 + COMMENT_BYTES
    }

    /// The two parts of a new copy: a short unique part, and the part that all copies share.
    pub fn parts(&self) -> (Bytes, Bytes) {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut head = vec![0xFF, 0xD8, 0xFF, 0xFE, 0, 22];
        head.extend(format!("{number:020}").into_bytes());
        (head.into(), self.rest.clone())
    }

    /// A new copy as a request body; the caller sends the length in a header.
    pub fn body(&self) -> Body {
        let (head, rest) = self.parts();
        Body::wrap_stream(futures::stream::iter([Ok::<_, std::io::Error>(head), Ok(rest)]))
    }

    /// A new copy in one piece.
    pub fn bytes(&self) -> Vec<u8> {
        let (head, rest) = self.parts();
        [head, rest].concat()
    }
}
