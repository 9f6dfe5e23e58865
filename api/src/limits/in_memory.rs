//! What requests hold in memory: JSON documents that are being received, and documents that clients have not read
//! yet. A client decides how long, and over HTTP/2 one connection has a hundred requests, so each owner has a share.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody},
    response::{IntoResponse, Response},
};
use moka::sync::Cache;
use safelight_domain::Owner;

use super::shares::{NoPermit, Permit, Shares};
use crate::{
    auth::Caller,
    http::{
        holding::Holding,
        pieces::Pieces,
        problem::{Problem, ProblemCode},
        turns::{Turn, Turns},
    },
};

/// JSON documents that a node receives at the same time: 16 MiB, as each has 64 KiB at most.
const BODIES: usize = 256;

/// Bytes of documents that a node holds for its clients at the same time.
const DOCUMENT_BYTES: usize = 64 << 20;

/// The part of each that one owner may hold. Without keys there is one client, which may hold all.
const OWNER_PART: usize = 4;

/// Requests of one owner that read the database at the same time, and those that wait for their turn.
const OWN_READING: usize = 8;
const OWN_QUEUED: usize = 1024;

/// Owners whose turns are remembered, for as long as they send requests.
const MAX_OWNERS: u64 = 10_000;
const REMEMBERED: Duration = Duration::from_mins(10);

/// What the requests of a node hold.
pub struct InMemory {
    reading: Cache<Owner, Arc<Turns>>,
    bodies: Shares<Owner>,
    document_bytes: Shares<Owner>,
}

/// A part of what a node holds, until this is dropped.
pub struct Held(#[allow(dead_code)] Permit<Owner>); // dropped, never read

impl Default for InMemory {
    fn default() -> Self {
        Self {
            reading: Cache::builder().max_capacity(MAX_OWNERS).time_to_idle(REMEMBERED).build(),
            bodies: Shares::new(BODIES),
            document_bytes: Shares::new(DOCUMENT_BYTES),
        }
    }
}

impl InMemory {
    /// A turn to read the database for `caller`, after its other requests. Without keys there is one client, which
    /// needs none.
    pub async fn turn(&self, caller: &Caller) -> Result<Turn, Problem> {
        if !caller.has_key() {
            return Ok(Turn::default());
        }
        let new = || Arc::new(Turns::new(OWN_READING, OWN_QUEUED));
        let turns = self.reading.get_with_by_ref(&caller.owner, new);
        turns.take().await.ok_or_else(|| {
            let detail = "This node handles as many requests of this owner at a time as it allows.";
            Problem::new(ProblemCode::TooManyOwnRequests, detail).hint("send fewer concurrently")
        })
    }

    /// A permit to receive a JSON document from `caller`.
    pub fn body(&self, caller: &Caller) -> Result<Held, Problem> {
        acquire(&self.bodies, caller, 1, "documents of this owner are being received")
    }

    /// A permit to hold a document of `bytes` bytes for `caller`.
    pub fn document(&self, caller: &Caller, bytes: usize) -> Result<Held, Problem> {
        acquire(&self.document_bytes, caller, bytes, "bytes of responses to this owner are unread")
    }

    /// Holds a document for `caller` until it was sent; a problem instead if it does not fit. Streams, whose size is
    /// unknown, hold a permit of their own.
    pub fn hold(&self, caller: &Caller, response: Response) -> Response {
        let bytes = response.body().size_hint().exact().unwrap_or(0);
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        if bytes == 0 {
            return response;
        }
        match self.document(caller, bytes) {
            Ok(held) => {
                // In pieces, because over HTTP/1 hyper drops a body with its last one, before that is sent.
                response.map(|body| Body::new(Holding::new(Pieces::new(body), held)))
            }
            Err(problem) => problem.into_response(),
        }
    }
}

fn acquire(
    shares: &Shares<Owner>,
    caller: &Caller,
    number: usize,
    what: &str,
) -> Result<Held, Problem> {
    let limit = shares.limit();
    let share = if caller.has_key() { limit / OWNER_PART } else { limit };
    shares.acquire(&caller.owner, number, share).map(Held).map_err(|none| match none {
        NoPermit::All => Problem::new(
            ProblemCode::TooManyRequests,
            "This node holds as much for its clients as it allows.",
        ),
        NoPermit::OwnShare => Problem::new(
            ProblemCode::TooManyOwnRequests,
            format!("This node allows {share} at a time: so many {what} already."),
        )
        .hint("send fewer requests concurrently, and read their responses"),
    })
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use http_body_util::BodyExt;

    use super::*;

    fn owner(name: &str) -> Caller {
        Caller::test(Some(name))
    }

    #[tokio::test]
    async fn unread_documents_of_one_owner_leave_memory_to_others() {
        let memory = InMemory::default();
        let (ada, bob) = (owner("ada"), owner("bob"));
        let page = || Response::new(Body::from(vec![b'x'; 1 << 20]));
        let unread: Vec<_> = (0..20).map(|_| memory.hold(&ada, page())).collect();
        let sent = unread.iter().filter(|one| one.status() == StatusCode::OK).count();
        assert_eq!(sent, (DOCUMENT_BYTES / OWNER_PART) >> 20);
        assert_eq!(unread[19].status(), StatusCode::TOO_MANY_REQUESTS);
        let read = memory.hold(&bob, page()).into_body().collect().await.expect("a body");
        assert_eq!(read.to_bytes().len(), 1 << 20);
        drop(unread);
        assert_eq!(memory.document_bytes.taken(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn readers_of_one_owner_leave_the_database_to_others() {
        let (memory, ada) = (InMemory::default(), owner("ada"));
        let mut turns = Vec::new();
        for _ in 0..OWN_READING {
            turns.push(memory.turn(&ada).await.expect("a turn"));
        }
        let late = memory.turn(&ada).await.map(drop).map_err(|problem| problem.code());
        assert_eq!(late, Err(ProblemCode::TooManyOwnRequests));
        assert!(memory.turn(&owner("bob")).await.is_ok());
        // One that waits for something else needs none.
        turns[0].end();
        assert!(memory.turn(&ada).await.is_ok());
    }

    #[test]
    fn owner_sends_a_share_of_the_documents_at_once() {
        let memory = InMemory::default();
        let ada = owner("ada");
        let held: Vec<_> = (0..BODIES).map_while(|_| memory.body(&ada).ok()).collect();
        assert_eq!(held.len(), BODIES / OWNER_PART);
        assert!(memory.body(&owner("bob")).is_ok());
        // Without keys there is nobody else.
        drop(held);
        let local: Vec<_> =
            (0..=BODIES).map_while(|_| memory.body(&Caller::test(None)).ok()).collect();
        assert_eq!(local.len(), BODIES);
    }
}
