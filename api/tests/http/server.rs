//! Tests over real connections: aborted and rejected bodies, slow clients, and shutdown.

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

use crate::app::{TestApp, eventually, fake_png, image_id, task_id};

/// An API node that listens on a port.
pub struct ConnectedApp {
    pub app: TestApp,
    pub address: SocketAddr,
    shutdown: CancellationToken,
    ended: JoinHandle<io::Result<()>>,
}

impl ConnectedApp {
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

    /// Sends raw bytes on a new connection and reads until it ends.
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
    read.expect("the connection ends normally");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Reads the head and `Content-Length` bytes.
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
async fn aborted_upload_leaves_no_staged_bytes() {
    let server = ConnectedApp::new(&[]).await;
    let mut stream = server.connect().await;
    let head = format!("{POST}Idempotency-Key: k\r\nContent-Length: 1000000\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(&fake_png(300_000, 1)).await.expect("sent");
    // Its bytes are already on disk, under a temporary name.
    eventually(async || !server.app.incoming().is_empty()).await;
    drop(stream);
    server.app.eventually_nothing_is_staged().await;
    let list = server.app.get("/v1/images").await.json();
    assert_eq!(list["images"], serde_json::json!([]));
}

#[tokio::test]
async fn silent_upload_times_out() {
    let server = ConnectedApp::new(&[("SAFELIGHT_UPLOAD_IDLE_TIMEOUT_MS", "100")]).await;
    let mut stream = server.connect().await;
    let head = format!("{POST}Content-Length: 1000000\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(&fake_png(1000, 1)).await.expect("sent");
    let answer = read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("upload_timeout"), "{answer}");
    server.app.eventually_nothing_is_staged().await;
}

#[tokio::test]
async fn client_that_is_still_sending_receives_its_rejection() {
    let server = ConnectedApp::new(&[("SAFELIGHT_MAX_UPLOAD_BYTES", "100000")]).await;
    let head = format!("{POST}Content-Length: 8000000\r\n\r\n");
    for body in [fake_png(8_000_000, 1), vec![b'x'; 8_000_000]] {
        let mut stream = server.connect().await;
        stream.write_all(head.as_bytes()).await.expect("sent");
        // The client reads only after it has sent everything: until then the connection must stay open.
        stream.write_all(&body).await.expect("the whole body can be sent");
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
}

#[tokio::test]
async fn rejected_expect_continue_body_is_not_sent() {
    let server = ConnectedApp::new(&[("SAFELIGHT_MAX_UPLOAD_BYTES", "1000")]).await;
    let head_for =
        |bytes: usize| format!("{POST}Expect: 100-continue\r\nContent-Length: {bytes}\r\n\r\n");
    let rejected = server.exchange(&head_for(1001)).await;
    assert!(rejected.starts_with("HTTP/1.1 413"), "{rejected}");
    let mut stream = server.connect().await;
    stream.write_all(head_for(1000).as_bytes()).await.expect("sent");
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.expect("a response");
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(&fake_png(1000, 1)).await.expect("sent");
    let answer = read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
}

#[tokio::test]
async fn http2_works_on_the_same_port() {
    let server = ConnectedApp::new(&[]).await;
    let mut stream = server.connect().await;
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
    let get = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let get = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(get.as_bytes()).await.expect("sent");
        read_answer(&mut stream).await
    };
    let connecting = async {
        let alive = get("/livez").await;
        assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");
        let rejected = get("/images/x").await;
        assert!(rejected.starts_with("HTTP/1.1 503"), "{rejected}");
        assert!(rejected.contains("retry-after") && rejected.contains("not_ready"), "{rejected}");
        "connected"
    };
    assert_eq!(while_starting(&listener, None, &app.parts.config, connecting).await, "connected");
    // After startup the same listener serves the API.
    let (api, config) = (app.api.clone(), app.parts.config.clone());
    let serving =
        tokio::spawn(
            async move { serve(listener, api, None, &config, CancellationToken::new()).await },
        );
    assert!(get("/readyz").await.starts_with("HTTP/1.1 200"));
    serving.abort();
}

#[tokio::test]
async fn shutdown_ends_waits_and_finishes_uploads() {
    let server = ConnectedApp::new(&[]).await;
    let task = task_id(&server.app.upload(fake_png(500, 1)).await);
    let mut waiting = server.connect().await;
    let ask =
        format!("GET /v1/tasks/{task} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=60\r\n\r\n");
    waiting.write_all(ask.as_bytes()).await.expect("sent");
    let mut following = server.connect().await;
    let ask = format!("GET /v1/tasks/{task}/events HTTP/1.1\r\nHost: localhost\r\n\r\n");
    following.write_all(ask.as_bytes()).await.expect("sent");
    let mut first = [0; 15];
    following.read_exact(&mut first).await.expect("the stream has started");
    let mut uploading = server.connect().await;
    let head = format!("{POST}Content-Length: 300000\r\n\r\n");
    let bytes = fake_png(300_000, 2);
    uploading.write_all(head.as_bytes()).await.expect("sent");
    uploading.write_all(&bytes[..200_000]).await.expect("sent");
    eventually(async || !server.app.incoming().is_empty()).await;
    server.shutdown.cancel();
    let answer = read_to_end(&mut waiting).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("\"queued\""), "{answer}");
    read_to_end(&mut following).await;
    uploading.write_all(&bytes[200_000..]).await.expect("sent");
    let answer = read_to_end(&mut uploading).await;
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    let ended = tokio::time::timeout(Duration::from_secs(20), server.ended).await;
    ended.expect("in time").expect("no panic").expect("no error");
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn shutdown_waits_at_most_drain_timeout() {
    let server = ConnectedApp::new(&[("SAFELIGHT_DRAIN_TIMEOUT_MS", "200")]).await;
    let mut stuck = server.connect().await;
    let head = format!("{POST}Content-Length: 300000\r\n\r\n");
    stuck.write_all(head.as_bytes()).await.expect("sent");
    stuck.write_all(&fake_png(200_000, 1)).await.expect("sent");
    eventually(async || !server.app.incoming().is_empty()).await;
    server.shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), server.ended).await;
    ended.expect("in time").expect("no panic").expect("no error");
    server.app.eventually_nothing_is_staged().await;
}

#[tokio::test]
async fn client_that_disconnects_during_a_read_affects_no_other() {
    let server = ConnectedApp::new(&[("SAFELIGHT_MEMORY_CACHE_BYTES", "0")]).await;
    let (get, size) = large_original(&server).await;
    let mut gone = server.connect().await;
    gone.write_all(get.as_bytes()).await.expect("sent");
    let mut head = [0; 100];
    gone.read_exact(&mut head).await.expect("the response starts");
    drop(gone);
    let answer = server.exchange(&get.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
    assert!(answer.len() > size, "{} bytes", answer.len());
    assert!(answer.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn slow_clients_are_disconnected() {
    let server = ConnectedApp::new(&[("SAFELIGHT_CLIENT_IDLE_TIMEOUT_MS", "300")]).await;
    let (get, size) = large_original(&server).await;
    // One sends nothing, one never ends its head, one is idle after a response.
    let mut silent = server.connect().await;
    let mut slow = server.connect().await;
    slow.write_all(b"GET /livez HTTP/1.1\r\nHost:").await.expect("sent");
    let mut idle = server.connect().await;
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
    for stream in [&mut silent, &mut slow, &mut idle] {
        read_to_end(stream).await;
    }
    // One does not read its response. When it reads later, most of the response is missing.
    let mut stalled = server.connect().await;
    stalled.write_all(get.as_bytes()).await.expect("sent");
    // Once the server has closed the connection, writing to it fails with a reset.
    eventually(async || stalled.write_all(b"x").await.is_err()).await;
    let mut answer = Vec::new();
    // The connection ends normally or with a reset.
    let _ = stalled.read_to_end(&mut answer).await;
    assert!(answer.len() < size, "{} bytes", answer.len());
}

#[tokio::test]
async fn http2_client_that_only_answers_pings_is_disconnected() {
    let server = ConnectedApp::new(&[("SAFELIGHT_CLIENT_IDLE_TIMEOUT_MS", "300")]).await;
    let document = server.app.upload(fake_png(50_000, 1)).await;
    server.app.write(task_id(&document)).await;
    let path = format!("/images/{}", image_id(&document));
    // One is idle after a response, one does not read its response.
    for (path, window) in [("/livez", 65_535), (&*path, 0)] {
        let mut client = Http2::new(&server, window).await;
        let response = client.get(path, "").await.expect("a response");
        assert_eq!(response.status(), StatusCode::OK);
        let ended = tokio::time::timeout(Duration::from_secs(20), client.ended).await;
        let _ = ended.expect("it is disconnected").expect("no panic");
    }
}

#[tokio::test]
async fn http2_client_may_wait_and_read_slowly() {
    let server = ConnectedApp::new(&[("SAFELIGHT_CLIENT_IDLE_TIMEOUT_MS", "1000")]).await;
    let whole = fake_png(120_000, 1);
    let document = server.app.upload(whole.clone()).await;
    let task = task_id(&document);
    let mut client = Http2::new(&server, 20_000).await;
    let held = client.get(&format!("/v1/tasks/{task}"), "wait=2").await.expect("a response");
    assert_eq!(held.status(), StatusCode::OK, "waiting is not idling");
    server.app.write(task).await;
    let path = format!("/images/{}", image_id(&document));
    let mut body = client.get(&path, "").await.expect("a response").into_body();
    let mut read = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.expect("the response is not aborted");
        read.extend_from_slice(&piece);
        // In total longer than the timeout.
        tokio::time::sleep(Duration::from_micros(15 * piece.len() as u64)).await;
        body.flow_control().release_capacity(piece.len()).expect("released");
    }
    assert_eq!(read, whole);
}

/// An HTTP/2 connection with a flow control window of a given size for each response.
pub struct Http2 {
    requests: SendRequest<Bytes>,
    ended: JoinHandle<Result<(), h2::Error>>,
}

impl Http2 {
    pub async fn new(server: &ConnectedApp, window: u32) -> Self {
        let mut builder = h2::client::Builder::new();
        let handshake = builder.initial_window_size(window).handshake(server.connect().await);
        let (requests, connection) = handshake.await.expect("HTTP/2");
        Self { requests, ended: tokio::spawn(connection) }
    }

    pub fn get(&mut self, path: &str, prefer: &str) -> ResponseFuture {
        let request = Request::get(format!("http://localhost{path}")).header("prefer", prefer);
        let request = request.body(()).expect("a request");
        self.requests.send_request(request, true).expect("sent").0
    }
}

/// A request for an original that is larger than all socket buffers, and its size.
async fn large_original(server: &ConnectedApp) -> (String, usize) {
    let whole = fake_png(40_000_000, 1);
    let document = server.app.upload(whole.clone()).await;
    server.app.write(task_id(&document)).await;
    let path = format!("/images/{}", image_id(&document));
    (format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"), whole.len())
}
