//! Backfills, run by an operator with commands.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use safelight_testing::{
    client::{Client, TestClient as _},
    fleet::Plan,
    pictures,
    server::{Finished, run},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Deployment, fleet, on_every_deployment};
use safelight_testing::wait::eventually;

/// How long a command may take on a busy machine.
const COMMAND_LIMIT: Duration = Duration::from_mins(2);

on_every_deployment! {
    import_stores_each_picture_once,
    import_list_sets_titles_and_tags,
    renditions_backfill_skips_ready_and_failed_images,
    backfill_pauses_resumes_and_cancels,
    invalid_backfill_requests_get_specific_errors,
}

async fn run_command(command: Command) -> Result<Finished> {
    tokio::task::spawn_blocking(move || run(command, COMMAND_LIMIT)).await?
}

/// The lines of a report by their file names.
fn lines(report: &Path) -> Result<HashMap<String, Value>> {
    let mut lines = HashMap::new();
    for line in fs::read_to_string(report)?.lines() {
        let line: Value = serde_json::from_str(line)?;
        let source = line["source"].as_str().unwrap_or_default();
        let name = source.rsplit('/').next().unwrap_or_default().to_owned();
        ensure!(lines.insert(name, line).is_none(), "two lines for one source");
    }
    Ok(lines)
}

fn outcome<'a>(lines: &'a HashMap<String, Value>, name: &str) -> (&'a str, &'a str) {
    let text = |field: &str| lines.get(name).and_then(|line| line[field].as_str());
    (text("outcome").unwrap_or_default(), text("reason").unwrap_or_default())
}

async fn import_stores_each_picture_once(at: &Deployment) -> Result<()> {
    let folder = TempDir::new()?;
    let photos = folder.path().join("photos");
    fs::create_dir_all(photos.join("2024/summer"))?;
    let photo = pictures::jpeg(320, 240, 1)?;
    fs::write(photos.join("a.jpg"), &photo)?;
    fs::write(photos.join("2024/copy of a.jpg"), &photo)?;
    fs::write(photos.join("2024/summer/b.gif"), pictures::gif(64, 48, 2)?)?;
    fs::write(photos.join("notes.txt"), "no picture")?;
    fs::write(photos.join("torn.jpg"), pictures::truncated(&photo))?;
    fs::write(photos.join("text.jpg"), pictures::text())?;
    let (path, report) = (photos.to_string_lossy(), folder.path().join("report.ndjson"));
    let import = ["backfill", "import", &path];
    let with = |options: &[&'static str]| [import.as_slice(), options].concat();

    let planned = run_command(at.command(&with(&["--dry-run", "--json"]))).await?;
    let plan: Value = serde_json::from_str(&planned.stdout)?;
    let images = &plan["backfill"]["images"];
    assert_eq!((&images["total"], &images["planned"]), (&6.into(), &3.into()), "{plan:#}");
    let client = at.client()?;
    assert_eq!(client.json("/v1/images").await?["images"], json!([]), "a dry run imported images");

    let mut command = at.command(&with(&["--json", "--report"]));
    command.arg(&report);
    let ended = run_command(command).await?;
    assert_eq!(ended.code, Some(1), "torn.jpg did not fail: {ended:#?}");
    let task: Value = serde_json::from_str(&ended.stdout)?;
    let again = format!("safelight backfill follow {}", task["id"].as_str().unwrap_or("?"));
    assert!(ended.stderr.starts_with("backfill ") && ended.stderr.contains(&again), "{ended:#?}");
    let found = lines(&report)?;
    assert_eq!(found.len(), 6, "{found:#?}");
    let first = if outcome(&found, "a.jpg").0 == "succeeded" { "a.jpg" } else { "copy of a.jpg" };
    let second = if first == "a.jpg" { "copy of a.jpg" } else { "a.jpg" };
    assert_eq!(outcome(&found, first), ("succeeded", ""));
    assert_eq!(outcome(&found, second), ("skipped", "duplicate"));
    assert_eq!(outcome(&found, "b.gif"), ("succeeded", ""));
    assert_eq!(outcome(&found, "notes.txt"), ("skipped", "not_an_image"));
    assert_eq!(outcome(&found, "text.jpg"), ("failed", "not_an_image"));
    assert_eq!(outcome(&found, "torn.jpg"), ("failed", "corrupt_image"));
    let image = client.json(&image_path(&found[first])).await?;
    assert_eq!(image["filename"], first);
    assert_eq!(client.bytes(image["url"].as_str().unwrap_or_default()).await?, photo);
    assert!(image["renditions"]["small"].is_object(), "{image:#}");

    // A second import skips known pictures and may retry failed ones.
    let mut command = at.command(&with(&["--report"]));
    command.arg(&report);
    run_command(command).await?;
    let found = lines(&report)?;
    for name in ["a.jpg", "copy of a.jpg", "b.gif"] {
        assert_eq!(outcome(&found, name), ("skipped", "duplicate"), "{name}");
    }
    Ok(())
}

fn image_path(line: &Value) -> String {
    format!("/v1/images/{}", line["id"].as_str().unwrap_or_default())
}

async fn import_list_sets_titles_and_tags(at: &Deployment) -> Result<()> {
    let folder = TempDir::new()?;
    fs::write(folder.path().join("1.jpg"), pictures::jpeg(64, 48, 3)?)?;
    let list = folder.path().join("list.ndjson");
    let line = r#"{"path":"1.jpg","title":"Eins","tags":["x","y"],"filename":"eins.jpg"}"#;
    fs::write(&list, format!("{line}\n\"gone.jpg\"\nnonsense\n"))?;
    let report = folder.path().join("report.ndjson");
    let (list, out) = (list.to_string_lossy(), report.to_string_lossy());
    let import = ["backfill", "import", &list, "--visibility", "private", "--report", &out];
    let ended = run_command(at.command(&import)).await?;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    let found = lines(&report)?;
    assert_eq!(outcome(&found, "1.jpg"), ("succeeded", ""));
    assert_eq!(outcome(&found, "gone.jpg"), ("failed", "unreadable"));
    assert_eq!(outcome(&found, "list.ndjson:3"), ("failed", "invalid_line"));
    let image = at.client()?.json(&image_path(&found["1.jpg"])).await?;
    assert_eq!((&image["title"], &image["filename"]), (&"Eins".into(), &"eins.jpg".into()));
    assert_eq!((&image["tags"], &image["visibility"]), (&json!(["x", "y"]), &"private".into()));
    Ok(())
}

async fn renditions_backfill_skips_ready_and_failed_images(at: &Deployment) -> Result<()> {
    let client = at.client()?;
    let good = client.upload(pictures::jpeg(320, 240, 4)?).await?;
    let bad = client.upload(pictures::truncated(&pictures::jpeg(320, 240, 5)?)).await?;
    for task in [&good, &bad] {
        client.finished(task).await?;
    }
    let folder = TempDir::new()?;
    let report = folder.path().join("report.ndjson");
    let report_of = async |options: &[&str]| -> Result<Vec<(String, String, String)>> {
        let mut command = at.command(&["backfill", "renditions", "--report"]);
        command.arg(&report).args(options);
        run_command(command).await?;
        let mut found = Vec::new();
        for line in fs::read_to_string(&report)?.lines() {
            let line: Value = serde_json::from_str(line)?;
            let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
            found.push((text("id"), text("outcome"), text("reason")));
        }
        Ok(found)
    };
    let line = |task: &Value, outcome: &str, reason: &str| {
        let id = task["image"]["id"].as_str().unwrap_or_default().to_owned();
        (id, outcome.to_owned(), reason.to_owned())
    };
    let ids = [line(&good, "skipped", "up_to_date"), line(&bad, "skipped", "failed_before")];
    assert_eq!(report_of(&[]).await?, ids);
    let again = [line(&good, "succeeded", ""), line(&bad, "failed", "corrupt_image")];
    assert_eq!(report_of(&["--all", "--retry-failed"]).await?, again);
    let png = report_of(&["--format", "png"]).await?;
    assert_eq!(png, [], "there is no PNG");
    let verified = run_command(at.command(&["backfill", "verify", "--follow", "--json"])).await?;
    let task: Value = serde_json::from_str(&verified.stdout)?;
    let images = &task["backfill"]["images"];
    // The bad picture is stored unchanged, so its bytes verify too.
    assert_eq!(images["succeeded"].as_u64(), Some(2), "{task:#}");
    Ok(())
}

async fn backfill_pauses_resumes_and_cancels(at: &Deployment) -> Result<()> {
    // At the rate below they take long enough for all commands, also on a busy machine.
    const IMAGES: u64 = 16;
    let client = at.client()?;
    for seed in 0..IMAGES {
        client.finished(&client.upload(pictures::jpeg(64, 48, 10 + seed)?).await?).await?;
    }
    let options = ["backfill", "renditions", "--all", "--rate", "2/s", "--json"];
    let started: Value =
        serde_json::from_str(&run_command(at.command(&options)).await?.success()?.stdout)?;
    let id = started["id"].as_str().context("an id")?;
    let path = format!("/v1/tasks/{id}");
    let succeeded = async || -> Result<u64> {
        let task = client.json(&path).await?;
        Ok(task["progress"]["succeeded"].as_u64().unwrap_or(0))
    };
    eventually("some are done", async || Ok(succeeded().await? >= 1)).await?;
    run_command(at.command(&["backfill", "pause", id])).await?.success()?;
    // Child tasks in progress are completed. After that nothing may change.
    eventually("no child task is in progress", async || {
        let images = &client.json(&path).await?["backfill"]["images"];
        Ok(images["planned"] == images["succeeded"])
    })
    .await?;
    let done = succeeded().await?;
    assert!(done < IMAGES, "the backfill ended before it was paused");
    // Real time has to pass: without the pause, the rate allows two images in this second.
    let paused_at = Instant::now();
    while paused_at.elapsed() < Duration::from_secs(1) {
        assert_eq!(succeeded().await?, done);
    }
    run_command(at.command(&["backfill", "resume", id])).await?.success()?;
    eventually("the backfill continues", async || Ok(succeeded().await? > done)).await?;
    run_command(at.command(&["tasks", "cancel", id])).await?.success()?;
    eventually("the backfill is cancelled", async || {
        Ok(client.json(&path).await?["status"] == "cancelled")
    })
    .await?;
    let paused = run_command(at.command(&["backfill", "pause", id])).await?;
    assert_eq!(paused.code, Some(1), "{paused:#?}");
    let followed = run_command(at.command(&["backfill", "follow", id])).await?;
    assert_eq!(followed.code, Some(1), "{followed:#?}");
    assert!(followed.stderr.contains("cancelled"), "{followed:#?}");
    Ok(())
}

async fn invalid_backfill_requests_get_specific_errors(at: &Deployment) -> Result<()> {
    let client = at.client()?;
    let post = async |path: &str, body: &str| -> Result<(u16, String)> {
        let request = client.request(Method::POST, path).body(body.to_owned());
        let answer = request.header("content-type", "application/json").send().await?;
        let status = answer.status().as_u16();
        let code = answer.json::<Value>().await?["code"].as_str().unwrap_or_default().to_owned();
        Ok((status, code))
    };
    for body in [
        "{}",
        "nonsense",
        r#"{"kind":"dance"}"#,
        r#"{"kind":"renditions","presets":["huge"]}"#,
        r#"{"kind":"renditions","source":"/tmp"}"#,
        r#"{"kind":"verify","scope":"all"}"#,
        r#"{"kind":"verify","rate":0}"#,
        r#"{"kind":"verify","concurrency":0}"#,
        r#"{"kind":"verify","color":1}"#,
        r#"{"kind":"verify","visibility":"private"}"#,
        r#"{"kind":"import","source":"/tmp","visibility":"secret"}"#,
        r#"{"kind":"import"}"#,
        r#"{"kind":"import","source":"photos"}"#,
        r#"{"kind":"import","source":"/photos\u0000"}"#,
        r#"{"kind":"import","source":"s3://"}"#,
        r#"{"kind":"import","source":"s3:///prefix"}"#,
        r#"{"kind":"verify","created_after":"+262000-01-01T00:00:00Z"}"#,
        r#"["verify"]"#,
        r#"{"kind":"verify","force":true}"#,
        r#"{"kind":"verify","take_back":true}"#,
        r#"{"kind":"gc","take_back":true,"force":true}"#,
        r#"{"kind":"gc","take_back":"yesterday"}"#,
        r#"{"kind":"gc","presets":["small"]}"#,
        r#"{"kind":"verify","id":"0193c2a4-7d1e-7c3a-9d52-3f1f5a3c9b10"}"#,
    ] {
        assert_eq!(post("/v1/backfills", body).await?, (400, "invalid_body".to_owned()), "{body}");
    }
    let request = client.request(Method::POST, "/v1/backfills").body(r#"{"kind":"verify"}"#);
    assert_eq!(request.send().await?.status(), 415, "pages of other origins can send this type");
    let upload = client.upload(pictures::jpeg(64, 48, 30)?).await?;
    let id = upload["id"].as_str().context("an id")?;
    for call in ["pause", "resume"] {
        let answer = post(&format!("/v1/tasks/{id}/{call}"), "").await?;
        assert_eq!(answer, (409, "not_a_backfill".to_owned()), "{call}");
    }
    let report = client.get(&format!("/v1/tasks/{id}/report")).await?;
    assert_eq!(report.status(), 409);
    let none = client.get("/v1/tasks/0193c2a4-7d1e-7c3a-9d52-3f1f5a3c9b10/report").await?;
    assert_eq!(none.status(), 404);
    let body = format!(r#"{{"kind":"verify","id":"{id}"}}"#);
    assert_eq!(post("/v1/backfills", &body).await?, (422, "id_taken".to_owned()));
    let list = client.json("/v1/tasks?kind=backfill").await?;
    assert_eq!(list["tasks"], json!([]), "an invalid request started a backfill");
    Ok(())
}

#[tokio::test]
async fn backfill_command_reports_invalid_requests() -> Result<()> {
    let at = Deployment::embedded().await?;
    let client = at.client()?;
    let folder = TempDir::new()?;
    let list = folder.path().join("list.ndjson");
    fs::write(&list, "\"gone.jpg\"\n")?;
    let (list, missing_folder) = (list.to_string_lossy(), folder.path().join("no/such/report"));
    let missing_folder = missing_folder.to_string_lossy();
    let report = ["backfill", "import", &list, "--report", &missing_folder];
    let ended = run_command(at.command(&report)).await?;
    assert!(ended.code == Some(1) && ended.stderr.contains("cannot write"), "{ended:#?}");
    let ended = run_command(at.command(&[&report[..], &["--dry-run"]].concat())).await?;
    assert!(ended.code == Some(2) && ended.stderr.contains("only counts"), "{ended:#?}");
    let jpg = run_command(at.command(&["backfill", "verify", "--format", "jpg"])).await?;
    assert!(jpg.code == Some(2) && jpg.stderr.contains("did you mean `jpeg`"), "{jpg:#?}");
    let list_of = async || client.json("/v1/tasks?kind=backfill").await;
    assert_eq!(list_of().await?["tasks"], json!([]), "an invalid request started a backfill");

    // A file that could not be read has no child task that could be retried.
    let ended = run_command(at.command(&["backfill", "import", &list, "--follow"])).await?;
    assert!(ended.code == Some(1) && !ended.stderr.contains("tasks retry"), "{ended:#?}");
    let tasks = list_of().await?;
    let id = tasks["tasks"][0]["id"].as_str().context("an id")?;
    let ended = run_command(at.command(&["tasks", "retry", id])).await?;
    assert!(ended.stderr.contains("start another backfill"), "{ended:#?}");
    Ok(())
}

#[tokio::test]
async fn closed_output_pipes_end_commands_normally() -> Result<()> {
    let at = Deployment::embedded().await?;
    let started =
        run_command(at.command(&["backfill", "verify", "--follow", "--json"])).await?.success()?;
    let id =
        serde_json::from_str::<Value>(&started.stdout)?["id"].as_str().context("an id")?.to_owned();
    for args in [&["queues"][..], &["openapi"], &["tasks", "list"], &["backfill", "report", &id]] {
        let status = tokio::task::spawn_blocking({
            let mut command = at.command(args);
            move || -> Result<_> {
                let mut child = command
                    .stdout(std::process::Stdio::piped())
                    .stderr(std::process::Stdio::null())
                    .spawn()?;
                drop(child.stdout.take());
                Ok(child.wait()?)
            }
        });
        assert!(status.await??.success(), "{args:?}");
    }
    Ok(())
}

#[tokio::test]
async fn example_script_starts_and_follows_backfill() -> Result<()> {
    let at = Deployment::embedded().await?;
    let client = at.client()?;
    client.finished(&client.upload(pictures::jpeg(64, 48, 1)?).await?).await?;
    let folder = TempDir::new()?;
    let report = folder.path().join("report.ndjson");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/backfill.py");
    let python = |args: &[&str]| {
        let mut python = Command::new("python3");
        python.arg("-B").arg(script).args(args).env("SAFELIGHT_URL", at.url());
        python
    };
    let report_path = report.to_string_lossy();
    let ended = run_command(python(&[r#"{"kind":"verify"}"#, &report_path])).await?.success()?;
    assert!(ended.stdout.contains("1  succeeded"), "{ended:#?}");
    assert_eq!(lines(&report)?.len(), 1);
    let ended = run_command(python(&["verify"])).await?;
    assert!(ended.code == Some(1) && ended.stderr.contains("usage:"), "{ended:#?}");
    let ended = run_command(python(&[r#"{"kind":"dance"}"#])).await?;
    assert!(ended.code == Some(1) && ended.stderr.contains("invalid_body"), "{ended:#?}");
    for wrong in ["nonsense", "http://127.0.0.1:1"] {
        let mut python = python(&[]);
        python.env("SAFELIGHT_URL", wrong);
        let ended = run_command(python).await?;
        assert!(ended.code == Some(1) && ended.stderr.starts_with("error:"), "{ended:#?}");
        assert!(ended.stderr.contains(wrong), "{ended:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn import_reads_whole_bucket() -> Result<()> {
    let fleet = fleet(Plan { apis: 1, workers: 1, ..Plan::default() }).await?;
    let client = Client::new(&fleet.url())?;
    let mut images = Vec::new();
    for seed in 0..3 {
        let task = client.finished(&client.upload(pictures::jpeg(64, 48, seed)?).await?).await?;
        images.push(task["image"]["id"].as_str().unwrap_or_default().to_owned());
    }
    let folder = TempDir::new()?;
    let report = folder.path().join("report.ndjson");
    // The bucket contains the fleet's own blobs, so all of them are duplicates.
    let source = format!("{}/blobs", fleet.s3.url());
    let mut import = fleet.command(&["backfill", "import", &source, "--url"]);
    import.arg(fleet.url()).arg("--report").arg(&report);
    run_command(import).await?.success()?;
    let found = lines(&report)?;
    assert_eq!(found.len(), 3, "{found:#?}");
    for image in images {
        let equal = format!("equal to image {image}");
        assert!(found.values().any(|line| line["detail"] == equal.as_str()), "{found:#?}");
    }
    let mut import = fleet.command(&["backfill", "import", "s3://no-such-bucket", "--follow"]);
    import.arg("--url").arg(fleet.url());
    let ended = run_command(import).await?;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("no such bucket"), "{ended:#?}");
    Ok(())
}

/// Every process is killed during an import, and the command too. The report is still complete.
#[tokio::test]
async fn import_survives_crash_of_every_process() -> Result<()> {
    const PICTURES: usize = 60;
    let folder = TempDir::new()?;
    let photos = folder.path().join("photos");
    fs::create_dir(&photos)?;
    let photo = pictures::jpeg(800, 600, 1)?;
    for number in 0..PICTURES {
        let bytes = pictures::with_comment(&photo, &format!("number {number}"));
        fs::write(photos.join(format!("{number:03}.jpg")), bytes)?;
    }
    let env = [("LEASE_MS", "3000"), ("BACKFILL_WINDOW", "8")]
        .map(|(key, value)| (format!("SAFELIGHT_{key}"), value.to_owned()));
    let mut fleet = fleet(Plan { env: env.to_vec(), ..Plan::default() }).await?;
    let client = Client::new(&fleet.url())?;
    let path = photos.to_string_lossy();
    let mut command = fleet.command(&["backfill", "import", &path, "--json", "--url"]);
    command.arg(fleet.url());
    let started: Value = serde_json::from_str(&run_command(command).await?.success()?.stdout)?;
    let id = started["id"].as_str().context("an id")?.to_owned();
    let task = format!("/v1/tasks/{id}");
    let imported = async || -> Result<u64> {
        Ok(client.json(&task).await?["progress"]["succeeded"].as_u64().unwrap_or(0))
    };

    let mut follow = fleet.command(&["backfill", "follow", &id, "--url"]);
    follow.arg(fleet.url());
    let mut follower = follow.stderr(std::process::Stdio::null()).spawn()?;
    eventually("some pictures are imported", async || Ok(imported().await? >= 5)).await?;
    follower.kill()?;
    follower.wait()?;
    // One of the two workers coordinates the backfill. Both are killed, one after the other.
    fleet.workers[0].kill()?;
    fleet.add_worker()?;
    eventually("more pictures are imported", async || Ok(imported().await? >= 15)).await?;
    fleet.workers[1].kill()?;
    fleet.add_worker()?;
    fleet.apis[0].kill()?;
    let uploaded = client.upload(pictures::jpeg(320, 240, 9)?).await?;
    assert_eq!(client.finished(&uploaded).await?["status"], "succeeded", "uploads do not work");

    let report = folder.path().join("report.ndjson");
    let mut follow = fleet.command(&["backfill", "follow", &id, "--report"]);
    follow.arg(&report).arg("--url").arg(fleet.url());
    let ended = run_command(follow).await?.success()?;
    assert!(ended.stderr.contains("report.ndjson"), "{ended:#?}");
    let found = lines(&report)?;
    assert_eq!(found.len(), PICTURES, "not every picture has one line");
    let mut images = HashMap::new();
    for (name, line) in &found {
        assert_eq!(line["outcome"], "succeeded", "{name}: {line}");
        let image = client.json(&image_path(line)).await?;
        let sha256 = image["sha256"].as_str().unwrap_or_default().to_owned();
        assert!(images.insert(sha256, name).is_none(), "{name} was imported twice");
    }
    let all = client.json("/v1/images?limit=500").await?;
    let all = all["images"].as_array().context("images")?.len();
    assert_eq!(all, PICTURES + 1, "a picture was imported twice");
    Ok(())
}
