//! Deletion and garbage collection, while the same bytes are uploaded, and with crashes in the middle.

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
    wait::eventually,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::{LIMIT, binary, fail_point, files, test_cluster, test_server, wait_until_killed};

/// Deletions are due within seconds, and unused bytes become garbage after a second.
const SETTINGS: &[(&str, &str)] = &[
    ("SAFELIGHT_METADATA_CACHE_MS", "0"),
    ("SAFELIGHT_STAGED_GRACE_MS", "1000"),
    ("SAFELIGHT_LEASE_MS", "1500"),
    ("SAFELIGHT_BACKOFF_BASE_MS", "20"),
];

/// Steps of a removal: no other image with these bytes was found; the blob was moved to the trash; the second
/// check found no image either.
const REMOVAL_STEPS: [&str; 3] = ["removal.looked", "removal.moved", "removal.decided"];

/// The same steps of a collection of garbage, which moves to the quarantine.
const COLLECTION_STEPS: [&str; 3] = ["gc.looked", "gc.moved", "gc.decided"];

/// For each removal its steps, and whether it is a collection of garbage.
fn removals() -> impl Iterator<Item = (&'static str, bool)> {
    let deletion = REMOVAL_STEPS.into_iter().map(|step| (step, false));
    deletion.chain(COLLECTION_STEPS.into_iter().map(|step| (step, true)))
}

/// A deployment, and the process in it that removes blobs.
struct RemovalSetup<'a> {
    client: Client,
    remover: Server,
    blobs: PathBuf,
    audit: Audit<'a>,
}

async fn delete(client: &Client, task: &Value) -> Result<Value> {
    let image = task["image"]["id"].as_str().context("an image")?;
    Ok(client.delete_image(image).await?)
}

/// Uploads a picture and waits until it is processed. Returns its task.
pub(super) async fn upload_and_finish(client: &Client, photo: &[u8]) -> Result<Value> {
    let task = client.finished(&client.upload(photo.to_vec()).await?).await?;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    Ok(task)
}

/// The bytes of an image: the original first, then its renditions.
pub(super) async fn fetch_all(client: &Client, task: &Value) -> Result<Vec<Bytes>> {
    let image = &task["image"];
    let renditions = image["renditions"].as_object().context("renditions")?;
    let mut all = Vec::new();
    for object in [image].into_iter().chain(renditions.values()) {
        all.push(client.bytes(object["url"].as_str().context("a URL")?).await?);
    }
    Ok(all)
}

/// Checks that nothing is missing of an upload that arrived during a removal of the same bytes.
async fn assert_whole(setup: &RemovalSetup<'_>, late: &Value, photo: &[u8]) -> Result<()> {
    let client = &setup.client;
    let image = late["image"]["url"].as_str().context("a URL")?;
    assert_eq!(client.bytes(image).await?, photo);
    for preset in ["small", "medium", "large"] {
        client.bytes(&format!("{image}/{preset}")).await?;
    }
    let ledger = Ledger::default();
    ledger.record(late, photo)?;
    setup.audit.run(&ledger).await?.clean()?;
    Ok(())
}

/// Holds a deletion at `step`, completes an equal upload, then lets the deletion continue.
async fn upload_during_deletion(
    mut setup: RemovalSetup<'_>,
    step: &str,
    barrier: &Path,
) -> Result<()> {
    let photo = pictures::jpeg(320, 240, 1)?;
    let first = upload_and_finish(&setup.client, &photo).await?;
    let deletion = delete(&setup.client, &first).await?;
    block_in_place(|| setup.remover.wait_for_output(&format!("fail point {step}"), LIMIT))?;
    let late = upload_and_finish(&setup.client, &photo).await?;
    fs::write(barrier, "")?;
    let done = setup.client.finished(&deletion).await?;
    assert_eq!(done["status"], "succeeded", "{done:#}");
    assert_eq!(done["receipt"]["renditions"].as_array().map(Vec::len), Some(3), "{done:#}");
    assert_whole(&setup, &late, &photo).await
}

/// The same with the garbage collection of a blob that no image uses.
async fn upload_during_gc(mut setup: RemovalSetup<'_>, step: &str, barrier: &Path) -> Result<()> {
    let photo = pictures::jpeg(320, 240, 2)?;
    store_orphan(&setup.blobs, &photo)?;
    let collection = json!({ "kind": "gc", "force": true });
    let collection = setup.client.start_backfill(&collection).await?;
    block_in_place(|| setup.remover.wait_for_output(&format!("fail point {step}"), LIMIT))?;
    let late = upload_and_finish(&setup.client, &photo).await?;
    fs::write(barrier, "")?;
    let done = setup.client.finished(&collection).await?;
    assert_eq!(done["status"], "succeeded", "{done:#}");
    assert_whole(&setup, &late, &photo).await
}

async fn upload_during_removal(
    setup: RemovalSetup<'_>,
    step: &str,
    barrier: &Path,
    gc: bool,
) -> Result<()> {
    let result = if gc {
        upload_during_gc(setup, step, barrier).await
    } else {
        upload_during_deletion(setup, step, barrier).await
    };
    result.with_context(|| format!("at {step}, gc: {gc}"))
}

/// Stores an old blob that no image uses.
pub(super) fn store_orphan(blobs: &Path, photo: &[u8]) -> Result<()> {
    let hash = safelight_domain::ContentHash::of(photo).to_string();
    let folder = blobs.join("blobs").join(&hash[..2]);
    fs::create_dir_all(&folder)?;
    let path = folder.join(hash);
    fs::write(&path, photo)?;
    let two_hours_ago = SystemTime::now() - Duration::from_hours(2);
    fs::File::options().append(true).open(path)?.set_modified(two_hours_ago)?;
    Ok(())
}

/// Promise: an upload of the same bytes keeps them, at whatever step of a removal it arrives: in one process.
#[tokio::test(flavor = "multi_thread")]
async fn equal_upload_keeps_its_bytes_during_removal() -> Result<()> {
    let folder = TempDir::new()?;
    for (step, gc) in removals() {
        let barrier = folder.path().join(step);
        let setup = test_server(SETTINGS)?;
        let point = format!("{step}=until {}", barrier.display());
        let (remover, client) = setup.start(&[fail_point(&point)])?;
        let blobs = setup.data().join("blobs");
        let setup = RemovalSetup { client, remover, blobs, audit: setup.audit() };
        upload_during_removal(setup, step, &barrier, gc).await?;
    }
    Ok(())
}

/// Steps of an upload: its bytes are complete and not named; named and not recorded; recorded, and the upload did not
/// look yet whether they are still there.
const UPLOAD_STEPS: [&str; 3] = ["upload.checked", "upload.stored", "upload.recorded"];

/// Holds a removal at one step and an equal upload at another, then ends the removal, then the upload.
async fn removal_ends_during_upload(step: &str, upload_step: &str, gc: bool) -> Result<()> {
    let (folder, setup) = (TempDir::new()?, test_server(SETTINGS)?);
    let photo = pictures::jpeg(320, 240, 3)?;
    let first = {
        let (_server, client) = setup.start(&[])?;
        if gc { None } else { Some(upload_and_finish(&client, &photo).await?) }
    };
    if gc {
        store_orphan(&setup.data().join("blobs"), &photo)?;
    }
    let barrier = |step: &str| folder.path().join(step);
    let until = |step: &str| format!("{step}=until {}", barrier(step).display());
    let points = format!("{};{}", until(step), until(upload_step));
    let (mut remover, client) = setup.start(&[fail_point(&points)])?;
    let removal = match &first {
        Some(first) => delete(&client, first).await?,
        None => client.start_backfill(&json!({ "kind": "gc", "force": true })).await?,
    };
    block_in_place(|| remover.wait_for_output(&format!("fail point {step}"), LIMIT))?;
    let upload = tokio::spawn({
        let (client, photo) = (client.clone(), photo.clone());
        async move { client.upload(photo).await }
    });
    block_in_place(|| remover.wait_for_output(&format!("fail point {upload_step}"), LIMIT))?;
    fs::write(barrier(step), "")?;
    let done = client.finished(&removal).await?;
    assert_eq!(done["status"], "succeeded", "{done:#}");
    fs::write(barrier(upload_step), "")?;
    let late = client.finished(&upload.await??).await?;
    assert_eq!(late["status"], "succeeded", "{late:#}");
    let blobs = setup.data().join("blobs");
    let setup = RemovalSetup { client, remover, blobs, audit: setup.audit() };
    assert_whole(&setup, &late, &photo).await
}

/// Promise: an upload keeps its bytes, at whatever step it is when a removal of the same bytes ends.
#[tokio::test(flavor = "multi_thread")]
async fn upload_keeps_its_bytes_if_equal_removal_ends_meanwhile() -> Result<()> {
    for (step, gc) in removals() {
        for upload_step in UPLOAD_STEPS {
            let held = removal_ends_during_upload(step, upload_step, gc).await;
            held.with_context(|| format!("removal at {step}, upload at {upload_step}"))?;
        }
    }
    Ok(())
}

/// The same promise on a fleet with an object store.
#[tokio::test(flavor = "multi_thread")]
async fn equal_upload_keeps_its_bytes_during_removal_on_fleet() -> Result<()> {
    let folder = TempDir::new()?;
    for (step, gc) in removals() {
        let barrier = folder.path().join(step);
        let cluster = test_cluster(1, 0, SETTINGS).await?;
        let point = format!("{step}=until {}", barrier.display());
        let remover = cluster.start_node(&["worker"], &[fail_point(&point)])?;
        let client = cluster.client()?;
        let audit = Audit { broker: None, ..cluster.audit()? };
        let setup =
            RemovalSetup { client, remover, blobs: cluster.fleet.s3.bucket_folder(), audit };
        upload_during_removal(setup, step, &barrier, gc).await?;
    }
    Ok(())
}

/// Promise: two removals of the same bytes that overlap do not take those of an equal upload. A bucket copies before it
/// deletes, so each removal has a copy of its own.
#[tokio::test(flavor = "multi_thread")]
async fn overlapping_removals_keep_bytes_of_equal_upload() -> Result<()> {
    let folder = TempDir::new()?;
    let barrier = folder.path().join("barrier");
    let cluster = test_cluster(1, 0, &[("SAFELIGHT_METADATA_CACHE_MS", "0")]).await?;
    let client = cluster.client()?;
    let photo = pictures::jpeg(320, 240, 1)?;
    let mut deletions = Vec::new();
    for _ in 0..2 {
        let task = client.upload(photo.clone()).await?;
        deletions.push(delete(&client, &task).await?);
    }
    // The first one has copied the bytes, and did not delete them yet.
    let point = format!("blobs.copied=until {}", barrier.display());
    let mut remover = cluster.start_node(&["worker"], &[fail_point(&point)])?;
    block_in_place(|| remover.wait_for_output("fail point blobs.copied", LIMIT))?;
    // The other one has decided about its own copy, and waits for the first one's.
    eventually("the other removal waits", async || {
        for deletion in &deletions {
            let id = deletion["id"].as_str().context("an id")?;
            if client.task(id).await?["jobs"][0]["error"]["code"] == "store_unavailable" {
                return Ok(true);
            }
        }
        Ok(false)
    })
    .await?;
    let late = client.upload(photo.clone()).await?;
    fs::write(&barrier, "")?;
    for deletion in &deletions {
        let done = client.finished(deletion).await?;
        assert_eq!(done["status"], "succeeded", "{done:#}");
    }
    let late = client.finished(&late).await?;
    let audit = Audit { broker: None, ..cluster.audit()? };
    let setup = RemovalSetup { client, remover, blobs: cluster.fleet.s3.bucket_folder(), audit };
    assert_whole(&setup, &late, &photo).await
}

/// Promise: at whatever step the process crashes, a deletion ends, nothing is left, and its receipt is
/// complete.
#[tokio::test(flavor = "multi_thread")]
async fn deletion_survives_crash_at_every_step() -> Result<()> {
    let steps = ["delete.started", "removal.looked", "removal.moved", "removal.decided"];
    for step in steps.into_iter().chain(["delete.removed", "delete.purged", "worker.worked"]) {
        let setup = test_server(SETTINGS)?;
        let photo = pictures::jpeg(320, 240, 1)?;
        let task = {
            let (_server, client) = setup.start(&[])?;
            upload_and_finish(&client, &photo).await?
        };
        let deletion = {
            let (mut server, client) = setup.start(&[fail_point(&format!("{step}=kill"))])?;
            let deletion = delete(&client, &task).await?;
            wait_until_killed(&mut server).with_context(|| step.to_owned())?;
            deletion
        };
        let (_server, client) = setup.start(&[])?;
        let done = client.finished(&deletion).await?;
        let receipt = &done["receipt"];
        assert_eq!(done["status"], "succeeded", "after {step}: {done:#}");
        assert_eq!(receipt["original_bytes"], photo.len(), "after {step}: {done:#}");
        assert_eq!(receipt["renditions"].as_array().map(Vec::len), Some(3), "after {step}");
        let image = task["image"]["url"].as_str().context("a URL")?;
        assert_eq!(client.get(image).await?.status(), StatusCode::GONE);
        setup.audit().run(&Ledger::default()).await?.clean().with_context(|| step.to_owned())?;
    }
    Ok(())
}

/// Steps of a thumbnail job after which renditions, or some of them, are stored and not recorded.
const THUMBNAIL_STEPS: [&str; 3] = ["thumbnail.rendered", "thumbnail.stored", "worker.worked"];

/// Promise: an image that is deleted while its renditions are stored, or by a worker that then dies, leaves no file,
/// and its receipt says so.
#[tokio::test(flavor = "multi_thread")]
async fn deletion_during_thumbnails_leaves_no_file() -> Result<()> {
    let folder = TempDir::new()?;
    for step in THUMBNAIL_STEPS {
        for crash in [false, true] {
            let at = || format!("at {step}, crash: {crash}");
            let setup = test_server(SETTINGS)?;
            let barrier = folder.path().join(format!("{step}-{crash}"));
            let point = format!("{step}=until {}", barrier.display());
            let (mut server, mut client) = setup.start(&[fail_point(&point)])?;
            let photo = pictures::jpeg(320, 240, 1)?;
            let task = client.upload(photo.clone()).await?;
            block_in_place(|| server.wait_for_output(&format!("fail point {step}"), LIMIT))?;
            let deletion = delete(&client, &task).await?;
            if crash {
                block_in_place(|| server.kill())?;
                drop(server);
                (server, client) = setup.start(&[])?;
            } else {
                fs::write(&barrier, "")?;
            }
            let done = client.finished(&deletion).await.with_context(at)?;
            assert_eq!(done["status"], "succeeded", "{}: {done:#}", at());
            assert_eq!(done["receipt"]["original_bytes"], photo.len(), "{}: {done:#}", at());
            assert!(done["receipt"]["removed_at"].is_string(), "{}: {done:#}", at());
            let left = files(&setup.data().join("blobs"))?;
            assert!(left.is_empty(), "{}: {left:?}", at());
            setup.audit().run(&Ledger::default()).await?.clean().with_context(at)?;
            drop(server);
        }
    }
    Ok(())
}

/// The same promise on a fleet: another worker takes over the job.
#[tokio::test(flavor = "multi_thread")]
async fn another_worker_finishes_deletion_after_crash() -> Result<()> {
    let cluster = test_cluster(1, 0, SETTINGS).await?;
    let client = cluster.client()?;
    let mut crashing = cluster.start_node(&["worker"], &[fail_point("removal.moved=kill")])?;
    let (deleted, kept) = (pictures::jpeg(320, 240, 1)?, pictures::jpeg(320, 240, 2)?);
    let (deleted_task, kept_task) =
        (upload_and_finish(&client, &deleted).await?, upload_and_finish(&client, &kept).await?);
    let before = fetch_all(&client, &kept_task).await?;
    let deletion = delete(&client, &deleted_task).await?;
    wait_until_killed(&mut crashing)?;
    let _replacement = cluster.start_node(&["worker"], &[])?;
    let done = client.finished(&deletion).await?;
    assert_eq!(done["status"], "succeeded", "{done:#}");
    assert_eq!(fetch_all(&client, &kept_task).await?, before);
    let ledger = Ledger::default();
    ledger.record(&kept_task, &kept)?;
    cluster.audit()?.run(&ledger).await?.clean()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_delete_images_and_collect_garbage() -> Result<()> {
    let setup = test_server(SETTINGS)?;
    let (server, client) = setup.start(&[])?;
    let photo = pictures::jpeg(320, 240, 1)?;
    let task = upload_and_finish(&client, &photo).await?;
    store_orphan(&setup.data().join("blobs"), b"no image has it")?;
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
    assert!(planned.stdout.contains("would be refused: 1 of 1 originals"), "{planned:#?}");
    let refused = command(&["backfill", "gc", "--follow"]).await?;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("error: nothing was moved: 1 of 1 originals"), "{refused:#?}");
    assert!(refused.stderr.contains("\nhint: ") && refused.stderr.contains("--force"));
    let report = setup.data().join("report.ndjson");
    let file = report.to_string_lossy();
    command(&["backfill", "gc", "--force", "--follow", "--report", &file]).await?.success()?;
    let lines = fs::read_to_string(&report)?;
    let line: Value = serde_json::from_str(lines.trim())?;
    assert_eq!((&line["outcome"], &line["detail"]), (&"succeeded".into(), &"15 bytes".into()));
    assert_eq!(command(&["backfill", "gc", "--force", "--take-back"]).await?.code, Some(2));
    setup.audit().run(&Ledger::default()).await?.clean()?;
    Ok(())
}
