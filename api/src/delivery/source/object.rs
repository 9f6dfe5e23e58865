//! Objects that can be read, and the results of reads.

use std::{ops::Range, sync::Arc};

use axum::{BoxError, body::Body, http::HeaderValue};
use bytes::Bytes;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use safelight_blobs::{BlobError, BlobKey, BlobStream, Blobs};
use safelight_domain::{CacheKey, ContentHash, ContentHasher, Owner};

use super::{counters, file::Local};
use crate::http::problem::{Problem, ProblemCode};

/// An object that can be read: where it is stored, and what its bytes must be.
#[derive(Debug, Clone)]
pub struct StoredObject {
    /// Its name in the store, where equal bytes are one.
    pub key: BlobKey,
    /// Its name in the caches, where equal bytes of two owners are two objects.
    pub cached: CacheKey,
    /// The hash of its bytes.
    pub sha256: ContentHash,
    /// How many there are.
    pub bytes: u64,
}

/// Why an object cannot be read. All requests that waited for it get the same error.
#[derive(Debug, Clone)]
pub enum ReadError {
    /// It is missing in the store, or damaged.
    Damaged(&'static str),
    /// The store failed.
    Store(Arc<BlobError>),
    /// Reading it panicked.
    Panicked,
}

/// Which part had an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// This process's memory.
    Memory,
    /// This machine's disk.
    Disk,
    /// The cache that all nodes share.
    Shared,
    /// The store; it is kept in the tiers above.
    Store,
    /// The store, whose file is read as it is.
    Direct,
}

/// Where a read found the bytes, for `Cache-Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Provenance {
    /// Which tier had it.
    pub tier: Tier,
    /// Whether another request fetched it.
    pub collapsed: bool,
}

impl Provenance {
    /// The member of `Cache-Status` (RFC 9211).
    pub const fn cache_status(self) -> HeaderValue {
        HeaderValue::from_static(match (self.tier, self.collapsed) {
            (Tier::Memory, _) => "safelight; hit; detail=memory",
            (Tier::Disk, false) => "safelight; hit; detail=disk",
            (Tier::Shared, false) => "safelight; hit; detail=shared",
            (Tier::Store, false) => "safelight; fwd=uri-miss; stored; detail=store",
            (Tier::Direct, false) => "safelight; fwd=uri-miss; detail=store",
            (Tier::Disk, true) => "safelight; fwd=uri-miss; collapsed; detail=disk",
            (Tier::Shared, true) => "safelight; fwd=uri-miss; collapsed; detail=shared",
            (Tier::Store | Tier::Direct, true) => {
                "safelight; fwd=uri-miss; collapsed; detail=store"
            }
        })
    }
}

/// An object that is ready to be sent.
#[derive(Clone)]
pub enum OpenObject {
    /// All of it in memory.
    Whole(Bytes),
    /// In a local file, or being written to one.
    File(Arc<Local>),
    /// In the store only, to be read by each client for itself.
    Remote(Blobs, Box<StoredObject>),
}

impl OpenObject {
    /// The bytes of `span`. Nothing is read before the client takes it.
    pub fn body(&self, span: Range<u64>) -> Body {
        match self {
            Self::Whole(bytes) => slice(bytes, &span).map_or_else(Body::empty, Body::from),
            Self::File(local) => Body::from_stream(local.clone().stream(span)),
            Self::Remote(blobs, object) => {
                let (blobs, object) = (blobs.clone(), StoredObject::clone(object));
                Body::from_stream(stream::once(remote(blobs, object, span)).try_flatten())
            }
        }
    }
}

type Pieces = BoxStream<'static, Result<Bytes, BoxError>>;

/// What the store has in `span`, read for one client.
async fn remote(blobs: Blobs, object: StoredObject, span: Range<u64>) -> Result<Pieces, BoxError> {
    counters::store_read();
    let whole = span == (0..object.bytes);
    let stream = blobs.stream_range(&object.key, span).await?;
    Ok(if whole { checked(stream, object) } else { stream.map_err(BoxError::from).boxed() })
}

/// All of an object. The last chunk is held back until the hash is verified.
fn checked(stream: BlobStream, object: StoredObject) -> Pieces {
    let begin = (stream, ContentHasher::default(), None::<Bytes>);
    let next =
        move |(mut stream, mut hasher, mut held): (BlobStream, ContentHasher, Option<Bytes>)| {
            let object = object.clone();
            async move {
                while let Some(next) = stream.try_next().await? {
                    hasher.update(&next);
                    if let Some(sent) = held.replace(next) {
                        return Ok(Some((sent, (stream, hasher, held))));
                    }
                }
                let Some(last) = held else { return Ok(None) };
                if hasher.clone().finish() != object.sha256 {
                    object.damaged("damaged");
                    return Err("the object is damaged".into());
                }
                Ok(Some((last, (stream, hasher, None))))
            }
        };
    stream::try_unfold(begin, next).boxed()
}

fn slice(bytes: &Bytes, span: &Range<u64>) -> Option<Bytes> {
    let (start, end) = (usize::try_from(span.start).ok()?, usize::try_from(span.end).ok()?);
    (start <= end && end <= bytes.len()).then(|| bytes.slice(start..end))
}

impl StoredObject {
    /// What lies under `key` in the store, as `owner`'s.
    pub fn new(owner: &Owner, key: BlobKey, sha256: ContentHash, bytes: u64) -> Self {
        Self { cached: CacheKey::of(owner, &sha256), key, sha256, bytes }
    }

    /// The object cannot be read: it is damaged in this way.
    pub fn damaged(&self, how: &'static str) -> ReadError {
        tracing::error!(path = %self.key.path(), "a blob is {how}");
        ReadError::Damaged(how)
    }

    /// What a failure of the store means, given that the object and its size are in the database.
    pub fn failed(&self, error: BlobError) -> ReadError {
        match error {
            BlobError::NotFound => self.damaged("missing"),
            BlobError::TooLarge { .. } | BlobError::WrongSize { .. } => {
                self.damaged("of the wrong size")
            }
            error => ReadError::Store(Arc::new(error)),
        }
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Damaged(how) => {
                Self::new(ProblemCode::BlobDamaged, format!("The stored bytes are {how}."))
            }
            ReadError::Store(error) => Self::from(&*error),
            ReadError::Panicked => Self::internal(&"reading a blob panicked"),
        }
    }
}
