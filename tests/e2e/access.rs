//! Keys as operators make them, and what becomes of requests on every node.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::StatusCode;
use safelight_testing::{
    client::Client,
    fleet::{Fleet, Plan},
    pictures,
    redis::Redis,
    server::{Finished, Server, run, safelight},
};
use serde_json::Value;
use tempfile::TempDir;

use super::{binary, embedded_env, fleet};

const LIMIT: Duration = Duration::from_mins(1);

/// Longer than a stream outlives its key, on a busy machine, and shorter than anything else would end it.
const SOON: Duration = Duration::from_secs(10);

/// Runs `safelight` with this configuration to its end.
async fn command(args: &[&str], env: &[(String, String)]) -> Result<Finished> {
    let command = safelight(binary(), args, env);
    tokio::task::spawn_blocking(move || run(command, LIMIT)).await?
}

/// Makes a key; what `--json` prints of it.
pub async fn key(env: &[(String, String)], owner: &str, scopes: &str) -> Result<Value> {
    let args = ["keys", "create", "--owner", owner, "--scopes", scopes, "--json"];
    made(&command(&args, env).await?)
}

fn made(ended: &Finished) -> Result<Value> {
    ensure!(ended.code == Some(0), "{ended:?}");
    Ok(serde_json::from_str(&ended.stdout)?)
}

/// Makes a key of a fleet; what `--json` prints of it.
pub async fn fleets_key(fleet: &Fleet, owner: &str, scopes: &str) -> Result<Value> {
    let args = ["keys", "create", "--owner", owner, "--scopes", scopes, "--json"];
    let command = fleet.command(&args);
    made(&tokio::task::spawn_blocking(move || run(command, LIMIT)).await??)
}

/// The secret of a key that was made.
pub fn secret(key: &Value) -> Result<&str> {
    key["secret"].as_str().context("no secret")
}

async fn list(url: &str, secret: &str) -> Result<StatusCode> {
    Ok(Client::with_key(url, secret)?.get("/v1/images").await?.status())
}

#[tokio::test]
async fn a_server_on_a_public_address_requires_a_key() -> Result<()> {
    let data = TempDir::new()?;
    let mut env = embedded_env(data.path());
    env.push(("SAFELIGHT_LISTEN".to_owned(), "0.0.0.0:0".to_owned()));
    let refused = command(&["serve"], &env).await?;
    ensure!(refused.code == Some(2), "{refused:?}");
    ensure!(refused.stderr.contains("hint: make one with `safelight keys create"), "{refused:?}");

    let key = key(&env, "ada", "upload,read").await?;
    let mut members: Vec<_> = key.as_object().context("no object")?.keys().collect();
    members.sort();
    ensure!(members == ["id", "prefix", "secret"], "{key}");
    ensure!(secret(&key)?.starts_with(key["prefix"].as_str().context("no prefix")?));
    let serve = safelight(binary(), ["serve"], &env);
    let server = tokio::task::spawn_blocking(move || Server::start(serve)).await??;
    let url = server.url().replace("0.0.0.0", "127.0.0.1");
    ensure!(Client::new(&url)?.get("/v1/images").await?.status() == StatusCode::UNAUTHORIZED);
    ensure!(list(&url, secret(&key)?).await? == StatusCode::OK);

    let listed = command(&["keys", "list", "--json"], &env).await?.success()?;
    ensure!(!listed.stdout.contains(&secret(&key)?[14..]), "the secret is shown again");
    ensure!(!server.output().contains(&secret(&key)?[14..]), "the secret is in the log");
    let prefix = key["prefix"].as_str().context("no prefix")?;
    command(&["keys", "revoke", prefix], &env).await?.success()?;
    ensure!(list(&url, secret(&key)?).await? == StatusCode::UNAUTHORIZED);
    let unknown = command(&["keys", "revoke", "sl_nobody"], &env).await?;
    ensure!(unknown.code == Some(1), "{unknown:?}");
    let senseless =
        command(&["keys", "create", "--owner", "a b", "--scopes", "read"], &env).await?;
    ensure!(senseless.code == Some(2), "{senseless:?}");
    for expires in ["1ms", "0s", "101y", "100y 1s"] {
        let create = ["keys", "create", "--owner", "ada", "--scopes", "read", "--expires", expires];
        let refused = command(&create, &env).await?;
        ensure!(refused.code == Some(2), "{refused:?}");
        ensure!(refused.stderr.contains("valid for 1s to 100y"), "{refused:?}");
    }
    Ok(())
}

#[tokio::test]
async fn commands_use_the_key_of_the_environment() -> Result<()> {
    let data = TempDir::new()?;
    let env = embedded_env(data.path());
    let key = key(&env, "ada", "upload,read").await?;
    let serve = safelight(binary(), ["serve"], &env);
    let server = tokio::task::spawn_blocking(move || Server::start(serve)).await??;
    let picture = data.path().join("a.jpg");
    std::fs::write(&picture, pictures::jpeg(64, 48, 1)?)?;
    let mut env = vec![("SAFELIGHT_URL".to_owned(), server.url().to_owned())];
    let upload = ["upload", picture.to_str().context("a path")?, "--wait"];
    let refused = command(&upload, &env).await?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("401"), "{refused:?}");
    env.push(("SAFELIGHT_KEY".to_owned(), secret(&key)?.to_owned()));
    command(&upload, &env).await?.success()?;
    let tasks = command(&["tasks", "list", "--json"], &env).await?.success()?;
    let task: Value = serde_json::from_str(tasks.stdout.trim())?;
    ensure!(task["owner"] == "ada" && task["image"]["owner"] == "ada", "{task}");
    let workers = command(&["workers"], &env).await?;
    ensure!(workers.code == Some(1) && workers.stderr.contains("403"), "{workers:?}");
    Ok(())
}

#[tokio::test]
async fn a_revoked_key_is_refused_by_every_node() -> Result<()> {
    let fleet = fleet(Plan { workers: 0, ..Plan::default() }).await?;
    let admin = fleets_key(&fleet, "ops", "admin").await?;
    let ada = fleets_key(&fleet, "ada", "upload,read").await?;
    let task = Client::with_key(fleet.apis[0].url(), secret(&ada)?)?
        .upload(pictures::jpeg(64, 48, 1)?)
        .await?;
    // Nobody works on it, so no stream of it ends by itself.
    let events = format!("/v1/tasks/{}/events", task["id"].as_str().context("no id")?);
    let mut streams = Vec::new();
    for node in &fleet.apis {
        ensure!(list(node.url(), secret(&ada)?).await? == StatusCode::OK);
        let stream = Client::with_key(node.url(), secret(&ada)?)?.get(&events).await?;
        ensure!(stream.status() == StatusCode::OK);
        streams.push(stream);
    }
    let id = ada["id"].as_str().context("no id")?;
    Client::with_key(fleet.apis[0].url(), secret(&admin)?)?.revoke_key(id).await?;
    for node in &fleet.apis {
        ensure!(list(node.url(), secret(&ada)?).await? == StatusCode::UNAUTHORIZED);
    }
    for stream in streams {
        tokio::time::timeout(SOON, stream.bytes()).await.context("it goes on")??;
    }
    Ok(())
}

#[tokio::test]
async fn rates_hold_over_all_nodes() -> Result<()> {
    let redis = tokio::task::spawn_blocking(Redis::start).await??;
    let env = vec![
        ("SAFELIGHT_SHARED_CACHE_URL".to_owned(), redis.url()),
        ("SAFELIGHT_REQUESTS_PER_MINUTE".to_owned(), "10".to_owned()),
    ];
    let fleet = fleet(Plan { env, ..Plan::default() }).await?;
    let ada = fleets_key(&fleet, "ada", "read").await?;
    let mut answers = Vec::new();
    for at in 0..12 {
        answers.push(list(fleet.apis[at % 2].url(), secret(&ada)?).await?);
    }
    let allowed = answers.iter().filter(|status| **status == StatusCode::OK).count();
    // One comes back each six seconds, should this take that long.
    ensure!((10..12).contains(&allowed), "{answers:?}");
    ensure!(answers.contains(&StatusCode::TOO_MANY_REQUESTS), "{answers:?}");
    Ok(())
}
