//! Many concurrent malicious clients.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    app::{eventually, fake_png},
    server::{ConnectedApp, read_answer, read_to_end},
};

const GET_LIVEZ: &str = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// What a legitimate client may have to wait.
const SOON: Duration = Duration::from_secs(5);

/// Connects and sends an incomplete request head.
async fn send_incomplete_head(server: &ConnectedApp) -> TcpStream {
    let mut stream = server.connect().await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-").await.expect("sent");
    stream
}

/// Both ends of each connection count as open files of this process.
fn allow_open_files(wanted: u64) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
            .expect("so many open files are allowed");
    }
}

#[tokio::test]
async fn thousands_of_slow_heads_block_no_other_client() {
    allow_open_files(12_000);
    let server = ConnectedApp::new(&[("SAFELIGHT_CLIENT_IDLE_TIMEOUT_MS", "4000")]).await;
    let mut slow = Vec::new();
    for _ in 0..3000 {
        slow.push(send_incomplete_head(&server).await);
    }
    let mut client = server.connect().await;
    client.write_all(GET_LIVEZ.as_bytes()).await.expect("sent");
    let answer = timeout(SOON, read_answer(&mut client)).await.expect("a response soon");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let head = "POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n";
    client.write_all(head.as_bytes()).await.expect("sent");
    client.write_all(&fake_png(500, 1)).await.expect("sent");
    let answer = timeout(SOON, read_answer(&mut client)).await.expect("a response soon");
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    // The slow clients are disconnected: an occasional byte does not keep a connection open.
    for stream in slow.iter_mut().take(100) {
        let _ = stream.write_all(b"a").await;
    }
    for mut stream in slow.into_iter().take(100) {
        read_to_end(&mut stream).await;
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_open_ones_continue() {
    let server = ConnectedApp::new(&[("SAFELIGHT_MAX_CONNECTIONS", "20")]).await;
    let mut kept = Vec::new();
    for _ in 0..20 {
        let mut stream = server.connect().await;
        let head = "POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\
                    Expect: 100-continue\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("sent");
        let mut goes_on = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
        stream.read_exact(&mut goes_on).await.expect("it is served");
        kept.push(stream);
    }
    for _ in 0..200 {
        let mut stream = server.connect().await;
        // Closed normally, or reset if the request was already sent.
        let _ = stream.write_all(GET_LIVEZ.as_bytes()).await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let _ = timeout(SOON, read).await.expect("closed soon");
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
    let first = &mut kept[0];
    first.write_all(&fake_png(500, 1)).await.expect("sent");
    assert!(read_answer(first).await.starts_with("HTTP/1.1 202"));
    // A closed connection frees its place.
    drop(kept);
    eventually(async || {
        let mut stream = server.connect().await;
        let _ = stream.write_all(GET_LIVEZ.as_bytes()).await;
        let mut start = [0; 12];
        let read = stream.read_exact(&mut start).await;
        read.is_ok() && &start == b"HTTP/1.1 200"
    })
    .await;
}

#[tokio::test]
async fn slow_uploads_lose_their_permits() {
    let keys = [
        ("SAFELIGHT_MAX_UPLOADS_IN_FLIGHT", "4"),
        ("SAFELIGHT_UPLOAD_IDLE_TIMEOUT_MS", "1000"),
        ("SAFELIGHT_UPLOAD_MIN_BYTES_PER_SECOND", "10000"),
    ];
    let server = ConnectedApp::new(&keys).await;
    let head = "POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n";
    let mut drips = Vec::new();
    for _ in 0..4 {
        let mut stream = server.connect().await;
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(&fake_png(100, 1)).await.expect("sent");
        drips.push(stream);
    }
    eventually(async || {
        for stream in &mut drips {
            // Fails once the server has closed the connection.
            let _ = stream.write_all(b"x").await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut stream = server.connect().await;
        let head = head.replace("1000000", "500");
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(&fake_png(500, 2)).await.expect("sent");
        read_answer(&mut stream).await.starts_with("HTTP/1.1 202")
    })
    .await;
    for mut stream in drips {
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
}

#[tokio::test]
async fn connections_that_wait_for_their_clients_give_way() {
    let server = ConnectedApp::new(&[("SAFELIGHT_MAX_CONNECTIONS", "20")]).await;
    let mut waiting = Vec::new();
    for number in 0..20 {
        let mut stream = server.connect().await;
        // Half of them have never sent a request.
        if number % 2 == 0 {
            stream.write_all(GET_LIVEZ.as_bytes()).await.expect("sent");
            read_answer(&mut stream).await;
        }
        waiting.push(stream);
    }
    for _ in 0..40 {
        let mut stream = server.connect().await;
        stream.write_all(GET_LIVEZ.as_bytes()).await.expect("sent");
        assert!(read_answer(&mut stream).await.starts_with("HTTP/1.1 200"));
        waiting.push(stream);
    }
    let mut start = [0; 1];
    let read = timeout(SOON, waiting[0].read(&mut start)).await.expect("closed");
    assert!(read.map_or(true, |count| count == 0), "the one that has waited for the longest time");
}
