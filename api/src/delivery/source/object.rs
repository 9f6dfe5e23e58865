//! Objects that are ready to be sent.

use std::{ops::Range, sync::Arc};

use axum::{BoxError, body::Body, http::HeaderValue};
use bytes::Bytes;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use safelight_blobs::{BlobStream, Blobs};
use safelight_domain::ContentHasher;

use super::{counters, file::Local, known::KnownObjects, stored::StoredObject};

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
    Remote(Box<RemoteObject>),
}

/// An object of a remote store that no local file holds.
#[derive(Clone)]
pub struct RemoteObject {
    /// Where it is read.
    pub blobs: Blobs,
    /// The object.
    pub object: StoredObject,
    /// Whether it is known to be right.
    pub known: KnownObjects,
}

impl OpenObject {
    /// The bytes of `span`. Nothing is read before the client takes it.
    pub fn body(&self, span: Range<u64>) -> Body {
        match self {
            Self::Whole(bytes) => slice(bytes, &span).map_or_else(Body::empty, Body::from),
            Self::File(local) => Body::from_stream(local.clone().stream(span)),
            Self::Remote(remote) => {
                let remote = RemoteObject::clone(remote);
                Body::from_stream(stream::once(remote.stream(span)).try_flatten())
            }
        }
    }
}

type Pieces = BoxStream<'static, Result<Bytes, BoxError>>;

impl RemoteObject {
    /// What the store has in `span`, read for one client. Of an object that was not read to its end lately, all is
    /// read, since nothing less can be compared with the hash.
    async fn stream(self, span: Range<u64>) -> Result<Pieces, BoxError> {
        counters::store_read();
        let whole = 0..self.object.bytes;
        if span != whole && self.known.is_read(&self.object) {
            let stream = self.blobs.stream_range(&self.object.key, span).await?;
            return Ok(stream.map_err(BoxError::from).boxed());
        }
        let stream = self.blobs.stream_range(&self.object.key, whole).await?;
        let checked = CheckedStream {
            stream,
            hasher: ContentHasher::default(),
            at: 0,
            span,
            held: None,
            remote: self,
        };
        let next = async |mut checked: CheckedStream| {
            Ok::<_, BoxError>(checked.next().await?.map(|piece| (piece, checked)))
        };
        Ok(stream::try_unfold(checked, next).boxed())
    }
}

/// All of an object, of which a part is sent. The last piece of that is held back until the hash is verified.
struct CheckedStream {
    stream: BlobStream,
    hasher: ContentHasher,
    /// Bytes read so far.
    at: u64,
    /// The part that is sent.
    span: Range<u64>,
    held: Option<Bytes>,
    remote: RemoteObject,
}

impl CheckedStream {
    async fn next(&mut self) -> Result<Option<Bytes>, BoxError> {
        while let Some(chunk) = self.stream.try_next().await? {
            self.hasher.update(&chunk);
            let end = self.at + chunk.len() as u64;
            let (from, to) = (self.span.start.max(self.at), self.span.end.min(end));
            let piece =
                (from < to).then(|| slice(&chunk, &(from - self.at..to - self.at))).flatten();
            self.at = end;
            let sent = piece.and_then(|piece| self.held.replace(piece));
            if sent.is_some() {
                return Ok(sent);
            }
        }
        let Some(last) = self.held.take() else { return Ok(None) };
        let RemoteObject { object, known, .. } = &self.remote;
        if self.hasher.clone().finish() != object.sha256 {
            object.damaged("damaged");
            known.note_damaged(object);
            return Err("the object is damaged".into());
        }
        known.note_read(object);
        Ok(Some(last))
    }
}

fn slice(bytes: &Bytes, span: &Range<u64>) -> Option<Bytes> {
    let (start, end) = (usize::try_from(span.start).ok()?, usize::try_from(span.end).ok()?);
    (start <= end && end <= bytes.len()).then(|| bytes.slice(start..end))
}
