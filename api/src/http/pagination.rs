//! Keyset pages: `limit` and an opaque `cursor`.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use safelight_domain::{ImageId, TaskId};
use safelight_store::PageRequest;
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
}
