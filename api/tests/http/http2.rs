//! HTTP/2 in raw frames (RFC 9113): what a client must not send, and how the server ends a stream or a connection
//! for it. The cases are those of h2spec that our settings and checks decide.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::server::ConnectedApp;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Types of frames (section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

// Flags.
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const WHOLE: u8 = END_STREAM | END_HEADERS;

// Errors (section 7).
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;

/// A frame (section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a length").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Fields as literals without indexing and without Huffman coding (RFC 7541, section 6.2.2).
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|n| *n < 127).expect("a short text"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// A GET of `/livez` with more fields.
fn get(more: &[(&str, &str)]) -> Vec<u8> {
    let mut fields = vec![
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/livez"),
        (":authority", "localhost"),
    ];
    fields.extend_from_slice(more);
    request(&fields)
}

fn request(fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, WHOLE, 1, &block(fields))
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    let mut payload = id.to_be_bytes().to_vec();
    payload.extend(value.to_be_bytes());
    frame(SETTINGS, 0, 0, &payload)
}

/// How the server reacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reaction {
    /// A response with this status.
    Status(u16),
    /// `RST_STREAM` with this error.
    Reset(u32),
    /// `GOAWAY` with this error, other than none.
    GoAway(u32),
    /// The connection ends.
    Closed,
    /// The answer to a ping.
    Pong,
}

/// A connection whose settings are exchanged.
struct Raw(TcpStream);

impl Raw {
    async fn new(server: &ConnectedApp) -> Self {
        let mut stream = server.connect().await;
        stream.write_all(PREFACE).await.expect("sent");
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.expect("sent");
        Self(stream)
    }

    async fn send(&mut self, bytes: &[u8]) {
        // The server may have ended the connection because of the bytes before.
        let _ = self.0.write_all(bytes).await;
    }

    /// The next frame: its type, flags and payload; `None` at the end.
    async fn frame(&mut self) -> Option<(u8, u8, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some((head[3], head[4], payload))
    }

    /// The next frame that says how the server takes what was sent.
    async fn reaction(&mut self) -> Reaction {
        let react = async {
            loop {
                let Some((kind, flags, payload)) = self.frame().await else {
                    return Reaction::Closed;
                };
                let number = |at: usize| {
                    let bytes = payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
                    u32::from_be_bytes(bytes.expect("four bytes"))
                };
                match kind {
                    HEADERS => return Reaction::Status(status(&payload)),
                    RST_STREAM => return Reaction::Reset(number(0)),
                    GOAWAY if number(4) != 0 => return Reaction::GoAway(number(4)),
                    PING if flags & ACK != 0 => return Reaction::Pong,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), react).await.expect("a reaction in time")
    }
}

/// The status in a block that begins with it: an index of the static table (RFC 7541, appendix A), or three digits.
fn status(block: &[u8]) -> u16 {
    let block = &block[block.iter().take_while(|byte| **byte & 0xe0 == 0x20).count()..];
    let known = [(0x88, 200), (0x89, 204), (0x8a, 206), (0x8b, 304), (0x8c, 400), (0x8d, 404)];
    known.iter().find(|(index, _)| *index == block[0]).map_or(0, |(_, status)| *status)
}

async fn reaction_to(server: &ConnectedApp, bytes: &[u8]) -> Reaction {
    let mut raw = Raw::new(server).await;
    raw.send(bytes).await;
    raw.reaction().await
}

#[tokio::test]
async fn settings_say_what_the_server_bounds() {
    let server = ConnectedApp::new(&[]).await;
    let mut raw = Raw::new(&server).await;
    let (kind, flags, payload) = raw.frame().await.expect("a frame");
    assert_eq!((kind, flags & ACK), (SETTINGS, 0));
    let settings: Vec<_> = payload
        .chunks(6)
        .map(|one| {
            let id = u16::from_be_bytes([one[0], one[1]]);
            (id, u32::from_be_bytes([one[2], one[3], one[4], one[5]]))
        })
        .collect();
    // SETTINGS_MAX_CONCURRENT_STREAMS and SETTINGS_INITIAL_WINDOW_SIZE (section 6.5.2).
    assert!(settings.contains(&(3, 100)), "{settings:?}");
    assert!(settings.contains(&(4, 256 * 1024)), "{settings:?}");
}

#[tokio::test]
async fn valid_requests_are_served_whatever_else_is_sent() {
    let server = ConnectedApp::new(&[]).await;
    let split = |at: usize| {
        let whole = block(&[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/livez"),
            ("host", "localhost"),
        ]);
        let mut frames = frame(HEADERS, END_STREAM, 1, &whole[..at]);
        frames.extend(frame(CONTINUATION, END_HEADERS, 1, &whole[at..]));
        frames
    };
    for (what, bytes) in [
        ("a request", get(&[])),
        ("a request with the host in both places", get(&[("host", "localhost")])),
        ("a request in two frames", split(10)),
        ("trailers are announced", get(&[("te", "trailers")])),
        ("a frame of an unknown type", [frame(0xff, 0, 0, b"x"), get(&[])].concat()),
        ("an unknown setting", [setting(0xff, 1), get(&[])].concat()),
        ("a PRIORITY frame", [frame(2, 0, 1, &[0, 0, 0, 0, 1]), get(&[])].concat()),
    ] {
        assert_eq!(reaction_to(&server, &bytes).await, Reaction::Status(200), "{what}");
    }
    let ping = frame(PING, 0, 0, b"12345678");
    assert_eq!(reaction_to(&server, &ping).await, Reaction::Pong);
}

/// Section 8.2 and 8.3: such a request is answered by 400, or its stream ends. In no case is it served.
#[tokio::test]
async fn malformed_requests_are_not_served() {
    let server = ConnectedApp::new(&[]).await;
    let [method, scheme, path, host] =
        [(":method", "GET"), (":scheme", "http"), (":path", "/livez"), (":authority", "localhost")];
    for (what, bytes) in [
        ("a name in upper case", get(&[("X-Upper", "1")])),
        ("an unknown pseudo-header", get(&[(":unknown", "1")])),
        ("a pseudo-header of responses", get(&[(":status", "200")])),
        ("a pseudo-header after a field", request(&[method, scheme, ("x", "1"), path, host])),
        ("a pseudo-header twice", get(&[(":path", "/livez")])),
        ("no method", request(&[scheme, path, host])),
        ("no scheme", request(&[method, path, host])),
        ("no path", request(&[method, scheme, host])),
        ("an empty path", request(&[method, scheme, (":path", ""), host])),
        ("a connection header", get(&[("connection", "close")])),
        ("a transfer coding", get(&[("transfer-encoding", "chunked")])),
        ("an upgrade", get(&[("upgrade", "h2c")])),
        ("another TE", get(&[("te", "gzip")])),
        ("no host", request(&[method, scheme, path])),
        ("an empty host", request(&[method, scheme, path, (":authority", "")])),
        ("an invalid host", request(&[method, scheme, path, (":authority", "a b")])),
        ("a user name", request(&[method, scheme, path, (":authority", "u@localhost")])),
        ("two hosts", request(&[method, scheme, path, ("host", "a"), ("host", "a")])),
        ("another host", get(&[("host", "elsewhere.example")])),
        ("another scheme", request(&[method, (":scheme", "ftp"), path, host])),
        ("a leading space", get(&[("x-field", " 1")])),
        ("a trailing space", get(&[("x-field", "1 ")])),
        ("a leading tab", get(&[("x-field", "\t1")])),
        ("a line feed", get(&[("x-field", "a\nb")])),
        ("a carriage return", get(&[("x-field", "a\rb")])),
        ("a NUL", get(&[("x-field", "a\0b")])),
        ("a space in a name", get(&[("x field", "1")])),
        ("a body that is not there", get(&[("content-length", "1")])),
    ] {
        let reaction = reaction_to(&server, &bytes).await;
        let rejected = matches!(
            reaction,
            Reaction::Status(400)
                | Reaction::Reset(PROTOCOL_ERROR)
                | Reaction::GoAway(PROTOCOL_ERROR)
        );
        assert!(rejected, "{what}: {reaction:?}");
    }
    assert_eq!(reaction_to(&server, &get(&[])).await, Reaction::Status(200), "others are served");
}

#[tokio::test]
async fn broken_frames_end_the_connection_with_their_error() {
    let server = ConnectedApp::new(&[]).await;
    let window = |stream, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    let on_stream = |stream| frame(HEADERS, WHOLE, stream, &block(&[(":method", "GET")]));
    for (what, bytes, error) in [
        ("a frame that is too large", frame(DATA, 0, 1, &vec![0; 16_385]), FRAME_SIZE_ERROR),
        ("DATA on the connection", frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
        ("DATA on an idle stream", frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR),
        ("HEADERS on the connection", on_stream(0), PROTOCOL_ERROR),
        ("HEADERS on a stream of the server", on_stream(2), PROTOCOL_ERROR),
        // COMPRESSION_ERROR in RFC 9113, section 4.3. The library does not tell the two apart.
        ("fields that cannot be decoded", frame(HEADERS, WHOLE, 1, &[0xff; 6]), PROTOCOL_ERROR),
        ("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, b""), PROTOCOL_ERROR),
        (
            "another frame within HEADERS",
            [frame(HEADERS, END_STREAM, 1, b""), frame(PING, 0, 0, b"12345678")].concat(),
            PROTOCOL_ERROR,
        ),
        ("SETTINGS on a stream", frame(SETTINGS, 0, 1, b""), PROTOCOL_ERROR),
        ("SETTINGS of odd length", frame(SETTINGS, 0, 0, b"abc"), FRAME_SIZE_ERROR),
        ("an acknowledgement with content", frame(SETTINGS, ACK, 0, &[0; 6]), FRAME_SIZE_ERROR),
        ("push that is neither on nor off", setting(2, 2), PROTOCOL_ERROR),
        ("a window that is too large", setting(4, 1 << 31), FLOW_CONTROL_ERROR),
        ("frames that are too small", setting(5, 16_383), PROTOCOL_ERROR),
        ("frames that are too large", setting(5, 1 << 24), PROTOCOL_ERROR),
        ("a short PING", frame(PING, 0, 0, b"1234"), FRAME_SIZE_ERROR),
        ("PING on a stream", frame(PING, 0, 1, b"12345678"), PROTOCOL_ERROR),
        ("no more window", window(0, 0), PROTOCOL_ERROR),
        ("more window than there can be", window(0, (1 << 31) - 1), FLOW_CONTROL_ERROR),
        ("RST_STREAM of an idle stream", frame(RST_STREAM, 0, 1, &[0; 4]), PROTOCOL_ERROR),
        ("PUSH_PROMISE of a client", frame(5, END_HEADERS, 1, &[0, 0, 0, 2]), PROTOCOL_ERROR),
    ] {
        let reaction = reaction_to(&server, &bytes).await;
        // Closing without a word is allowed too (section 5.4.1), and some errors the library calls by the general
        // name.
        let named = [error, PROTOCOL_ERROR].map(Reaction::GoAway);
        let ended = reaction == Reaction::Closed || named.contains(&reaction);
        assert!(ended, "{what}: {reaction:?}");
    }
    assert_eq!(reaction_to(&server, &get(&[])).await, Reaction::Status(200), "others are served");
}

#[tokio::test]
async fn stream_that_has_ended_takes_no_more() {
    let server = ConnectedApp::new(&[]).await;
    let mut raw = Raw::new(&server).await;
    raw.send(&get(&[])).await;
    assert_eq!(raw.reaction().await, Reaction::Status(200));
    raw.send(&frame(DATA, 0, 1, b"x")).await;
    let reaction = raw.reaction().await;
    let ended = matches!(
        reaction,
        Reaction::Closed | Reaction::Reset(STREAM_CLOSED) | Reaction::GoAway(STREAM_CLOSED)
    );
    assert!(ended, "{reaction:?}");
}

/// A client that begins more streams than it may: those beyond the limit are refused, none is served twice.
#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let server = ConnectedApp::new(&[]).await;
    let document = server.app.upload(crate::app::fake_png(500, 1)).await;
    let path = format!("/v1/tasks/{}", document["id"].as_str().expect("an id"));
    let held = block(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", &path),
        (":authority", "localhost"),
        ("prefer", "wait=60"),
    ]);
    let mut raw = Raw::new(&server).await;
    // Only once the client has acknowledged the settings is the limit binding.
    raw.send(&frame(SETTINGS, ACK, 0, &[])).await;
    for number in 0..101 {
        raw.send(&frame(HEADERS, WHOLE, 2 * number + 1, &held)).await;
    }
    let reaction = raw.reaction().await;
    let refused = matches!(reaction, Reaction::Reset(7) | Reaction::GoAway(PROTOCOL_ERROR));
    assert!(refused, "{reaction:?}");
}
