//! Key management by operators, and access control on every node.

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

/// Longer than a stream stays open after its key is revoked, and shorter than any other reason for it to end.
const STREAM_END_LIMIT: Duration = Duration::from_secs(10);

/// Runs `safelight` and waits until it exits.
async fn run_command(args: &[&str], env: &[(String, String)]) -> Result<Finished> {
    let command = safelight(binary(), args, env);
    tokio::task::spawn_blocking(move || run(command, LIMIT)).await?
}

/// Creates a key. Returns the output of `--json`.
pub async fn create_key(env: &[(String, String)], owner: &str, scopes: &str) -> Result<Value> {
    let args = ["keys", "create", "--owner", owner, "--scopes", scopes, "--json"];
    parse_key(&run_command(&args, env).await?)
}

fn parse_key(ended: &Finished) -> Result<Value> {
    ensure!(ended.code == Some(0), "{ended:?}");
    Ok(serde_json::from_str(&ended.stdout)?)
}

/// Creates a key of a fleet. Returns the output of `--json`.
pub async fn create_fleet_key(fleet: &Fleet, owner: &str, scopes: &str) -> Result<Value> {
    let args = ["keys", "create", "--owner", owner, "--scopes", scopes, "--json"];
    let command = fleet.command(&args);
    parse_key(&tokio::task::spawn_blocking(move || run(command, LIMIT)).await??)
}

pub fn secret(key: &Value) -> Result<&str> {
    key["secret"].as_str().context("no secret")
}

async fn list_status(url: &str, secret: &str) -> Result<StatusCode> {
    Ok(Client::with_key(url, secret)?.get("/v1/images").await?.status())
}

#[tokio::test]
async fn server_on_public_address_requires_a_key() -> Result<()> {
    let data = TempDir::new()?;
    let mut env = embedded_env(data.path());
    env.push(("SAFELIGHT_LISTEN".to_owned(), "0.0.0.0:0".to_owned()));
    let rejected = run_command(&["serve"], &env).await?;
    ensure!(rejected.code == Some(2), "{rejected:?}");
    ensure!(rejected.stderr.contains("hint: make one with `safelight keys create"), "{rejected:?}");

    let key = create_key(&env, "ada", "upload,read").await?;
    let mut members: Vec<_> = key.as_object().context("no object")?.keys().collect();
    members.sort();
    ensure!(members == ["id", "prefix", "secret"], "{key}");
    ensure!(secret(&key)?.starts_with(key["prefix"].as_str().context("no prefix")?));
    let serve = safelight(binary(), ["serve"], &env);
    let server = tokio::task::spawn_blocking(move || Server::start(serve)).await??;
    let url = server.url().replace("0.0.0.0", "127.0.0.1");
    ensure!(Client::new(&url)?.get("/v1/images").await?.status() == StatusCode::UNAUTHORIZED);
    ensure!(list_status(&url, secret(&key)?).await? == StatusCode::OK);

    let listed = run_command(&["keys", "list", "--json"], &env).await?.success()?;
    ensure!(!listed.stdout.contains(&secret(&key)?[14..]), "the list shows the secret");
    ensure!(!server.output().contains(&secret(&key)?[14..]), "the secret is in the log");
    let prefix = key["prefix"].as_str().context("no prefix")?;
    run_command(&["keys", "revoke", prefix], &env).await?.success()?;
    ensure!(list_status(&url, secret(&key)?).await? == StatusCode::UNAUTHORIZED);
    let unknown = run_command(&["keys", "revoke", "sl_nobody"], &env).await?;
    ensure!(unknown.code == Some(1), "{unknown:?}");
    let invalid =
        run_command(&["keys", "create", "--owner", "a b", "--scopes", "read"], &env).await?;
    ensure!(invalid.code == Some(2), "{invalid:?}");
    for expires in ["1ms", "0s", "101y", "100y 1s"] {
        let create = ["keys", "create", "--owner", "ada", "--scopes", "read", "--expires", expires];
        let rejected = run_command(&create, &env).await?;
        ensure!(rejected.code == Some(2), "{rejected:?}");
        ensure!(rejected.stderr.contains("valid for 1s to 100y"), "{rejected:?}");
    }
    Ok(())
}

#[tokio::test]
async fn commands_use_key_from_environment() -> Result<()> {
    let data = TempDir::new()?;
    let env = embedded_env(data.path());
    let key = create_key(&env, "ada", "upload,read").await?;
    let serve = safelight(binary(), ["serve"], &env);
    let server = tokio::task::spawn_blocking(move || Server::start(serve)).await??;
    let picture = data.path().join("a.jpg");
    std::fs::write(&picture, pictures::jpeg(64, 48, 1)?)?;
    let mut env = vec![("SAFELIGHT_URL".to_owned(), server.url().to_owned())];
    let upload = ["upload", picture.to_str().context("a path")?, "--wait"];
    let rejected = run_command(&upload, &env).await?;
    ensure!(rejected.code == Some(1) && rejected.stderr.contains("401"), "{rejected:?}");
    env.push(("SAFELIGHT_KEY".to_owned(), secret(&key)?.to_owned()));
    run_command(&upload, &env).await?.success()?;
    let tasks = run_command(&["tasks", "list", "--json"], &env).await?.success()?;
    let task: Value = serde_json::from_str(tasks.stdout.trim())?;
    ensure!(task["owner"] == "ada" && task["image"]["owner"] == "ada", "{task}");
    let workers = run_command(&["workers"], &env).await?;
    ensure!(workers.code == Some(1) && workers.stderr.contains("403"), "{workers:?}");
    Ok(())
}

#[tokio::test]
async fn every_node_rejects_revoked_key() -> Result<()> {
    let fleet = fleet(Plan { workers: 0, ..Plan::default() }).await?;
    let admin = create_fleet_key(&fleet, "ops", "admin").await?;
    let ada = create_fleet_key(&fleet, "ada", "upload,read").await?;
    let task = Client::with_key(fleet.apis[0].url(), secret(&ada)?)?
        .upload(pictures::jpeg(64, 48, 1)?)
        .await?;
    // No worker runs, so the task never ends, and neither do its event streams.
    let events = format!("/v1/tasks/{}/events", task["id"].as_str().context("no id")?);
    let mut streams = Vec::new();
    for node in &fleet.apis {
        ensure!(list_status(node.url(), secret(&ada)?).await? == StatusCode::OK);
        let stream = Client::with_key(node.url(), secret(&ada)?)?.get(&events).await?;
        ensure!(stream.status() == StatusCode::OK);
        streams.push(stream);
    }
    let id = ada["id"].as_str().context("no id")?;
    Client::with_key(fleet.apis[0].url(), secret(&admin)?)?.revoke_key(id).await?;
    for node in &fleet.apis {
        ensure!(list_status(node.url(), secret(&ada)?).await? == StatusCode::UNAUTHORIZED);
    }
    for stream in streams {
        tokio::time::timeout(STREAM_END_LIMIT, stream.bytes())
            .await
            .context("the stream did not end")??;
    }
    Ok(())
}

#[tokio::test]
async fn rate_limits_apply_across_nodes() -> Result<()> {
    let redis = tokio::task::spawn_blocking(Redis::start).await??;
    let env = vec![
        ("SAFELIGHT_SHARED_CACHE_URL".to_owned(), redis.url()),
        ("SAFELIGHT_REQUESTS_PER_MINUTE".to_owned(), "10".to_owned()),
    ];
    let fleet = fleet(Plan { env, ..Plan::default() }).await?;
    let ada = create_fleet_key(&fleet, "ada", "read").await?;
    let mut answers = Vec::new();
    for number in 0..12 {
        answers.push(list_status(fleet.apis[number % 2].url(), secret(&ada)?).await?);
    }
    let allowed = answers.iter().filter(|status| **status == StatusCode::OK).count();
    // On a slow machine, one more is allowed after six seconds.
    ensure!((10..12).contains(&allowed), "{answers:?}");
    ensure!(answers.contains(&StatusCode::TOO_MANY_REQUESTS), "{answers:?}");
    Ok(())
}
