//! Deletion and the collection of garbage, raced by uploads of the same bytes, and cut off in the middle.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use reqwest::StatusCode;
use safelight_testing::{
    audit::{Audit, Ledger},
    client::{Client, TestClient as _},
    pictures,
    server::{Server, run, safelight},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::{LIMIT, armed, binary, dies, test_cluster, test_server};

/// Deletions are due a second after, and what is old is garbage.
const KEYS: &[(&str, &str)] = &[
    ("SAFELIGHT_METADATA_CACHE_MS", "0"),
    ("SAFELIGHT_STAGED_GRACE_MS", "1000"),
    ("SAFELIGHT_LEASE_MS", "1500"),
    ("SAFELIGHT_BACKOFF_BASE_MS", "20"),
];

/// Where whoever removes a blob stands when an upload of the same bytes comes: it has looked and found
/// nobody; it has moved the blob aside; it has asked again and found nobody.
const MOMENTS: [&str; 3] = ["removal.looked", "removal.moved", "removal.decided"];

/// A deployment, and who removes blobs in it.
struct Site<'a> {
    client: Client,
    remover: Server,
    blobs: PathBuf,
    audit: Audit<'a>,
}

async fn delete(client: &Client, task: &Value) -> Result<Value> {
    let image = task["image"]["id"].as_str().context("an image")?;
    Ok(client.delete_image(image).await?)
}

/// Uploads a picture and waits for it; answers with its task as it ended.
async fn stored(client: &Client, photo: &[u8]) -> Result<Value> {
    let task = client.finished(&client.upload(photo.to_vec()).await?).await?;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    Ok(task)
}

/// Everything that is delivered of an image: the original first.
async fn delivered(client: &Client, task: &Value) -> Result<Vec<Bytes>> {
    let image = &task["image"];
    let renditions = image["renditions"].as_object().context("renditions")?;
    let mut all = Vec::new();
    for about in [image].into_iter().chain(renditions.values()) {
        all.push(client.bytes(about["url"].as_str().context("a URL")?).await?);
    }
    Ok(all)
}

/// What an upload has that came at some moment of another's removal.
async fn is_whole(site: &Site<'_>, late: &Value, photo: &[u8]) -> Result<()> {
    let client = &site.client;
    let image = late["image"]["url"].as_str().context("a URL")?;
    assert_eq!(client.bytes(image).await?, photo);
    for preset in ["small", "medium", "large"] {
        client.bytes(&format!("{image}/{preset}")).await?;
    }
    let ledger = Ledger::default();
    ledger.record(late, photo)?;
    site.audit.run(&ledger).await?.clean()?;
    Ok(())
}

/// A deletion waits at `moment`, an equal upload is accepted and finished, and the deletion goes on.
async fn an_upload_comes_while_it_is_deleted(
    mut site: Site<'_>,
    moment: &str,
    barrier: &Path,
) -> Result<()> {
    let photo = pictures::jpeg(320, 240, 1)?;
    let first = stored(&site.client, &photo).await?;
    let deletion = delete(&site.client, &first).await?;
    block_in_place(|| site.remover.says(&format!("fail point {moment}"), LIMIT))?;
    let late = stored(&site.client, &photo).await?;
    fs::write(barrier, "")?;
    let done = site.client.finished(&deletion).await?;
    assert_eq!(done["status"], "succeeded", "{done:#}");
    assert_eq!(done["receipt"]["renditions"].as_array().map(Vec::len), Some(3), "{done:#}");
    is_whole(&site, &late, &photo).await
}

/// The same with a blob that nobody has, which is collected.
async fn an_upload_comes_while_garbage_is_collected(
    mut site: Site<'_>,
    moment: &str,
    barrier: &Path,
) -> Result<()> {
    let photo = pictures::jpeg(320, 240, 2)?;
    orphan(&site.blobs, &photo)?;
    let collection = site.client.start_backfill(&json!({ "kind": "gc" })).await?;
    block_in_place(|| site.remover.says(&format!("fail point {moment}"), LIMIT))?;
    let late = stored(&site.client, &photo).await?;
    fs::write(barrier, "")?;
    let done = site.client.finished(&collection).await?;
    assert_eq!(done["status"], "succeeded", "{done:#}");
    is_whole(&site, &late, &photo).await
}

/// One or the other.
async fn an_upload_comes(
    site: Site<'_>,
    moment: &str,
    barrier: &Path,
    collects: bool,
) -> Result<()> {
    let raced = if collects {
        an_upload_comes_while_garbage_is_collected(site, moment, barrier).await
    } else {
        an_upload_comes_while_it_is_deleted(site, moment, barrier).await
    };
    raced.with_context(|| format!("at {moment}, collecting: {collects}"))
}

/// Stores bytes under their name without telling anybody, long ago.
fn orphan(blobs: &Path, photo: &[u8]) -> Result<()> {
    let hash = safelight_domain::ContentHash::of(photo).to_string();
    let folder = blobs.join("blobs").join(&hash[..2]);
    fs::create_dir_all(&folder)?;
    let path = folder.join(hash);
    fs::write(&path, photo)?;
    let then = SystemTime::now() - Duration::from_hours(2);
    fs::File::options().append(true).open(path)?.set_modified(then)?;
    Ok(())
}

/// Promise: an upload of the same bytes keeps them, whenever it comes: on one process.
#[tokio::test(flavor = "multi_thread")]
async fn an_equal_upload_keeps_its_bytes_whenever_it_comes() -> Result<()> {
    let folder = TempDir::new()?;
    for moment in MOMENTS {
        for collects in [false, true] {
            let barrier = folder.path().join(format!("{moment}-{collects}"));
            let site = test_server(KEYS)?;
            let point = format!("{moment}=until {}", barrier.display());
            let (remover, client) = site.start(&[armed(&point)])?;
            let blobs = site.data().join("blobs");
            let site = Site { client, remover, blobs, audit: site.audit() };
            an_upload_comes(site, moment, &barrier, collects).await?;
        }
    }
    Ok(())
}

/// And on a fleet, over an object store.
#[tokio::test(flavor = "multi_thread")]
async fn an_equal_upload_keeps_its_bytes_on_a_fleet_too() -> Result<()> {
    let folder = TempDir::new()?;
    for moment in MOMENTS {
        for collects in [false, true] {
            let barrier = folder.path().join(format!("{moment}-{collects}"));
            let cluster = test_cluster(1, 0, KEYS).await?;
            let point = format!("{moment}=until {}", barrier.display());
            // The other does only what the one that waits cannot.
            let remover = cluster.start_node(&["worker"], &[armed(&point)])?;
            let client = cluster.client()?;
            let audit = Audit { broker: None, ..cluster.audit()? };
            let site = Site { client, remover, blobs: cluster.fleet.s3.bucket_folder(), audit };
            an_upload_comes(site, moment, &barrier, collects).await?;
        }
    }
    Ok(())
}

/// Promise: whoever dies in the middle of a deletion, it ends, nothing is left, and its receipt is whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_outlives_its_worker_at_every_step() -> Result<()> {
    let steps = ["delete.started", "removal.looked", "removal.moved", "removal.decided"];
    for step in steps.into_iter().chain(["delete.removed", "delete.purged", "worker.worked"]) {
        let site = test_server(KEYS)?;
        let photo = pictures::jpeg(320, 240, 1)?;
        let task = {
            let (_server, client) = site.start(&[])?;
            stored(&client, &photo).await?
        };
        let deletion = {
            let (mut server, client) = site.start(&[armed(&format!("{step}=kill"))])?;
            let deletion = delete(&client, &task).await?;
            dies(&mut server).with_context(|| step.to_owned())?;
            deletion
        };
        let (_server, client) = site.start(&[])?;
        let done = client.finished(&deletion).await?;
        let receipt = &done["receipt"];
        assert_eq!(done["status"], "succeeded", "after {step}: {done:#}");
        assert_eq!(receipt["original_bytes"], photo.len(), "after {step}: {done:#}");
        assert_eq!(receipt["renditions"].as_array().map(Vec::len), Some(3), "after {step}");
        let image = task["image"]["url"].as_str().context("a URL")?;
        assert_eq!(client.get(image).await?.status(), StatusCode::GONE);
        site.audit().run(&Ledger::default()).await?.clean().with_context(|| step.to_owned())?;
    }
    Ok(())
}

/// Over several processes: another takes the job over.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_whose_worker_dies_is_finished_by_another() -> Result<()> {
    let cluster = test_cluster(1, 0, KEYS).await?;
    let client = cluster.client()?;
    let mut doomed = cluster.start_node(&["worker"], &[armed("removal.moved=kill")])?;
    let (deleted, kept) = (pictures::jpeg(320, 240, 1)?, pictures::jpeg(320, 240, 2)?);
    let (going, staying) = (stored(&client, &deleted).await?, stored(&client, &kept).await?);
    let before = delivered(&client, &staying).await?;
    let deletion = delete(&client, &going).await?;
    dies(&mut doomed)?;
    let _heir = cluster.start_node(&["worker"], &[])?;
    let done = client.finished(&deletion).await?;
    assert_eq!(done["status"], "succeeded", "{done:#}");
    assert_eq!(delivered(&client, &staying).await?, before);
    let ledger = Ledger::default();
    ledger.record(&staying, &kept)?;
    cluster.audit()?.run(&ledger).await?.clean()?;
    Ok(())
}

/// The command, and what it says about what it cannot do.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_deletes_and_collects() -> Result<()> {
    let site = test_server(KEYS)?;
    let (server, client) = site.start(&[])?;
    let photo = pictures::jpeg(320, 240, 1)?;
    let task = stored(&client, &photo).await?;
    orphan(&site.data().join("blobs"), b"nobody has this")?;
    let url = [("SAFELIGHT_URL".to_owned(), server.url().to_owned())];
    let command = async |args: &[&str]| -> Result<_> {
        let command = safelight(binary(), args, &url);
        block_in_place(|| run(command, LIMIT))
    };
    let image = task["image"]["id"].as_str().context("an id")?;
    let ended = command(&["images", "delete", image, "--wait", "--json"]).await?.success()?;
    let receipt: Value = serde_json::from_str(&ended.stdout)?;
    assert_eq!((&receipt["status"], &receipt["kind"]), (&"succeeded".into(), &"delete".into()));
    assert!(receipt["receipt"]["removed_at"].is_string(), "{receipt:#}");
    let unknown = safelight_domain::ImageId::new().to_string();
    assert_eq!(command(&["images", "delete", image, &unknown]).await?.code, Some(1));
    assert_eq!(command(&["images", "delete", "elephant"]).await?.code, Some(2));
    assert_eq!(command(&["images", "delete"]).await?.code, Some(2));

    let planned = command(&["backfill", "gc", "--dry-run"]).await?.success()?;
    assert!(planned.stdout.contains("to work on  1"), "{planned:#?}");
    let report = site.data().join("report.ndjson");
    let file = report.to_string_lossy();
    command(&["backfill", "gc", "--follow", "--report", &file]).await?.success()?;
    let lines = fs::read_to_string(&report)?;
    let line: Value = serde_json::from_str(lines.trim())?;
    assert_eq!((&line["outcome"], &line["detail"]), (&"succeeded".into(), &"15 bytes".into()));
    site.audit().run(&Ledger::default()).await?.clean()?;
    Ok(())
}
