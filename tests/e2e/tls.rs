//! `safelight serve` with a TLS certificate.

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

/// Writes a new certificate for `localhost` and its key as PEM. Returns the certificate.
fn write_certificate(certificate: &Path, key: &Path) -> Result<reqwest::Certificate> {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()])?;
    fs::write(certificate, cert.pem())?;
    fs::write(key, signing_key.serialize_pem())?;
    Ok(reqwest::Certificate::from_pem(cert.pem().as_bytes())?)
}

/// A client that trusts only this certificate.
fn client_trusting(certificate: reqwest::Certificate) -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder().tls_certs_only([certificate]).build()?)
}

#[tokio::test]
async fn sighup_reloads_certificate() -> Result<()> {
    let folder = TempDir::new()?;
    let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    let old = write_certificate(&certificate, &key)?;
    let mut env = embedded_env(&folder.path().join("data"));
    for (name, path) in [("SAFELIGHT_TLS_CERTIFICATE", &certificate), ("SAFELIGHT_TLS_KEY", &key)] {
        env.push((name.to_owned(), path.to_string_lossy().into_owned()));
    }
    let command = safelight(binary(), ["serve"], &env);
    let mut server = tokio::task::spawn_blocking(move || Server::start(command)).await??;
    ensure!(server.url().starts_with("https://"), "{}", server.url());
    let url = server.url().replace("127.0.0.1", "localhost") + "/livez";
    // Creating a client installs the TLS provider.
    Client::new(&url)?;
    let answer = client_trusting(old.clone())?.get(&url).send().await?;
    ensure!(answer.version() == reqwest::Version::HTTP_2, "{:?}", answer.version());
    ensure!(answer.headers()["strict-transport-security"] == "max-age=31536000");

    let new = write_certificate(&certificate, &key)?;
    server.signal("HUP")?;
    let server = tokio::task::spawn_blocking(move || {
        server.wait_for_output("new connections get the new certificate", LIMIT).map(|()| server)
    })
    .await??;
    client_trusting(new)?.get(&url).send().await?;
    ensure!(
        client_trusting(old)?.get(&url).send().await.is_err(),
        "the old certificate is still served"
    );
    drop(server);
    Ok(())
}
