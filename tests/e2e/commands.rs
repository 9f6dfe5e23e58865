//! Commands for people and scripts.

use std::{fs, process::Command, time::Duration};

use anyhow::Result;
use safelight_queue::Queue;
use safelight_testing::{
    client::TestClient as _,
    pictures,
    server::{Finished, run, safelight},
};
use serde_json::Value;
use tempfile::TempDir;

use super::{Deployment, binary, on_every_deployment};

/// How long a command may take on a busy machine.
const LIMIT: Duration = Duration::from_mins(2);

on_every_deployment! {
    upload_command_sends_folder_and_waits,
    tasks_command_lists_and_retries_failed_tasks,
    workers_and_queues_are_listed,
}

async fn run_command(command: Command) -> Result<Finished> {
    tokio::task::spawn_blocking(move || run(command, LIMIT)).await?
}

async fn upload_command_sends_folder_and_waits(at: &Deployment) -> Result<()> {
    let folder = TempDir::new()?;
    fs::create_dir(folder.path().join("inner"))?;
    fs::write(folder.path().join("a.jpg"), pictures::jpeg(320, 240, 1)?)?;
    fs::write(folder.path().join("inner/b.gif"), pictures::gif(64, 48, 2)?)?;
    fs::write(folder.path().join("notes.txt"), "no picture")?;
    let path = folder.path().to_string_lossy();

    let ended = run_command(at.command(&["upload", &path, "--wait", "--json"])).await?.success()?;
    let lines: Vec<Value> =
        ended.stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(lines.len(), 2, "{ended:#?}");
    for line in lines {
        assert_eq!(line["task"]["status"], "succeeded", "{line:#}");
        assert!(line["error"].is_null() && line["file"].is_string(), "{line:#}");
    }

    fs::write(folder.path().join("broken.jpg"), pictures::disguised_text())?;
    let ended = run_command(at.command(&["upload", &path, "--wait", "--json"])).await?;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    let failed = ended.stdout.lines().filter(|line| line.contains("broken.jpg")).count();
    assert_eq!((failed, ended.stdout.lines().count()), (1, 3), "{ended:#?}");
    Ok(())
}

#[tokio::test]
async fn upload_without_a_server_fails_with_one_error() -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("a.jpg");
    fs::write(&file, pictures::jpeg(32, 24, 1)?)?;
    let path = file.to_string_lossy();
    let ended =
        run_command(safelight(binary(), ["upload", &path, "--url", "http://127.0.0.1:1"], &[]))
            .await?;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("error: "), "{ended:#?}");
    let args = ["tasks", "list", "--url", "http://127.0.0.1:1"];
    let ended = run_command(safelight(binary(), args, &[])).await?;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("hint: is a server running there?"), "{ended:#?}");
    Ok(())
}

#[tokio::test]
async fn printed_defaults_are_a_valid_configuration() -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("safelight.toml");
    let printed =
        run_command(safelight(binary(), ["config", "--defaults"], &[])).await?.success()?;
    fs::write(&file, &printed.stdout)?;
    let path = file.to_string_lossy();
    let loaded =
        run_command(safelight(binary(), ["config", "--config", &path], &[])).await?.success()?;
    assert!(loaded.stdout.contains("max_upload_bytes = 67108864"), "{loaded:#?}");
    Ok(())
}

#[tokio::test]
async fn config_command_hides_passwords() -> Result<()> {
    let folder = TempDir::new()?;
    let database = folder.path().join("database-url");
    fs::write(&database, "postgres://me:hidden@db/safelight?password=hidden")?;
    let set = |key: &str, value: &str| (format!("SAFELIGHT_{key}"), value.to_owned());
    let env = [
        set("DATABASE_URL_FILE", &database.to_string_lossy()),
        set("QUEUE_URL", "amqp://me:hidden@rabbit/%2f"),
        set("SHARED_CACHE_URL", "redis-cluster://:hidden@a:1,:hidden@b:1"),
        set("PURGE_URLS", "[\"http://me:hidden@varnish:6081\"]"),
        set("OTLP_ENDPOINT", "https://me:hidden@collector:4318"),
        ("AWS_SECRET_ACCESS_KEY".to_owned(), "hidden".to_owned()),
    ];
    let shown = run_command(safelight(binary(), ["config"], &env)).await?.success()?;
    assert!(shown.stdout.contains("me:***@db"), "{shown:#?}");
    assert!(!shown.stdout.contains("hidden") && !shown.stderr.contains("hidden"), "{shown:#?}");
    Ok(())
}

#[tokio::test]
async fn openapi_prints_the_document() -> Result<()> {
    let printed = run_command(safelight(binary(), ["openapi"], &[])).await?.success()?;
    let document: Value = serde_json::from_str(&printed.stdout)?;
    assert!(document["openapi"].is_string());
    assert!(document["paths"]["/v1/images"]["post"].is_object());
    Ok(())
}

#[tokio::test]
async fn unknown_commands_are_usage_errors() -> Result<()> {
    let ended = run_command(safelight(binary(), ["wroker"], &[])).await?;
    assert_eq!(ended.code, Some(2), "{ended:#?}");
    Ok(())
}

async fn tasks_command_lists_and_retries_failed_tasks(at: &Deployment) -> Result<()> {
    let client = at.client()?;
    let good = client.finished(&client.upload(pictures::jpeg(64, 48, 1)?).await?).await?;
    let bad = client.finished(&client.upload(pictures::disguised_text()).await?).await?;
    let id = bad["id"].as_str().unwrap_or_default();
    let run = async |args: &[&str]| run_command(at.command(args)).await;

    let listed = run(&["tasks", "list", "--status", "failed", "--json"]).await?.success()?;
    let listed: Value = serde_json::from_str(&listed.stdout)?;
    assert_eq!(listed["id"], bad["id"], "the list does not contain exactly the failed task");
    let shown = run(&["tasks", "show", id]).await?.success()?;
    assert!(shown.stdout.contains("failed") && shown.stdout.lines().count() == 3, "{shown:#?}");
    let none = run(&["tasks", "list", "--code", "lease_lost"]).await?.success()?;
    assert_eq!(none.stdout, "");

    let code = bad["error"]["code"].as_str().unwrap_or_default();
    let dry = run(&["tasks", "retry", "--code", code, "--newer-than", "1h", "--dry-run"]).await?;
    assert_eq!(dry.success()?.stdout.trim(), id);
    let old = run(&["tasks", "retry", "--older-than", "1h"]).await?.success()?;
    assert_eq!(old.stdout, "");
    let before = client.json(&format!("/v1/tasks/{id}")).await?;
    assert_eq!(before["status"], "failed", "the dry run changed the task");
    run(&["tasks", "retry", id]).await?.success()?;
    let waited = run(&["tasks", "show", id, "--wait", "--json"]).await?.success()?;
    let waited: Value = serde_json::from_str(&waited.stdout)?;
    assert_eq!(waited["status"], "failed", "text was processed as a picture");
    assert_ne!(waited["finished_at"], before["finished_at"], "the task was not retried");

    let done = good["id"].as_str().unwrap_or_default();
    for command in ["retry", "cancel"] {
        let rejected = run(&["tasks", command, done]).await?;
        assert_eq!(rejected.code, Some(1), "{rejected:#?}");
        assert!(rejected.stderr.contains("409") && rejected.stderr.contains(done), "{rejected:#?}");
    }
    for wrong in [&["tasks", "retry"][..], &["tasks", "list", "--kind", "elephant"]] {
        let rejected = run(wrong).await?;
        assert_eq!(rejected.code, Some(2), "{rejected:#?}");
    }
    Ok(())
}

async fn workers_and_queues_are_listed(at: &Deployment) -> Result<()> {
    let client = at.client()?;
    client.finished(&client.upload(pictures::jpeg(64, 48, 1)?).await?).await?;
    let run = async |args: &[&str]| run_command(at.command(args)).await?.success();
    let parsed = |ended: &Finished| -> Result<Vec<Value>> {
        Ok(ended.stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    };

    let queue_count = Queue::all().count();
    let workers = parsed(&run(&["workers", "--json"]).await?)?;
    let expected = match at {
        Deployment::Embedded { .. } => 1,
        Deployment::Fleet(fleet) => fleet.workers.len(),
    };
    assert_eq!(workers.len(), expected, "{workers:#?}");
    for worker in &workers {
        assert_eq!(worker["status"], "running", "{worker:#}");
        assert_eq!(worker["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(worker["slots"].as_array().map(Vec::len), Some(queue_count), "{worker:#}");
    }
    let table = run(&["workers"]).await?;
    assert_eq!(table.stdout.lines().count(), expected, "a header is only for terminals");
    let id = workers[0]["id"].as_str().unwrap_or_default();
    let line = table.stdout.lines().find(|line| line.starts_with(id));
    assert!(line.is_some_and(|line| line.contains("write,thumbnail")), "{table:#?}");

    let queues = parsed(&run(&["queues", "--json"]).await?)?;
    assert_eq!(queues.len(), queue_count, "not each kind on each lane");
    for queue in &queues {
        let counts = ["depth", "due", "running", "failed"].map(|key| queue[key].as_u64());
        assert_eq!(counts, [Some(0); 4], "{queue:#}");
        assert_eq!(queue["seconds_to_empty"], 0.0, "{queue:#}");
    }
    let table = run(&["queues"]).await?;
    assert_eq!(table.stdout.lines().count(), queue_count, "{table:#?}");
    assert!(table.stdout.lines().all(|line| line.contains("0s")), "{table:#?}");
    Ok(())
}
