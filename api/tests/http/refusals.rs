//! Uploads that are refused while their clients are sending: each client reads a whole response.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    http::Request,
};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    app::{eventually, fake_png},
    server::{ConnectedApp, read_answer},
};

/// Makes a server receive one upload at a time.
pub const BUSY: [(&str, &str); 1] = [("SAFELIGHT_MAX_UPLOADS_IN_FLIGHT", "1")];

const POST: &str = "POST /v1/images HTTP/1.1\r\nHost: localhost\r\n";

/// More than the buffers of a connection hold.
const BYTES: usize = 8_000_000;

/// A server that receives as many uploads as it may: one.
async fn busy() -> (ConnectedApp, TcpStream) {
    let server = ConnectedApp::new(&BUSY).await;
    let mut uploading = server.connect().await;
    let head = format!("{POST}Content-Length: 300000\r\n\r\n");
    uploading.write_all(head.as_bytes()).await.expect("sent");
    uploading.write_all(&fake_png(300_000, 1)[..100_000]).await.expect("sent");
    eventually(async || !server.app.incoming().is_empty()).await;
    (server, uploading)
}

/// Sends a whole upload, and only then reads to the end of the connection.
pub async fn send_all_then_read(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    let head = format!("{POST}Content-Length: {BYTES}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(&vec![b'x'; BYTES]).await.expect("the whole body can be sent");
    let mut answer = String::new();
    let read = timeout(Duration::from_secs(20), stream.read_to_string(&mut answer));
    read.await.expect("in time").expect("the connection ends normally");
    answer
}

#[tokio::test]
async fn every_refused_client_reads_its_response() {
    let (server, _uploading) = busy().await;
    let clients = (0..150).map(async |_| send_all_then_read(server.connect().await).await);
    for answer in futures::future::join_all(clients).await {
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        assert!(answer.contains("\"code\":\"too_many_uploads\""), "{answer}");
    }
}

#[tokio::test]
async fn client_that_is_refused_again_and_again_gets_a_place_that_becomes_free() {
    let (server, mut uploading) = busy().await;
    let upload = async || server.app.send(Request::post("/v1/images"), fake_png(500, 2)).await;
    let uploads = futures::future::join_all((0..500).map(|_| upload()));
    let finish = async {
        // The first hundred are refused at once. By then the others wait.
        tokio::task::yield_now().await;
        uploading.write_all(&fake_png(300_000, 1)[100_000..]).await.expect("sent");
    };
    let (answers, ()) = tokio::join!(uploads, finish);
    let with = |status| answers.iter().filter(|answer| answer.status.as_u16() == status).count();
    assert_eq!(with(202) + with(503), answers.len());
    assert!(with(503) >= 100, "{}", with(503));
    assert!(with(202) > 0);
}

#[tokio::test]
async fn refused_client_that_waits_for_a_response_is_not_asked_for_its_body() {
    let (server, _uploading) = busy().await;
    let mut stream = server.connect().await;
    let head = format!("{POST}Expect: 100-continue\r\nContent-Length: {BYTES}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sent");
    let answer = read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
}

#[tokio::test]
async fn connection_goes_on_after_a_small_body_that_was_not_read() {
    let server = ConnectedApp::new(&[]).await;
    let mut stream = server.connect().await;
    let post = "POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}";
    for _ in 0..2 {
        stream.write_all(post.as_bytes()).await.expect("sent");
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    }
}

#[tokio::test]
async fn every_refused_http2_request_is_answered() {
    let (server, _uploading) = busy().await;
    let io = TokioIo::new(server.connect().await);
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.expect("HTTP/2");
    tokio::spawn(connection);
    let body = Bytes::from(vec![b'x'; BYTES]);
    let requests = (0..90).map(|_| {
        let (mut sender, body) = (sender.clone(), Body::from(body.clone()));
        async move {
            let request = Request::post("http://localhost/v1/images").body(body);
            let answer = sender.send_request(request.expect("a request")).await.expect("answered");
            let status = answer.status().as_u16();
            (status, answer.into_body().collect().await.expect("whole").to_bytes())
        }
    });
    for (status, body) in futures::future::join_all(requests).await {
        assert_eq!(status, 503);
        assert!(body.ends_with(b"}"), "{body:?}");
    }
}

#[tokio::test]
async fn uploads_over_a_rate_or_a_quota_are_answered_without_their_bodies() {
    for (limit, status, code) in [
        (("SAFELIGHT_UPLOADS_PER_MINUTE", "1"), 429, "rate_limited"),
        (("SAFELIGHT_QUOTA_IMAGES", "1"), 403, "over_quota"),
    ] {
        let server = ConnectedApp::new(&[limit]).await;
        let accepted = server.app.upload(fake_png(500, 1)).await;
        assert!(accepted["id"].is_string(), "{accepted}");
        // Only the head is sent.
        let mut stream = server.connect().await;
        let head = format!("{POST}Content-Length: {BYTES}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("sent");
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        let answer = send_all_then_read(server.connect().await).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(answer.contains(code), "{answer}");
    }
}
