//! TLS: both HTTP versions, rejected clients, and the exchange of the certificate.

use std::{path::PathBuf, sync::Arc};

use axum::{
    body::{Body, Bytes},
    http::Request,
};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
    version::{TLS12, TLS13},
};
use safelight_api::{Tls, TlsError};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    app::{eventually, fake_png},
    refusals,
    server::{ConnectedApp, read_answer, read_to_end},
};

/// A certificate for `localhost` and its key in files.
struct CertificateFiles {
    folder: tempfile::TempDir,
}

impl CertificateFiles {
    fn new() -> Self {
        let files = Self { folder: tempfile::tempdir().expect("a folder") };
        files.renew();
        files
    }

    /// Writes a new certificate with its key, and returns it.
    fn renew(&self) -> CertificateDer<'static> {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        std::fs::write(self.certificate(), cert.pem()).expect("written");
        std::fs::write(self.key(), signing_key.serialize_pem()).expect("written");
        cert.der().clone()
    }

    fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    fn trusted(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.certificate()).expect("a certificate")
    }

    fn load(&self) -> Result<Tls, TlsError> {
        Tls::load(&self.certificate(), &self.key())
    }
}

/// Connects as a client that trusts one certificate and speaks `protocols`.
async fn connect(
    server: &ConnectedApp,
    trusted: CertificateDer<'static>,
    protocols: &[&[u8]],
    versions: &[&'static SupportedProtocolVersion],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, server.connect().await).await
}

const GET_LIVEZ: &str = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[tokio::test]
async fn http1_works_over_tls_1_2_and_1_3() {
    let files = CertificateFiles::new();
    let server = ConnectedApp::with_tls(&[], Some(files.load().expect("usable"))).await;
    for (versions, protocols) in [
        ([&TLS12], &[b"http/1.1".as_slice()][..]),
        ([&TLS13], &[b"http/1.1"]),
        // Old clients offer no protocol.
        ([&TLS13], &[]),
    ] {
        let mut stream =
            connect(&server, files.trusted(), protocols, &versions).await.expect("a TLS handshake");
        stream.write_all(GET_LIVEZ.as_bytes()).await.expect("sent");
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let head = "POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(&fake_png(300_000, 1)).await.expect("sent");
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    }
}

#[tokio::test]
async fn http2_works_over_tls() {
    let files = CertificateFiles::new();
    let server = ConnectedApp::with_tls(&[], Some(files.load().expect("usable"))).await;
    let stream = connect(&server, files.trusted(), &[b"h2", b"http/1.1"], &[&TLS13])
        .await
        .expect("a TLS handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::post("https://localhost/v1/images")
        .body(Body::from(fake_png(300_000, 1)))
        .expect("a request");
    let answer = sender.send_request(request).await.expect("a response");
    assert_eq!(answer.status(), 202);
    assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
    let body: Bytes = answer.into_body().collect().await.expect("a body").to_bytes();
    assert!(body.starts_with(b"{"));
}

#[tokio::test]
async fn refused_upload_over_tls_is_answered() {
    let files = CertificateFiles::new();
    let server = ConnectedApp::with_tls(&refusals::BUSY, Some(files.load().expect("usable"))).await;
    let trusted = files.trusted();
    let head = "POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300000\r\n\r\n";
    let mut uploading =
        connect(&server, trusted.clone(), &[], &[&TLS13]).await.expect("a TLS handshake");
    uploading.write_all(head.as_bytes()).await.expect("sent");
    uploading.write_all(&fake_png(300_000, 1)[..100_000]).await.expect("sent");
    eventually(async || !server.app.incoming().is_empty()).await;
    for _ in 0..3 {
        let stream =
            connect(&server, trusted.clone(), &[], &[&TLS13]).await.expect("a TLS handshake");
        let answer = refusals::send_all_then_read(stream).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.ends_with('}'), "{answer}");
    }
}

#[tokio::test]
async fn clients_without_a_tls_handshake_are_disconnected() {
    let files = CertificateFiles::new();
    let keys = [("SAFELIGHT_CLIENT_IDLE_TIMEOUT_MS", "300")];
    let server = ConnectedApp::with_tls(&keys, Some(files.load().expect("usable"))).await;
    let mut plain = server.connect().await;
    plain.write_all(GET_LIVEZ.as_bytes()).await.expect("sent");
    let answer = read_to_end(&mut plain).await;
    assert!(!answer.contains("HTTP/1.1"), "{answer}");
    // One never starts the handshake, one sends nothing after it.
    read_to_end(&mut server.connect().await).await;
    let mut silent = connect(&server, files.trusted(), &[b"http/1.1"], &[&TLS13])
        .await
        .expect("a TLS handshake");
    let answer = read_until_closed(&mut silent).await;
    assert_eq!(answer, "");
}

/// Reads until the connection ends, normally or with an error.
async fn read_until_closed(stream: &mut TlsStream<TcpStream>) -> String {
    let mut answer = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(stream, &mut answer);
    let _ = tokio::time::timeout(std::time::Duration::from_secs(20), read).await.expect("in time");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn new_certificate_is_served_and_a_broken_one_is_not() {
    let files = CertificateFiles::new();
    let tls = files.load().expect("usable");
    let server = ConnectedApp::with_tls(&[], Some(tls.clone())).await;
    let old = files.trusted();
    let connects = async |trusted: &CertificateDer<'static>| {
        connect(&server, trusted.clone(), &[], &[&TLS13]).await.is_ok()
    };
    assert!(!tls.reload().expect("unchanged"));
    assert!(connects(&old).await);
    // Half of the exchange is done: the certificate is new, the key is old.
    let key = std::fs::read(files.key()).expect("a key");
    let new = files.renew();
    let new_key = std::fs::read(files.key()).expect("a key");
    std::fs::write(files.key(), key).expect("written");
    assert!(matches!(tls.reload(), Err(TlsError::Mismatch { .. })));
    assert!(connects(&old).await);
    std::fs::write(files.key(), new_key).expect("written");
    assert!(tls.reload().expect("usable"));
    assert!(connects(&new).await);
    assert!(!connects(&old).await);
}

#[test]
fn certificate_errors_name_the_file() {
    let files = CertificateFiles::new();
    let error_of =
        |files: &CertificateFiles| files.load().map(|_| ()).expect_err("unusable").to_string();
    std::fs::write(files.key(), "no key").expect("written");
    assert!(error_of(&files).ends_with("key.pem holds no private key in PEM"));
    files.renew();
    std::fs::write(files.certificate(), "").expect("written");
    assert!(error_of(&files).ends_with("certificate.pem holds no certificate in PEM"));
    files.renew();
    std::fs::remove_file(files.key()).expect("removed");
    let missing = error_of(&files);
    assert!(missing.contains("key.pem: No such file"), "{missing}");
}
