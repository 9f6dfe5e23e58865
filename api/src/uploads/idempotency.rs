//! `Idempotency-Key`: an upload that is sent several times is accepted once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderName};
use safelight_domain::{ContentHash, Owner, TaskId, retry::Reconnect};
use safelight_store::{IdempotencyKey, KeyState, KeyTicket, Uploads};
use tokio_util::task::AbortOnDropHandle;

use crate::http::{
    extract::single_header,
    problem::{Problem, ProblemCode},
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Characters of a key at most.
const MAX_KEY_CHARS: usize = 255;

/// The key that a request carries.
pub fn from_headers(headers: &HeaderMap, owner: &Owner) -> Result<Option<IdempotencyKey>, Problem> {
    let code = ProblemCode::InvalidIdempotencyKey;
    let Some(sent) = single_header(headers, &IDEMPOTENCY_KEY, code)? else { return Ok(None) };
    let key = unquoted(sent).ok_or_else(|| {
        Problem::new(code, "The quotes of the `Idempotency-Key` do not match (RFC 9651).")
    })?;
    if key.is_empty() || key.len() > MAX_KEY_CHARS || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Problem::new(
            code,
            format!("`Idempotency-Key` must be 1 to {MAX_KEY_CHARS} visible ASCII characters."),
        ));
    }
    Ok(Some(IdempotencyKey { owner: owner.clone(), key }))
}

/// The key in a quoted string (RFC 9651, section 4.2.5), as draft-ietf-httpapi-idempotency-key-header-07 wants it;
/// without quotes, the text itself, as most clients send it. `None` for a string without an end.
fn unquoted(text: &str) -> Option<String> {
    let Some(quoted) = text.strip_prefix('"') else { return Some(text.to_owned()) };
    let mut key = String::new();
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '"' => break,
            '\\' => key.push(characters.next().filter(|c| matches!(c, '"' | '\\'))?),
            other => key.push(other),
        }
    }
    // Parameters say nothing about the key.
    let rest = characters.as_str().trim_start();
    (rest.is_empty() || rest.starts_with(';')).then_some(key)
}

/// What an upload with a key may do.
pub enum Reservation {
    /// Be accepted under it.
    Reserved(ReservedKey),
    /// Get the task of the earlier upload, if the payload is the same.
    Replay {
        /// That task.
        task: TaskId,
        /// The payload that it carried.
        fingerprint: ContentHash,
    },
}

/// A key that is reserved for as long as this lives. If the process dies, the key is free again after the hold.
/// Dropping it releases the key, however the upload ended.
pub struct ReservedKey {
    store: Arc<dyn Uploads>,
    ticket: Option<KeyTicket>,
    /// How long the reservation lasts without this process.
    hold: Duration,
    _extending: AbortOnDropHandle<()>,
}

/// Reserves a key for an upload that is about to be received.
pub async fn reserve(
    store: &Arc<dyn Uploads>,
    key: &IdempotencyKey,
    hold: Duration,
) -> Result<Reservation, Problem> {
    match store.reserve_key(key, hold).await? {
        KeyState::Reserved(ticket) => {
            let extending = tokio::spawn(extend(store.clone(), ticket.clone(), hold));
            Ok(Reservation::Reserved(ReservedKey {
                store: store.clone(),
                ticket: Some(ticket),
                hold,
                _extending: AbortOnDropHandle::new(extending),
            }))
        }
        KeyState::Used { task, fingerprint } => Ok(Reservation::Replay { task, fingerprint }),
        KeyState::InFlight => Err(in_flight()),
    }
}

/// Holds a reservation for as long as the upload takes. Never ends.
async fn extend(store: Arc<dyn Uploads>, ticket: KeyTicket, hold: Duration) {
    loop {
        tokio::time::sleep(hold / 3).await;
        // If the key is lost meanwhile, accepting the upload reports it.
        if let Err(error) = store.extend_key(&ticket, hold).await {
            tracing::debug!(%error, "cannot extend the reservation of an idempotency key");
        }
    }
}

/// Another upload holds the key.
pub fn in_flight() -> Problem {
    Problem::new(
        ProblemCode::KeyInFlight,
        "Another upload with this Idempotency-Key is being received.",
    )
}

/// The key was used for another payload.
pub fn reused() -> Problem {
    Problem::new(
        ProblemCode::KeyReused,
        "This Idempotency-Key was used for an upload with another payload.",
    )
    .hint("use a new key for a new upload")
}

impl ReservedKey {
    /// What accepting under the key needs.
    pub fn ticket(&self) -> Option<&KeyTicket> {
        self.ticket.as_ref()
    }

    /// Keeps the key for the upload that was accepted under it.
    pub fn keep(mut self) {
        self.ticket = None;
    }
}

impl Drop for ReservedKey {
    fn drop(&mut self) {
        let (Some(ticket), Ok(runtime)) =
            (self.ticket.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        runtime.spawn(release(self.store.clone(), ticket, self.hold));
    }
}

/// Releases a key. Retries until the reservation has expired, because the database may be unavailable:
/// otherwise the client's next try would be rejected because the key is in use.
async fn release(store: Arc<dyn Uploads>, ticket: KeyTicket, hold: Duration) {
    let ends_at = Instant::now() + hold;
    let mut reconnect = Reconnect::default();
    while let Err(error) = store.release_key(&ticket).await {
        if Instant::now() >= ends_at {
            tracing::warn!(%error, "could not release an idempotency key");
            return;
        }
        tokio::time::sleep(reconnect.next_delay()).await;
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn keys_are_short_printable_and_unique() {
        let read = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                let value = HeaderValue::from_bytes(value).expect("a header value");
                headers.append(IDEMPOTENCY_KEY, value);
            }
            from_headers(&headers, &Owner::local())
        };
        assert!(read(&[]).expect("none").is_none());
        assert_eq!(read(&[b"a-1"]).expect("key").expect("some").key, "a-1");
        assert!(read(&[&[b'x'; 255]]).is_ok());
        for same in [&br#""a-1""#[..], br#""a-1"; v=1"#] {
            assert_eq!(read(&[same]).expect("key").expect("some").key, "a-1");
        }
        assert_eq!(read(&[br#""a\"\\""#]).expect("key").expect("some").key, "a\"\\");
        for bad in [
            &[b"".as_slice()][..],
            &[b"a b"],
            &[&[b'x'; 256]],
            &["é".as_bytes()],
            &[b"a", b"b"],
            &[b"\"\""],
            &[b"\"a"],
            &[b"\"a\"b"],
            &[b"\"a\\x\""],
            &[b"\"a b\""],
        ] {
            let problem = read(bad).expect_err("a bad key");
            assert_eq!(problem.code(), ProblemCode::InvalidIdempotencyKey);
        }
    }
}
