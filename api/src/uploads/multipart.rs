//! `multipart/form-data` (RFC 7578): one `file`, and optionally `title`, `tags` and `visibility`, in any
//! order.

use std::{
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
use safelight_blobs::Intake;

use super::labels::{self as form, Form};
use crate::http::body::{BodyFault, BodyReader};
use crate::problem::{Problem, ProblemCode};

/// Bytes beside the file that a body may have: boundaries, headers, title and tags.
pub const OVERHEAD_BYTES: u64 = 64 * 1024;

/// Parts at most: a file, a title and each tag on its own, with room to spare.
const MAX_PARTS: usize = 64;

/// Bytes of a text field at most.
const MAX_TEXT_BYTES: usize = 8 * 1024;

/// Bytes that the parser may hold before it has made anything of them. It looks for a boundary or
/// the end of a part's headers without a limit of its own.
const MAX_HELD_BYTES: u64 = 256 * 1024;

/// Reads the whole body; the file goes into `intake`.
pub async fn receive(
    body: &BodyReader,
    content_type: &HeaderValue,
    intake: &mut Intake,
) -> Result<Form, Problem> {
    let outcome = parse(body, content_type, intake).await;
    // The parser wraps what went wrong with the body beyond recognition; the reader remembers.
    match (outcome, body.fault()) {
        (Err(_), Some(fault)) => Err(fault.into()),
        (outcome, _) => outcome,
    }
}

async fn parse(
    body: &BodyReader,
    content_type: &HeaderValue,
    intake: &mut Intake,
) -> Result<Form, Problem> {
    let used = Arc::new(AtomicU64::new(0));
    let mut request = Request::new(Body::from_stream(feed(body, used.clone())));
    request.headers_mut().insert(header::CONTENT_TYPE, content_type.clone());
    // The limits are ours.
    DefaultBodyLimit::disable().apply(&mut request);
    let mut multipart = Multipart::from_request(request, &())
        .await
        .map_err(|_| invalid("the media type has no boundary"))?;
    let mut form = Form::default();
    let (mut file, mut title, mut parts) = (false, false, 0);
    while let Some(field) = multipart.next_field().await.map_err(|error| malformed(&error))? {
        parts += 1;
        if parts > MAX_PARTS {
            return Err(invalid(&format!("at most {MAX_PARTS} parts are taken")));
        }
        let part = Part { field, used: &used };
        match part.field.name() {
            Some("file") if file => return Err(invalid("there is more than one `file`")),
            Some("file") => {
                file = true;
                if let Some(name) = part.field.file_name() {
                    form.set_filename(name);
                }
                part.copy(intake).await?;
            }
            Some("title") if title => return Err(invalid("there is more than one `title`")),
            Some("title") => {
                title = true;
                form.set_title(&part.text().await?)?;
            }
            Some("visibility") if form.visibility.is_some() => {
                return Err(invalid("there is more than one `visibility`"));
            }
            Some("visibility") => form.set_visibility(&part.text().await?)?,
            Some("tags") => form.add_tags(&part.text().await?)?,
            Some(other) => {
                let other = other.escape_debug();
                return Err(invalid(&format!("there is no field `{other}`")));
            }
            None => return Err(invalid("a part has no name")),
        }
    }
    if file { Ok(form) } else { Err(invalid("there is no `file`")) }
}

/// What goes wrong on the way to the parser.
#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error(transparent)]
    Body(#[from] BodyFault),
    #[error("more than {MAX_HELD_BYTES} bytes without a part")]
    Held,
}

/// The body for the parser. Ends with an error once the parser has been given more than it should
/// ever need beside the `used` bytes that it has made something of.
fn feed(
    body: &BodyReader,
    used: Arc<AtomicU64>,
) -> impl Stream<Item = Result<Bytes, FeedError>> + Send + use<> {
    let (body, mut paced) = (body.clone(), Box::pin(body.paced()));
    futures::stream::poll_fn(move |context| {
        if body.bytes().saturating_sub(used.load(Ordering::Relaxed)) > MAX_HELD_BYTES {
            return Poll::Ready(Some(Err(FeedError::Held)));
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

    /// The part's bytes into `intake`.
    async fn copy(mut self, intake: &mut Intake) -> Result<(), Problem> {
        while let Some(chunk) = self.chunk().await? {
            intake.write(&chunk).await?;
        }
        Ok(())
    }

    /// The part as text.
    async fn text(mut self) -> Result<String, Problem> {
        let name = self.field.name().unwrap_or_default().to_owned();
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_TEXT_BYTES {
                return Err(form::invalid(&name, "it is too long"));
            }
        }
        String::from_utf8(bytes).map_err(|_| form::invalid(&name, "it is not UTF-8"))
    }
}

fn malformed(error: &MultipartError) -> Problem {
    tracing::debug!(%error, "malformed multipart body");
    invalid("its parts cannot be read")
}

fn invalid(why: &str) -> Problem {
    Problem::new(ProblemCode::InvalidMultipart, format!("The multipart body is not valid: {why}."))
        .hint("send one part `file`, and optionally `title`, `tags` and `visibility`")
}
