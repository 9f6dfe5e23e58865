//! What the open connections do, so that those which do nothing give way to others.
//!
//! - While there are `max_connections`, a new one takes the place of the one that has waited for its client for the
//!   longest time: between two requests, or for the first one.
//! - An unfinished head also holds a buffer. If more than a quarter of `max_connections` have one, the oldest is
//!   closed: an honest client sends its head within a moment.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Instant,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

/// `max_connections` divided by this is how many may have an unfinished head.
const UNFINISHED_DIVISOR: usize = 4;

/// That number on the smallest server.
const MIN_UNFINISHED: usize = 64;

/// `max_connections` divided by this is how many are closed at once when there is no room: looking for them takes a
/// look at all.
const CLOSED_DIVISOR: usize = 64;

/// The open connections of a server. Clones are the same.
#[derive(Clone)]
pub struct OpenConnections(Arc<Inner>);

struct Inner {
    max_connections: usize,
    all: Mutex<Numbered<Arc<Activity>>>,
    unfinished: Mutex<Unfinished>,
}

struct Numbered<T> {
    next: u64,
    by_number: HashMap<u64, T>,
}

/// Connections with an unfinished head, the oldest first.
#[derive(Default)]
struct Unfinished {
    next: u64,
    by_number: BTreeMap<u64, CancellationToken>,
}

/// A connection among the open ones, until this is dropped.
pub struct OpenConnection {
    number: u64,
    open: OpenConnections,
    /// What it does.
    pub activity: Arc<Activity>,
}

/// What one connection does. Its stream and its service share it.
pub struct Activity {
    open: OpenConnections,
    gives_way: CancellationToken,
    state: Mutex<State>,
}

#[allow(clippy::struct_excessive_bools)] // they are independent of each other
struct State {
    /// Requests whose response is not complete.
    serving: usize,
    /// Whether one of them has a body, so that bytes which arrive are not those of a head.
    has_body: bool,
    /// Whether the bytes are frames of HTTP/2.
    has_frames: bool,
    /// Whether bytes wait to be sent.
    is_writing: bool,
    /// Since when it has waited for its client, if it does.
    waiting_since: Instant,
    /// Whether a part of a head has arrived.
    has_begun: bool,
    /// Whether the last bytes that were read go on after the end of a head.
    has_rest: bool,
    /// The number of its unfinished head.
    unfinished: Option<u64>,
}

/// A request, until its response was handed over completely.
pub struct Serving(Arc<Activity>);

impl OpenConnections {
    /// None, of a server with `max_connections`.
    pub fn new(max_connections: usize) -> Self {
        let all = Mutex::new(Numbered { next: 0, by_number: HashMap::new() });
        Self(Arc::new(Inner { max_connections, all, unfinished: Mutex::default() }))
    }

    /// Adds a connection that was accepted now.
    pub fn add(&self) -> OpenConnection {
        let state = State {
            serving: 0,
            has_body: false,
            has_frames: false,
            is_writing: false,
            waiting_since: Instant::now(),
            has_begun: false,
            has_rest: false,
            unfinished: None,
        };
        let (open, gives_way) = (self.clone(), CancellationToken::new());
        let activity = Arc::new(Activity { open, gives_way, state: Mutex::new(state) });
        let mut all = lock(&self.0.all);
        let number = all.next;
        all.next += 1;
        all.by_number.insert(number, activity.clone());
        OpenConnection { number, open: self.clone(), activity }
    }

    /// Closes some of those that have waited for their clients for the longest time. Returns whether there were any.
    pub fn make_room(&self) -> bool {
        let mut waiting: Vec<_> = lock(&self.0.all)
            .by_number
            .values()
            .filter_map(|activity| Some((activity.waiting_since()?, activity.gives_way.clone())))
            .collect();
        let count = (self.0.max_connections / CLOSED_DIVISOR).max(1).min(waiting.len());
        if count < waiting.len() {
            waiting.select_nth_unstable_by_key(count, |(since, _)| *since);
        }
        waiting.iter().take(count).for_each(|(_, gives_way)| close(gives_way));
        count > 0
    }

    /// Notes an unfinished head. If there are too many now, the oldest gives way.
    fn begin(&self, gives_way: &CancellationToken) -> u64 {
        let limit = (self.0.max_connections / UNFINISHED_DIVISOR).max(MIN_UNFINISHED);
        let mut unfinished = lock(&self.0.unfinished);
        let number = unfinished.next;
        unfinished.next += 1;
        unfinished.by_number.insert(number, gives_way.clone());
        while unfinished.by_number.len() > limit {
            let Some((_, oldest)) = unfinished.by_number.pop_first() else { break };
            close(&oldest);
        }
        number
    }

    fn end(&self, unfinished: Option<u64>) {
        if let Some(number) = unfinished {
            lock(&self.0.unfinished).by_number.remove(&number);
        }
    }
}

fn close(gives_way: &CancellationToken) {
    gives_way.cancel();
    metrics::counter!("safelight_connections_closed_for_others_total").increment(1);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        lock(&self.open.0.all).by_number.remove(&self.number);
        let unfinished = lock(&self.activity.state).unfinished.take();
        self.open.end(unfinished);
    }
}

impl Activity {
    /// Returns when the connection must be closed, so that others find a place.
    pub async fn gave_way(&self) {
        self.gives_way.cancelled().await;
    }

    /// The head of a request has arrived completely. Over HTTP/1 a part of its body may follow, or one of the next head.
    /// HTTP/2 bounds its heads itself, and what arrives between them are mostly other frames.
    pub fn serve(self: &Arc<Self>, has_body: bool, http2: bool) -> Serving {
        let mut state = lock(&self.state);
        state.serving += 1;
        state.has_frames = http2;
        state.has_body = has_body;
        state.has_begun = state.has_rest && !has_body && !http2;
        let unfinished = state.unfinished.take();
        drop(state);
        self.open.end(unfinished);
        Serving(self.clone())
    }

    /// The server needs more bytes. If those of a head were not enough, it is unfinished.
    fn reading(&self) {
        let mut state = lock(&self.state);
        if state.has_begun && state.serving == 0 && state.unfinished.is_none() {
            state.unfinished = Some(self.open.begin(&self.gives_way));
        }
    }

    /// Bytes have arrived.
    fn read(&self, bytes: &[u8]) {
        let mut state = lock(&self.state);
        if !state.has_frames && (state.serving == 0 || !state.has_body) {
            state.has_begun = true;
            state.has_rest = !bytes.ends_with(b"\n\r\n") && !bytes.ends_with(b"\n\n");
        }
    }

    fn waiting_since(&self) -> Option<Instant> {
        let state = lock(&self.state);
        (state.serving == 0 && !state.is_writing).then_some(state.waiting_since)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.serving -= 1;
        state.waiting_since = Instant::now();
    }
}

/// A stream that notes what happens on it.
pub struct ActiveStream<S> {
    stream: S,
    activity: Arc<Activity>,
    is_writing: bool,
}

impl<S> ActiveStream<S> {
    /// Over a new connection.
    pub fn new(stream: S, activity: Arc<Activity>) -> Self {
        Self { stream, activity, is_writing: false }
    }

    /// Notes whether bytes wait to be sent.
    fn note<T>(&mut self, written: Poll<T>) -> Poll<T> {
        if self.is_writing != written.is_pending() {
            self.is_writing = written.is_pending();
            lock(&self.activity.state).is_writing = self.is_writing;
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ActiveStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.activity.reading();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        let read = &buffer.filled()[before..];
        if !read.is_empty() {
            this.activity.read(read);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ActiveStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.note(written)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: &[u8] = b"GET / HTTP/1.1\r\nHost: ";
    const WHOLE: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

    fn closed(connections: &[OpenConnection]) -> Vec<usize> {
        let closed = |(_, one): &(usize, &OpenConnection)| one.activity.gives_way.is_cancelled();
        connections.iter().enumerate().filter(closed).map(|(index, _)| index).collect()
    }

    fn send_part(connection: &OpenConnection) {
        connection.activity.reading();
        connection.activity.read(PART);
        connection.activity.reading();
    }

    #[test]
    fn oldest_unfinished_head_gives_way_and_finished_ones_do_not() {
        let open = OpenConnections::new(1);
        let connections: Vec<_> = (0..=MIN_UNFINISHED).map(|_| open.add()).collect();
        let first = &connections[0].activity;
        first.read(WHOLE);
        let serving = first.serve(true, false);
        connections[1..].iter().for_each(send_part);
        // The body of the first: no head.
        first.read(PART);
        first.reading();
        assert!(closed(&connections).is_empty());
        drop(serving);
        first.reading();
        assert!(closed(&connections).is_empty(), "it waits");
        send_part(&connections[0]);
        assert_eq!(closed(&connections), [1]);
        drop(connections);
        assert!(lock(&open.0.unfinished).by_number.is_empty());
        assert!(lock(&open.0.all).by_number.is_empty());
    }

    #[test]
    fn part_of_a_head_behind_a_request_is_an_unfinished_head() {
        let open = OpenConnections::new(1);
        let connection = open.add();
        let unfinished = || lock(&open.0.unfinished).by_number.len();
        for (together, expected) in [(PART, 1), (b"", 0)] {
            connection.activity.read(&[WHOLE, together].concat());
            drop(connection.activity.serve(false, false));
            connection.activity.reading();
            assert_eq!(unfinished(), expected);
        }
    }

    #[test]
    fn frames_between_requests_are_no_heads() {
        let open = OpenConnections::new(1);
        let connection = open.add();
        connection.activity.read(PART);
        drop(connection.activity.serve(false, true));
        connection.activity.read(PART);
        connection.activity.reading();
        assert!(lock(&open.0.unfinished).by_number.is_empty());
    }

    #[test]
    fn connection_that_has_waited_for_the_longest_time_makes_room() {
        let open = OpenConnections::new(1);
        let connections: Vec<_> = (0..5).map(|_| open.add()).collect();
        let of = |index: usize| &connections[index].activity;
        let (_served, again) = (of(0).serve(false, false), of(1).serve(false, false));
        // Its client has not taken the response yet.
        lock(&of(2).state).is_writing = true;
        drop(again);
        assert!(open.make_room());
        assert_eq!(closed(&connections), [3], "the second has just been served");
        connections.iter().skip(1).for_each(|one| drop(one.activity.serve(false, false)));
        let busy: Vec<_> = connections.iter().map(|one| one.activity.serve(false, false)).collect();
        assert!(!open.make_room(), "all are served");
        drop(busy);
    }
}
