//! TLS: both protocols, what is refused, and a certificate that is exchanged.

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
    app::picture,
    server::{Served, read_answer, read_to_end},
};

/// A certificate for `localhost` and its key, in files.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self { folder: tempfile::tempdir().expect("a folder") };
        files.renew();
        files
    }

    /// Writes a new certificate with its key, and gives it.
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
    served: &Served,
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
    TlsConnector::from(Arc::new(config)).connect(name, served.connect().await).await
}

const ASK: &str = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[tokio::test]
async fn http1_is_spoken_over_tls_1_2_and_1_3() {
    let files = Files::new();
    let served = Served::with_tls(&[], Some(files.load().expect("usable"))).await;
    for (versions, protocols) in [
        ([&TLS12], &[b"http/1.1".as_slice()][..]),
        ([&TLS13], &[b"http/1.1"]),
        // Old clients name no protocol at all.
        ([&TLS13], &[]),
    ] {
        let mut stream =
            connect(&served, files.trusted(), protocols, &versions).await.expect("shaken hands");
        stream.write_all(ASK.as_bytes()).await.expect("sent");
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let head = "POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(&picture(300_000, 1)).await.expect("sent");
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    }
}

#[tokio::test]
async fn http2_is_spoken_over_tls() {
    let files = Files::new();
    let served = Served::with_tls(&[], Some(files.load().expect("usable"))).await;
    let stream = connect(&served, files.trusted(), &[b"h2", b"http/1.1"], &[&TLS13])
        .await
        .expect("shaken hands");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::post("https://localhost/v1/images")
        .body(Body::from(picture(300_000, 1)))
        .expect("a request");
    let answer = sender.send_request(request).await.expect("an answer");
    assert_eq!(answer.status(), 202);
    assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
    let body: Bytes = answer.into_body().collect().await.expect("a body").to_bytes();
    assert!(body.starts_with(b"{"));
}

#[tokio::test]
async fn clients_without_a_tls_handshake_are_disconnected() {
    let files = Files::new();
    let keys = [("SAFELIGHT_CLIENT_IDLE_TIMEOUT_MS", "300")];
    let served = Served::with_tls(&keys, Some(files.load().expect("usable"))).await;
    let mut plain = served.connect().await;
    plain.write_all(ASK.as_bytes()).await.expect("sent");
    let answer = read_to_end(&mut plain).await;
    assert!(!answer.contains("HTTP/1.1"), "{answer}");
    // One never begins the handshake; one says nothing after it.
    read_to_end(&mut served.connect().await).await;
    let mut silent =
        connect(&served, files.trusted(), &[b"http/1.1"], &[&TLS13]).await.expect("shaken hands");
    let answer = read_answer_or_end(&mut silent).await;
    assert_eq!(answer, "");
}

/// What comes until the end, however it comes.
async fn read_answer_or_end(stream: &mut TlsStream<TcpStream>) -> String {
    let mut answer = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(stream, &mut answer);
    let _ = tokio::time::timeout(std::time::Duration::from_secs(20), read).await.expect("in time");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_new_certificate_is_served_and_a_broken_one_is_not() {
    let files = Files::new();
    let tls = files.load().expect("usable");
    let served = Served::with_tls(&[], Some(tls.clone())).await;
    let old = files.trusted();
    let speaks = async |trusted: &CertificateDer<'static>| {
        connect(&served, trusted.clone(), &[], &[&TLS13]).await.is_ok()
    };
    assert!(!tls.reload().expect("unchanged"));
    assert!(speaks(&old).await);
    // Half of an exchange: the new certificate, and still the old key.
    let key = std::fs::read(files.key()).expect("a key");
    let new = files.renew();
    let new_key = std::fs::read(files.key()).expect("a key");
    std::fs::write(files.key(), key).expect("written");
    assert!(matches!(tls.reload(), Err(TlsError::Mismatch { .. })));
    assert!(speaks(&old).await);
    std::fs::write(files.key(), new_key).expect("written");
    assert!(tls.reload().expect("usable"));
    assert!(speaks(&new).await);
    assert!(!speaks(&old).await);
}

#[test]
fn unusable_certificates_are_named() {
    let files = Files::new();
    let said = |files: &Files| files.load().map(|_| ()).expect_err("unusable").to_string();
    std::fs::write(files.key(), "no key").expect("written");
    assert!(said(&files).ends_with("key.pem holds no private key in PEM"));
    files.renew();
    std::fs::write(files.certificate(), "").expect("written");
    assert!(said(&files).ends_with("certificate.pem holds no certificate in PEM"));
    files.renew();
    std::fs::remove_file(files.key()).expect("removed");
    let missing = said(&files);
    assert!(missing.contains("key.pem: No such file"), "{missing}");
}
