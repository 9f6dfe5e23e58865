//! Compares a running server with its OpenAPI document.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use safelight_testing::{
    client::{Client, TestClient as _},
    pictures,
    server::{Server, run, safelight},
};
use serde_json::Value;
use tempfile::TempDir;

use super::{binary, embedded_env};

/// Schemathesis needs half a minute for its cases, and longer on a busy machine.
const LIMIT: Duration = Duration::from_mins(3);

/// Sends hundreds of valid and invalid requests to each operation, also in sequences. No answer may be a
/// server error, and the document must describe each answer.
#[tokio::test]
async fn server_conforms_to_its_openapi_document() -> Result<()> {
    let data = TempDir::new()?;
    let mut env = embedded_env(data.path());
    // Generated import requests must not read other folders of this machine.
    let imports = format!("[\"{}\"]", data.path().join("imports").display());
    env.push(("SAFELIGHT_IMPORT_ROOTS".to_owned(), imports));
    let key = super::access::create_key(&env, "local", "upload,read,admin").await?;
    let key = key["secret"].as_str().context("no secret")?.to_owned();
    let command = safelight(binary(), ["serve"], &env);
    let server = tokio::task::spawn_blocking(move || Server::start(command)).await??;
    let client = Client::with_key(server.url(), &key)?;
    let accepted = client.upload(pictures::jpeg(64, 48, 1)?).await?;
    client.finished(&accepted).await?;
    let document = client.json("/openapi.json").await?;
    let paths = document["paths"].as_object().context("paths")?.values();
    let calls: usize = paths.filter_map(Value::as_object).map(serde_json::Map::len).sum();
    let command = schemathesis(&format!("{}/openapi.json", server.url()), &key, data.path())?;
    let ended = tokio::task::spawn_blocking(move || run(command, LIMIT)).await??;
    println!("{}", ended.stdout);
    ensure!(ended.code == Some(0), "{}{}", ended.stdout, ended.stderr);
    let tested = format!("Tested: {calls}\n");
    ensure!(ended.stdout.contains(&tested), "not every call was tested: {}", ended.stdout);
    ensure!(!server.output().contains("panicked"), "{}", server.output());
    Ok(())
}

fn schemathesis(document: &str, key: &str, folder: &Path) -> Result<Command> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = root.join("target/tools/schemathesis/bin/schemathesis");
    program.metadata().context("no schemathesis; hint: scripts/setup.sh test-api")?;
    let mut command = Command::new(program);
    command
        .arg("--config-file")
        .arg(root.join("tests/e2e/schemathesis.toml"))
        .args(["run", document, "--no-color", "--header"])
        .arg(format!("Authorization: Bearer {key}"))
        // It writes its results into the current folder.
        .current_dir(folder);
    Ok(command)
}
