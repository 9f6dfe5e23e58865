//! Over real connections: aborted and refused bodies, and the end of the server.

use std::{io, net::SocketAddr, time::Duration};

use axum::http::{Request, StatusCode};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use safelight_api::{Tls, serve, while_starting};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::app::{TestApp, eventually, image_id, picture, task_id};

/// A node that listens.
pub struct Served {
    pub app: TestApp,
    pub address: SocketAddr,
    shutdown: CancellationToken,
    ended: JoinHandle<io::Result<()>>,
}

impl Served {
    pub async fn new(keys: &[(&str, &str)]) -> Self {
        Self::with_tls(keys, None).await
    }

    pub async fn with_tls(keys: &[(&str, &str)], tls: Option<Tls>) -> Self {
        let app = TestApp::configured(keys).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        let (api, config) = (app.api.clone(), app.parts.config.clone());
        let token = shutdown.clone();
        let ended = tokio::spawn(async move { serve(listener, api, tls, &config, token).await });
        Self { app, address, shutdown, ended }
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("a connection")
    }

    /// Sends raw bytes on a connection of their own and reads to its end.
    pub async fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.expect("sent");
        read_to_end(&mut stream).await
    }
}

pub async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let read = tokio::time::timeout(Duration::from_secs(20), read).await.expect("in time");
    read.expect("the connection ends in order");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Reads until the head and `Content-Length` bytes have come.
pub async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut answer = Vec::new();
    let read = async {
        loop {
            let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
                if length.is_none_or(|l| body.len() >= l.trim().parse().unwrap_or(0)) {
                    return;
                }
            }
            assert_ne!(stream.read_buf(&mut answer).await.expect("readable"), 0, "{text}");
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read).await.expect("an answer in time");
    String::from_utf8_lossy(&answer).into_owned()
}

const POST: &str = "POST /v1/images HTTP/1.1\r\nHost: localhost\r\n";

#[tokio::test]
async fn a_client_that_hangs_up_leaves_nothing() {
    let served = Served::new(&[]).await;
    let mut stream = served.connect().await;
    let head = format!("{POST}Idempotency-Key: k\r\nContent-Length: 1000000\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(&picture(300_000, 1)).await.expect("sent");
    // Its bytes are on the disk already, under a temporary name.
    eventually(async || !served.app.incoming().is_empty()).await;
    drop(stream);
    served.app.eventually_nothing_is_staged().await;
    let list = served.app.get("/v1/images").await.json();
    assert_eq!(list["images"], serde_json::json!([]));
}

#[tokio::test]
async fn a_silent_upload_times_out() {
    let served = Served::new(&[("SAFELIGHT_UPLOAD_IDLE_TIMEOUT_MS", "100")]).await;
    let mut stream = served.connect().await;
    let head = format!("{POST}Content-Length: 1000000\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(&picture(1000, 1)).await.expect("sent");
    let answer = read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("upload_timeout"), "{answer}");
    served.app.eventually_nothing_is_staged().await;
}

#[tokio::test]
async fn a_client_that_is_still_sending_gets_its_rejection() {
    let served = Served::new(&[("SAFELIGHT_MAX_UPLOAD_BYTES", "100000")]).await;
    let head = format!("{POST}Content-Length: 8000000\r\n\r\n");
    for body in [picture(8_000_000, 1), vec![b'x'; 8_000_000]] {
        let mut stream = served.connect().await;
        stream.write_all(head.as_bytes()).await.expect("sent");
        // All of it, before the first look at the answer: the connection must stay open for that.
        stream.write_all(&body).await.expect("the whole body can be sent");
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
}

#[tokio::test]
async fn a_rejected_expect_continue_body_is_not_sent() {
    let served = Served::new(&[("SAFELIGHT_MAX_UPLOAD_BYTES", "1000")]).await;
    let asked =
        |bytes: usize| format!("{POST}Expect: 100-continue\r\nContent-Length: {bytes}\r\n\r\n");
    let refused = served.exchange(&asked(1001)).await;
    assert!(refused.starts_with("HTTP/1.1 413"), "{refused}");
    let mut stream = served.connect().await;
    stream.write_all(asked(1000).as_bytes()).await.expect("sent");
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).await.expect("an answer");
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(&picture(1000, 1)).await.expect("sent");
    let answer = read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
}

#[tokio::test]
async fn http2_is_spoken_on_the_same_port() {
    let served = Served::new(&[]).await;
    let mut stream = served.connect().await;
    // The preface in two pieces, and an empty SETTINGS frame.
    stream.write_all(b"PRI * HTT").await.expect("sent");
    stream.write_all(b"P/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("sent");
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).await.expect("a frame");
    assert_eq!(frame[3], 4, "the server's SETTINGS come first");
}

#[tokio::test]
async fn livez_answers_during_a_slow_start() {
    let app = TestApp::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let ask = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let get = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(get.as_bytes()).await.expect("sent");
        read_answer(&mut stream).await
    };
    let connecting = async {
        let alive = ask("/livez").await;
        assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");
        let refused = ask("/images/x").await;
        assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
        assert!(refused.contains("retry-after") && refused.contains("not_ready"), "{refused}");
        "connected"
    };
    assert_eq!(while_starting(&listener, None, &app.parts.config, connecting).await, "connected");
    // Then the port is the node's own.
    let (api, config) = (app.api.clone(), app.parts.config.clone());
    let serving =
        tokio::spawn(
            async move { serve(listener, api, None, &config, CancellationToken::new()).await },
        );
    assert!(ask("/readyz").await.starts_with("HTTP/1.1 200"));
    serving.abort();
}

#[tokio::test]
async fn shutdown_ends_waits_and_finishes_uploads() {
    let served = Served::new(&[]).await;
    let task = task_id(&served.app.upload(picture(500, 1)).await);
    let mut waiting = served.connect().await;
    let ask =
        format!("GET /v1/tasks/{task} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=60\r\n\r\n");
    waiting.write_all(ask.as_bytes()).await.expect("sent");
    let mut following = served.connect().await;
    let ask = format!("GET /v1/tasks/{task}/events HTTP/1.1\r\nHost: localhost\r\n\r\n");
    following.write_all(ask.as_bytes()).await.expect("sent");
    let mut first = [0; 15];
    following.read_exact(&mut first).await.expect("the stream has begun");
    let mut uploading = served.connect().await;
    let head = format!("{POST}Content-Length: 300000\r\n\r\n");
    let bytes = picture(300_000, 2);
    uploading.write_all(head.as_bytes()).await.expect("sent");
    uploading.write_all(&bytes[..200_000]).await.expect("sent");
    eventually(async || served.app.incoming().len() > 1).await;
    served.shutdown.cancel();
    let answer = read_to_end(&mut waiting).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("\"queued\""), "{answer}");
    read_to_end(&mut following).await;
    uploading.write_all(&bytes[200_000..]).await.expect("sent");
    let answer = read_to_end(&mut uploading).await;
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    let ended = tokio::time::timeout(Duration::from_secs(20), served.ended).await;
    ended.expect("in time").expect("no panic").expect("no error");
    assert!(TcpStream::connect(served.address).await.is_err());
}

#[tokio::test]
async fn shutdown_waits_at_most_drain_timeout() {
    let served = Served::new(&[("SAFELIGHT_DRAIN_TIMEOUT_MS", "200")]).await;
    let mut stuck = served.connect().await;
    let head = format!("{POST}Content-Length: 300000\r\n\r\n");
    stuck.write_all(head.as_bytes()).await.expect("sent");
    stuck.write_all(&picture(200_000, 1)).await.expect("sent");
    eventually(async || !served.app.incoming().is_empty()).await;
    served.shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), served.ended).await;
    ended.expect("in time").expect("no panic").expect("no error");
    served.app.eventually_nothing_is_staged().await;
}

#[tokio::test]
async fn a_client_that_leaves_during_a_read_affects_no_other() {
    let served = Served::new(&[("SAFELIGHT_MEMORY_CACHE_BYTES", "0")]).await;
    let (get, size) = large_original(&served).await;
    let mut gone = served.connect().await;
    gone.write_all(get.as_bytes()).await.expect("sent");
    let mut head = [0; 100];
    gone.read_exact(&mut head).await.expect("the answer begins");
    drop(gone);
    let answer = served.exchange(&get.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
    assert!(answer.len() > size, "{} bytes", answer.len());
    assert!(answer.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn slow_clients_are_disconnected() {
    let served = Served::new(&[("SAFELIGHT_CLIENT_IDLE_TIMEOUT_MS", "300")]).await;
    let (get, size) = large_original(&served).await;
    // One says nothing, one never ends its head, one lies idle after an answer.
    let mut silent = served.connect().await;
    let mut slow = served.connect().await;
    slow.write_all(b"GET /livez HTTP/1.1\r\nHost:").await.expect("sent");
    let mut idle = served.connect().await;
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
    for stream in [&mut silent, &mut slow, &mut idle] {
        read_to_end(stream).await;
    }
    // And one takes nothing of its answer: when it reads at last, most of it is not there.
    let mut deaf = served.connect().await;
    deaf.write_all(get.as_bytes()).await.expect("sent");
    // Once the server has closed the connection, what is sent on it comes back as a reset.
    eventually(async || deaf.write_all(b"x").await.is_err()).await;
    let mut answer = Vec::new();
    // Ends in order or with a reset.
    let _ = deaf.read_to_end(&mut answer).await;
    assert!(answer.len() < size, "{} bytes", answer.len());
}

#[tokio::test]
async fn an_http2_client_that_only_answers_pings_is_disconnected() {
    let served = Served::new(&[("SAFELIGHT_CLIENT_IDLE_TIMEOUT_MS", "300")]).await;
    let document = served.app.upload(picture(50_000, 1)).await;
    served.app.write(task_id(&document)).await;
    let path = format!("/images/{}", image_id(&document));
    // One lies idle after an answer, one takes nothing of it.
    for (path, window) in [("/livez", 65_535), (&*path, 0)] {
        let mut client = Http2::new(&served, window).await;
        let response = client.get(path, "").await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        let ended = tokio::time::timeout(Duration::from_secs(20), client.ended).await;
        let _ = ended.expect("it is disconnected").expect("no panic");
    }
}

#[tokio::test]
async fn an_http2_client_may_wait_and_read_slowly() {
    let served = Served::new(&[("SAFELIGHT_CLIENT_IDLE_TIMEOUT_MS", "1000")]).await;
    let whole = picture(120_000, 1);
    let document = served.app.upload(whole.clone()).await;
    let task = task_id(&document);
    let mut client = Http2::new(&served, 20_000).await;
    let held = client.get(&format!("/v1/tasks/{task}"), "wait=2").await.expect("an answer");
    assert_eq!(held.status(), StatusCode::OK, "waiting is not idling");
    served.app.write(task).await;
    let path = format!("/images/{}", image_id(&document));
    let mut body = client.get(&path, "").await.expect("an answer").into_body();
    let mut read = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.expect("it is not broken off");
        read.extend_from_slice(&piece);
        // In all longer than the time-out.
        tokio::time::sleep(Duration::from_micros(15 * piece.len() as u64)).await;
        body.flow_control().release_capacity(piece.len()).expect("released");
    }
    assert_eq!(read, whole);
}

/// A connection that grants each answer a window of so many bytes until it is read.
struct Http2 {
    requests: SendRequest<Bytes>,
    ended: JoinHandle<Result<(), h2::Error>>,
}

impl Http2 {
    async fn new(served: &Served, window: u32) -> Self {
        let mut builder = h2::client::Builder::new();
        let handshake = builder.initial_window_size(window).handshake(served.connect().await);
        let (requests, connection) = handshake.await.expect("HTTP/2");
        Self { requests, ended: tokio::spawn(connection) }
    }

    fn get(&mut self, path: &str, prefer: &str) -> ResponseFuture {
        let request = Request::get(format!("http://localhost{path}")).header("prefer", prefer);
        let request = request.body(()).expect("a request");
        self.requests.send_request(request, true).expect("sent").0
    }
}

/// A request for an original that no socket's buffers hold, and its size.
async fn large_original(served: &Served) -> (String, usize) {
    let whole = picture(40_000_000, 1);
    let document = served.app.upload(whole.clone()).await;
    served.app.write(task_id(&document)).await;
    let path = format!("/images/{}", image_id(&document));
    (format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"), whole.len())
}
