//! `multipart/form-data` (RFC 7578): one `file`, and optionally [`Label`]s, in any order.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
};

use axum::{
    body::{Body, Bytes},
    extract::{
        DefaultBodyLimit, FromRequest, Multipart, Request,
        multipart::{Field, MultipartError},
    },
    http::{HeaderValue, header},
};
use futures::{Stream, StreamExt};
use safelight_blobs::Ingest;
use safelight_domain::{Label, Labels};

use super::labels;
use crate::http::{
    body::{BodyFault, BodyReader},
    content_disposition::ContentDisposition,
    problem::{Problem, ProblemCode},
};

/// Bytes beside the file that a body may have: boundaries, headers, title and tags.
pub const OVERHEAD_BYTES: u64 = 64 * 1024;

/// Parts at most: a file, a title and each tag on its own, with room to spare.
const MAX_PARTS: usize = 64;

/// Bytes of a text field at most.
const MAX_TEXT_BYTES: usize = 8 * 1024;

/// Bytes that the parser may buffer before it returns any of them. Its search for a boundary or the end of a
/// part's headers has no limit of its own.
const MAX_BUFFERED_BYTES: u64 = 256 * 1024;

/// Reads the whole body; the file goes into `ingest`.
pub async fn receive(
    body: &BodyReader,
    content_type: &HeaderValue,
    ingest: &mut Ingest,
) -> Result<Labels, Problem> {
    let outcome = parse(body, content_type, ingest).await;
    // The parser hides errors of the body; the reader has them.
    match (outcome, body.fault()) {
        (Err(_), Some(fault)) => Err(fault.into()),
        (outcome, _) => outcome,
    }
}

async fn parse(
    body: &BodyReader,
    content_type: &HeaderValue,
    ingest: &mut Ingest,
) -> Result<Labels, Problem> {
    let used = Arc::new(AtomicU64::new(0));
    let mut request = Request::new(Body::from_stream(feed(body, used.clone())));
    request.headers_mut().insert(header::CONTENT_TYPE, content_type.clone());
    // The body reader and this module have their own limits.
    DefaultBodyLimit::disable().apply(&mut request);
    let mut multipart = Multipart::from_request(request, &())
        .await
        .map_err(|_| invalid("the media type has no boundary"))?;
    let mut given = Labels::default();
    let (mut file, mut named, mut parts) = (false, HashSet::new(), 0);
    while let Some(field) = multipart.next_field().await.map_err(|error| malformed(&error))? {
        parts += 1;
        if parts > MAX_PARTS {
            return Err(invalid(&format!("at most {MAX_PARTS} parts are allowed")));
        }
        let disposition = ContentDisposition::of(field.headers());
        let part = Part { field, used: &used };
        match disposition.as_ref().and_then(ContentDisposition::name) {
            Some("file") if file => return Err(invalid("there is more than one `file`")),
            Some("file") => {
                file = true;
                if let Some(name) = disposition.as_ref().and_then(ContentDisposition::filename) {
                    given.set_filename(&name);
                }
                part.copy(ingest).await?;
            }
            Some(name) => {
                let Ok(label) = name.parse::<Label>() else {
                    let name = name.escape_debug();
                    return Err(invalid(&format!("there is no field `{name}`")));
                };
                if !named.insert(label) && !label.is_repeatable() {
                    return Err(invalid(&format!("there is more than one `{label}`")));
                }
                labels::set(&mut given, label, &part.text(label).await?)?;
            }
            None => return Err(invalid("a part has no name")),
        }
    }
    if file { Ok(given) } else { Err(invalid("there is no `file`")) }
}

/// Why the body cannot be passed to the parser.
#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error(transparent)]
    Body(#[from] BodyFault),
    #[error("more than {MAX_BUFFERED_BYTES} bytes without a part")]
    Buffered,
}

/// The body for the parser. Ends with an error once the parser buffers too much, that is, more than the
/// `used` bytes that it has returned.
fn feed(
    body: &BodyReader,
    used: Arc<AtomicU64>,
) -> impl Stream<Item = Result<Bytes, FeedError>> + Send + use<> {
    let (body, mut paced) = (body.clone(), Box::pin(body.paced()));
    futures::stream::poll_fn(move |context| {
        if body.bytes().saturating_sub(used.load(Ordering::Relaxed)) > MAX_BUFFERED_BYTES {
            return Poll::Ready(Some(Err(FeedError::Buffered)));
        }
        paced.poll_next_unpin(context).map_err(FeedError::from)
    })
}

/// A part whose bytes are counted as used.
struct Part<'a> {
    field: Field<'a>,
    used: &'a AtomicU64,
}

impl Part<'_> {
    async fn chunk(&mut self) -> Result<Option<Bytes>, Problem> {
        let chunk = self.field.chunk().await.map_err(|error| malformed(&error))?;
        let bytes = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Ok(chunk)
    }

    /// Copies the part's bytes into `ingest`.
    async fn copy(mut self, ingest: &mut Ingest) -> Result<(), Problem> {
        while let Some(chunk) = self.chunk().await? {
            ingest.write(&chunk).await?;
        }
        Ok(())
    }

    /// The part as text.
    async fn text(mut self, label: Label) -> Result<String, Problem> {
        let name = label.as_str();
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_TEXT_BYTES {
                return Err(labels::invalid(name, "it is too long"));
            }
        }
        String::from_utf8(bytes).map_err(|_| labels::invalid(name, "it is not UTF-8"))
    }
}

fn malformed(error: &MultipartError) -> Problem {
    tracing::debug!(%error, "malformed multipart body");
    invalid("its parts cannot be read")
}

fn invalid(why: &str) -> Problem {
    let names: Vec<_> = Label::ALL.iter().map(|label| format!("`{label}`")).collect();
    let (last, others) = names.split_last().expect("there are labels");
    Problem::new(ProblemCode::InvalidMultipart, format!("The multipart body is not valid: {why}."))
        .hint(format!("send one part `file`, and optionally {} and {last}", others.join(", ")))
}
