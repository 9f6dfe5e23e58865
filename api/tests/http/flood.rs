//! Many clients at once that mean no good.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use crate::{
    app::{eventually, picture},
    server::{Served, read_answer, read_to_end},
};

const ASK: &str = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// What a legitimate client may have to wait.
const SOON: Duration = Duration::from_secs(5);

/// Connects and sends what is no whole head.
async fn half_a_head(served: &Served) -> TcpStream {
    let mut stream = served.connect().await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-").await.expect("sent");
    stream
}

/// Both ends of each connection are files of this process.
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
    let served = Served::new(&[("SAFELIGHT_CLIENT_IDLE_TIMEOUT_MS", "4000")]).await;
    let mut slow = Vec::new();
    for _ in 0..3000 {
        slow.push(half_a_head(&served).await);
    }
    let mut client = served.connect().await;
    client.write_all(ASK.as_bytes()).await.expect("sent");
    let answer = timeout(SOON, read_answer(&mut client)).await.expect("an answer soon");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let head = "POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n";
    client.write_all(head.as_bytes()).await.expect("sent");
    client.write_all(&picture(500, 1)).await.expect("sent");
    let answer = timeout(SOON, read_answer(&mut client)).await.expect("an answer soon");
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    // And they are not left to it: a byte now and then does not make a head.
    for stream in slow.iter_mut().take(100) {
        let _ = stream.write_all(b"a").await;
    }
    for mut stream in slow.into_iter().take(100) {
        read_to_end(&mut stream).await;
    }
}

#[tokio::test]
async fn past_the_bound_on_connections_new_ones_are_closed_and_old_ones_go_on() {
    let served = Served::new(&[("SAFELIGHT_MAX_CONNECTIONS", "20")]).await;
    let mut kept = Vec::new();
    for _ in 0..20 {
        let mut stream = served.connect().await;
        stream.write_all(ASK.as_bytes()).await.expect("sent");
        read_answer(&mut stream).await;
        kept.push(stream);
    }
    for _ in 0..200 {
        let mut stream = served.connect().await;
        // In order, or with a reset if the request was on its way.
        let _ = stream.write_all(ASK.as_bytes()).await;
        let mut answer = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer);
        let _ = timeout(SOON, read).await.expect("closed soon");
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
    let first = &mut kept[0];
    first.write_all(ASK.as_bytes()).await.expect("sent");
    assert!(read_answer(first).await.starts_with("HTTP/1.1 200"));
    // Who leaves makes room.
    drop(kept);
    eventually(async || {
        let mut stream = served.connect().await;
        let _ = stream.write_all(ASK.as_bytes()).await;
        let mut begun = [0; 12];
        let read = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut begun).await;
        read.is_ok() && &begun == b"HTTP/1.1 200"
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
    let served = Served::new(&keys).await;
    let head = "POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n";
    let mut drips = Vec::new();
    for _ in 0..4 {
        let mut stream = served.connect().await;
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(&picture(100, 1)).await.expect("sent");
        drips.push(stream);
    }
    eventually(async || {
        for stream in &mut drips {
            // Until it is broken off.
            let _ = stream.write_all(b"x").await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut stream = served.connect().await;
        let head = head.replace("1000000", "500");
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(&picture(500, 2)).await.expect("sent");
        read_answer(&mut stream).await.starts_with("HTTP/1.1 202")
    })
    .await;
    for mut stream in drips {
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
}
