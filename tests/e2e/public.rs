//! The public deployment of `docs/deploy.md`: HAProxy and Safelight with the files of `deploy/`.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use reqwest::{Response, StatusCode, redirect};
use safelight_testing::{
    client::Client,
    haproxy::{HaProxy, PublicHaProxy},
    pictures,
    server::{Server, safelight},
};
use serde_json::Value;
use tempfile::TempDir;

use super::{binary, embedded_env};

/// Paths that the proxy must not forward.
const CLOSED: [&str; 12] = [
    "/",
    "/metrics",
    "/metrics/",
    "//metrics",
    "/%6detrics",
    "/livez",
    "/readyz",
    "/v1/workers",
    "/v1/queues",
    "/v1/keys",
    "/v1/audit",
    "/images/../metrics",
];

#[tokio::test]
async fn public_proxy_exposes_only_the_client_api() -> Result<()> {
    let folder = TempDir::new()?;
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/safelight.toml");
    let mut env = embedded_env(folder.path());
    env.push(("SAFELIGHT_CONFIG".to_owned(), shipped.to_string_lossy().into_owned()));
    let key = super::access::create_key(&env, "shop", "upload,read,admin").await?;
    let key = key["secret"].as_str().unwrap_or_default().to_owned();
    let command = safelight(binary(), ["serve"], &env);
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()])?;
    let identity = folder.path().join("safelight.pem");
    fs::write(&identity, cert.pem() + &signing_key.serialize_pem())?;
    let (mut server, proxy) = tokio::task::spawn_blocking(move || {
        let server = Server::start(command)?;
        let proxy = PublicHaProxy::start(server.url(), &identity)?;
        anyhow::Ok((server, proxy))
    })
    .await??;
    // Installs the TLS provider that clients here use.
    Client::new(server.url())?;
    let client = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(cert.pem().as_bytes())?])
        .redirect(redirect::Policy::none())
        .build()?;

    for host in [None, Some("evil.example"), Some("evil.example:80")] {
        let mut request = client.get(proxy.plain_url() + "/v1/images");
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let answer = request.send().await?;
        ensure!(answer.status() == StatusCode::PERMANENT_REDIRECT, "{answer:?}");
        ensure!(answer.headers()["location"] == proxy.url() + "/v1/images", "{answer:?}");
        ensure!(answer.headers()["cache-control"] == "no-store", "{answer:?}");
    }

    let picture = pictures::jpeg(64, 48, 1)?;
    let url = proxy.url();
    let upload = || client.post(format!("{url}/v1/images")).header("prefer", "wait=60");
    let answer = upload().body(picture.clone()).send().await?;
    ensure!(answer.status() == StatusCode::UNAUTHORIZED, "{answer:?}");
    let answer = upload().bearer_auth(&key).body(picture).send().await?;
    ensure!(answer.status() == StatusCode::ACCEPTED, "{answer:?}");
    ensure!(answer.headers()["strict-transport-security"] == "max-age=31536000");
    let task: Value = answer.json().await?;
    ensure!(task["status"] == "succeeded", "{task}");
    let image = task["image"]["url"].as_str().unwrap_or_default();
    for path in [image, "/v1/images", "/docs/", "/openapi.json"] {
        let request = client.get(format!("{url}{path}"));
        let keyed = path.starts_with("/v1/");
        let request = if keyed { request.bearer_auth(&key) } else { request };
        let answer = request.send().await?;
        ensure!(answer.status() == StatusCode::OK, "{path}: {answer:?}");
    }
    for path in CLOSED {
        let answer = client.get(format!("{url}{path}")).send().await?;
        ensure!(answer.status() == StatusCode::NOT_FOUND, "{path}: {answer:?}");
        assert_complete(&answer)?;
        let problem: Value = answer.json().await?;
        ensure!(problem["code"] == "not_found" && problem["retryable"] == false, "{problem}");
    }
    // Imports may read only the folder in the configuration.
    let import = serde_json::json!({ "kind": "import", "source": "/etc" });
    let answer =
        client.post(format!("{url}/v1/backfills")).bearer_auth(&key).json(&import).send().await?;
    ensure!(answer.status() == StatusCode::FORBIDDEN, "{answer:?}");

    tokio::task::spawn_blocking(move || server.kill()).await??;
    let answer = client.get(format!("{url}/v1/images")).bearer_auth(&key).send().await?;
    ensure!(answer.status() == StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
    ensure!(answer.headers()["retry-after"] == "2", "{answer:?}");
    assert_complete(&answer)?;
    let problem: Value = answer.json().await?;
    ensure!(problem["code"] == "not_ready" && problem["retryable"] == true, "{problem}");
    Ok(())
}

/// An answer of HAProxy itself is like one of a node.
fn assert_complete(answer: &Response) -> Result<()> {
    for (name, value) in [
        ("content-type", "application/problem+json"),
        ("cache-control", "no-store"),
        ("strict-transport-security", "max-age=31536000"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("content-security-policy", "default-src 'none'; frame-ancestors 'none'; sandbox"),
    ] {
        let found = answer.headers().get_all(name).iter().collect::<Vec<_>>();
        ensure!(found == [value], "{name}: {answer:?}");
    }
    Ok(())
}

/// A node without keys serves its own machine alone, and takes no request through the load balancer for one of
/// that.
#[tokio::test]
async fn balancer_opens_no_node_without_keys() -> Result<()> {
    let folder = TempDir::new()?;
    let command = safelight(binary(), ["serve"], &embedded_env(folder.path()));
    let (server, proxy) = tokio::task::spawn_blocking(move || {
        let server = Server::start(command)?;
        let proxy = HaProxy::start_as_shipped(&[server.url()])?;
        anyhow::Ok((server, proxy))
    })
    .await??;
    let (node, client) = (Client::new(server.url())?, Client::new(&proxy.url())?);
    for path in ["/v1/images", "/v1/queues", "/v1/limits", "/metrics"] {
        ensure!(node.get(path).await?.status() == StatusCode::OK, "{path}");
        ensure!(client.get(path).await?.status() == StatusCode::UNAUTHORIZED, "{path}");
    }
    Ok(())
}
