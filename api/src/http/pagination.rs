//! Keyset pages: `limit` and an opaque `cursor`.

use axum::{
    Json,
    http::{HeaderValue, Uri, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use percent_encoding::percent_decode_str;
use safelight_domain::{ImageId, TaskId};
use safelight_store::PageRequest;
use serde::Serialize;
use uuid::Uuid;

use super::{
    extract::{Params, invalid_query},
    problem::Problem,
};

/// Rows of a page by default.
const DEFAULT_LIMIT: u32 = 50;

/// Rows of a page at most.
const MAX_LIMIT: u32 = 500;

/// An id as a cursor. The mark makes a cursor of one list invalid in every other.
pub trait Cursor: Sized + Copy {
    /// The first byte of its cursors.
    const MARK: u8;
    /// The id with these bits.
    fn from_uuid(id: Uuid) -> Self;
    fn uuid(self) -> Uuid;

    /// The cursor as the client gets it.
    fn encode(self) -> String {
        let mut bytes = vec![Self::MARK];
        bytes.extend_from_slice(self.uuid().as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The id in a cursor that a client sent.
    fn decode(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (&mark, id) = bytes.split_first()?;
        (mark == Self::MARK).then_some(())?;
        Uuid::from_slice(id).ok().map(Self::from_uuid)
    }
}

impl Cursor for TaskId {
    const MARK: u8 = b't';

    fn from_uuid(id: Uuid) -> Self {
        Self(id)
    }

    fn uuid(self) -> Uuid {
        self.0
    }
}

impl Cursor for ImageId {
    const MARK: u8 = b'i';

    fn from_uuid(id: Uuid) -> Self {
        Self(id)
    }

    fn uuid(self) -> Uuid {
        self.0
    }
}

/// The page that a query asks for.
pub fn page<Id: Cursor>(params: &mut Params) -> Result<PageRequest<Id>, Problem> {
    let limit = params.parse("limit")?.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(invalid_query("limit", format_args!("must be 1 to {MAX_LIMIT}")));
    }
    let before = match params.take("cursor")? {
        Some(text) => {
            let id = Id::decode(&text);
            Some(id.ok_or_else(|| invalid_query("cursor", "is none that this list gave out"))?)
        }
        None => None,
    };
    Ok(PageRequest { before, limit })
}

/// A page as a response, with the address of the `next` one in `Link` (RFC 8288), as the document has its cursor.
pub struct Page<Document> {
    /// The page.
    pub document: Document,
    /// The request that it answers.
    pub uri: Uri,
    /// The cursor of the next page; `None` on the last one.
    pub next: Option<String>,
}

impl<Document: Serialize> IntoResponse for Page<Document> {
    fn into_response(self) -> Response {
        let Self { document, uri, next } = self;
        let mut response = Json(document).into_response();
        let link = next.and_then(|cursor| next_link(&uri, &cursor));
        response.headers_mut().extend(link.map(|link| (header::LINK, link)));
        response
    }
}

/// The same path and query with another cursor. Relative, so that it is right behind every proxy.
fn next_link(uri: &Uri, cursor: &str) -> Option<HeaderValue> {
    let is_cursor = |pair: &str| {
        let name = pair.split('=').next().unwrap_or_default();
        percent_decode_str(name).eq(b"cursor".iter().copied())
    };
    let pairs = uri.query().unwrap_or_default().split('&');
    let mut query: Vec<_> = pairs.filter(|pair| !pair.is_empty() && !is_cursor(pair)).collect();
    let cursor = format!("cursor={cursor}");
    query.push(&cursor);
    let link = format!("<{}?{}>; rel=\"next\"", uri.path(), query.join("&"));
    HeaderValue::from_str(&link).ok()
}

/// The cursor after the page `rows`; `None` if that page was not full and so was the last.
pub fn next_cursor<Row, Id: Cursor>(
    request: &PageRequest<Uuid>,
    rows: &[Row],
    id: impl Fn(&Row) -> Id,
) -> Option<String> {
    let is_full = rows.len() >= request.limit as usize;
    rows.last().filter(|_| is_full).map(|row| id(row).encode())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_decode_only_for_their_own_list() {
        let id = TaskId::new();
        let cursor = id.encode();
        assert_eq!(TaskId::decode(&cursor), Some(id));
        assert_eq!(ImageId::decode(&cursor), None);
        for text in ["", "!", "dA", &cursor[1..], &format!("{cursor}AA")] {
            assert_eq!(TaskId::decode(text), None, "{text}");
        }
    }
    #[test]
    fn next_page_has_the_same_filter_and_another_cursor() {
        for (uri, link) in [
            ("/v1/tasks", "</v1/tasks?cursor=abc>; rel=\"next\""),
            ("/v1/tasks?", "</v1/tasks?cursor=abc>; rel=\"next\""),
            (
                "/v1/tasks?status=failed&cursor=old&limit=2",
                "</v1/tasks?status=failed&limit=2&cursor=abc>; rel=\"next\"",
            ),
            ("/v1/tasks?c%75rsor=old&limit=2", "</v1/tasks?limit=2&cursor=abc>; rel=\"next\""),
        ] {
            assert_eq!(next_link(&Uri::from_static(uri), "abc").expect("a link"), link, "{uri}");
        }
    }
}
