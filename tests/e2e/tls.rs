//! `safelight serve` with a certificate of its own.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use safelight_testing::{
    client::Client,
    server::{Server, safelight},
};
use tempfile::TempDir;

use super::{binary, embedded_env};
use safelight_testing::wait::LIMIT;

/// Writes a certificate for `localhost` and its key as PEM; gives the certificate.
fn renew(certificate: &Path, key: &Path) -> Result<reqwest::Certificate> {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()])?;
    fs::write(certificate, cert.pem())?;
    fs::write(key, signing_key.serialize_pem())?;
    Ok(reqwest::Certificate::from_pem(cert.pem().as_bytes())?)
}

/// A client that trusts one certificate alone.
fn trusting(certificate: reqwest::Certificate) -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder().tls_certs_only([certificate]).build()?)
}

#[tokio::test]
async fn a_certificate_is_served_and_exchanged_on_a_signal() -> Result<()> {
    let folder = TempDir::new()?;
    let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    let old = renew(&certificate, &key)?;
    let mut env = embedded_env(&folder.path().join("data"));
    for (name, path) in [("SAFELIGHT_TLS_CERTIFICATE", &certificate), ("SAFELIGHT_TLS_KEY", &key)] {
        env.push((name.to_owned(), path.to_string_lossy().into_owned()));
    }
    let command = safelight(binary(), ["serve"], &env);
    let mut server = tokio::task::spawn_blocking(move || Server::start(command)).await??;
    ensure!(server.url().starts_with("https://"), "{}", server.url());
    let url = server.url().replace("127.0.0.1", "localhost") + "/livez";
    // Installs the TLS provider that clients here use.
    Client::new(&url)?;
    let answer = trusting(old.clone())?.get(&url).send().await?;
    ensure!(answer.version() == reqwest::Version::HTTP_2, "{:?}", answer.version());
    ensure!(answer.headers()["strict-transport-security"] == "max-age=31536000");

    let new = renew(&certificate, &key)?;
    server.signal("HUP")?;
    let server = tokio::task::spawn_blocking(move || {
        server.wait_for_output("new connections get the new certificate", LIMIT).map(|()| server)
    })
    .await??;
    trusting(new)?.get(&url).send().await?;
    ensure!(trusting(old)?.get(&url).send().await.is_err(), "the old one is still served");
    drop(server);
    Ok(())
}
