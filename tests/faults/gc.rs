//! The collection of garbage with a database that knows too little, and with crashes in every step.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use safelight_testing::{
    audit::Ledger,
    client::{Client, TestClient as _},
    pictures,
    server::{Finished, run, safelight},
    test_server::TestServer,
    wait::eventually,
};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::{
    LIMIT, binary,
    delete::{fetch_all, store_orphan, upload_and_finish},
    fail_point, test_server, wait_until_killed,
};

/// Unreferenced bytes become garbage after a second; the janitor looks twice a second.
const SETTINGS: &[(&str, &str)] = &[
    ("SAFELIGHT_METADATA_CACHE_MS", "0"),
    ("SAFELIGHT_STAGED_GRACE_MS", "1000"),
    ("SAFELIGHT_RECOVERY_GRACE_MS", "3600000"),
];

/// Steps of a collection: a page was counted; no image was found before the move; the object was moved; no image
/// was found after it.
const STEPS: [&str; 4] = ["gc.surveyed", "gc.looked", "gc.moved", "gc.decided"];

/// The files of a stopped server's database.
fn database_files(at: &TestServer) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(at.data())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("safelight.db") {
            files.push(path);
        }
    }
    Ok(files)
}

/// Moves a stopped server's database to `folder`.
fn move_database_to(at: &TestServer, folder: &Path) -> Result<()> {
    copy_database_to(at, folder)?;
    for path in database_files(at)? {
        fs::remove_file(path)?;
    }
    Ok(())
}

fn copy_database_to(at: &TestServer, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for path in database_files(at)? {
        fs::copy(&path, folder.join(path.file_name().context("a name")?))?;
    }
    Ok(())
}

/// Replaces a stopped server's database by the copy in `folder`.
fn restore_database_from(at: &TestServer, folder: &Path) -> Result<()> {
    for path in database_files(at)? {
        fs::remove_file(path)?;
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        fs::copy(&path, at.data().join(path.file_name().context("a name")?))?;
    }
    Ok(())
}

/// Makes all files old enough to be garbage.
fn make_old(folder: &Path) -> Result<()> {
    let two_hours_ago = SystemTime::now() - Duration::from_hours(2);
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            make_old(&path)?;
        } else {
            fs::File::options().append(true).open(path)?.set_modified(two_hours_ago)?;
        }
    }
    Ok(())
}

/// The number of files in a folder and its subfolders.
fn count_files(folder: &Path) -> Result<usize> {
    let mut count = 0;
    let Ok(entries) = fs::read_dir(folder) else { return Ok(0) };
    for entry in entries {
        let path = entry?.path();
        count += if path.is_dir() { count_files(&path)? } else { 1 };
    }
    Ok(count)
}

fn originals(at: &TestServer) -> Result<usize> {
    count_files(&at.data().join("blobs/blobs"))
}

fn quarantined(at: &TestServer) -> Result<usize> {
    count_files(&at.data().join("blobs/quarantine"))
}

/// Runs `safelight backfill gc` with options.
fn gc(url: &str, options: &[&str]) -> Result<Finished> {
    let url = [("SAFELIGHT_URL".to_owned(), url.to_owned())];
    let args = [&["backfill", "gc", "--json", "--follow"], options].concat();
    block_in_place(|| run(safelight(binary(), args, &url), LIMIT))
}

async fn finish_gc(client: &Client, request: Value) -> Result<Value> {
    client.finished(&client.start_backfill(&request).await?).await
}

/// All bytes of some images: none may differ after what a test does.
async fn all_bytes(client: &Client, tasks: &[Value]) -> Result<Vec<Vec<Bytes>>> {
    let mut all = Vec::new();
    for task in tasks {
        all.push(fetch_all(client, task).await?);
    }
    Ok(all)
}

/// A server that knows two of its four images, because its database was replaced by an older copy.
struct Outdated {
    setup: TestServer,
    /// The newest database.
    newest: tempfile::TempDir,
    tasks: Vec<Value>,
    bytes: Vec<Vec<Bytes>>,
}

impl Outdated {
    async fn new() -> Result<Self> {
        let (setup, older) = (test_server(SETTINGS)?, tempfile::TempDir::new()?);
        let (newest, mut tasks) = (tempfile::TempDir::new()?, Vec::new());
        for number in [1, 2] {
            let (_server, client) = setup.start(&[])?;
            tasks.push(upload_and_finish(&client, &pictures::jpeg(320, 240, number)?).await?);
        }
        copy_database_to(&setup, older.path())?;
        let bytes = {
            let (_server, client) = setup.start(&[])?;
            for number in [3, 4] {
                tasks.push(upload_and_finish(&client, &pictures::jpeg(320, 240, number)?).await?);
            }
            all_bytes(&client, &tasks).await?
        };
        move_database_to(&setup, newest.path())?;
        restore_database_from(&setup, older.path())?;
        make_old(&setup.data().join("blobs"))?;
        Ok(Self { setup, newest, tasks, bytes })
    }
}

/// Promise: an older copy of the database does not destroy what was stored since. A collection is refused; if it is
/// forced, it can be taken back.
#[tokio::test(flavor = "multi_thread")]
async fn collection_with_older_database_is_refused_and_can_be_taken_back() -> Result<()> {
    let Outdated { setup, newest, tasks, bytes } = Outdated::new().await?;
    {
        let (server, _client) = setup.start(&[])?;
        let planned = gc(server.url(), &["--dry-run"])?.success()?;
        let plan: Value = serde_json::from_str(&planned.stdout)?;
        assert!(plan["backfill"]["survey"]["refusal"].is_string(), "{plan:#}");
        let refused = gc(server.url(), &[])?;
        assert_eq!(refused.code, Some(1), "{refused:#?}");
        assert!(refused.stderr.contains("nothing was moved"), "{refused:#?}");
        assert_eq!((originals(&setup)?, quarantined(&setup)?), (4, 0));

        let forced = gc(server.url(), &["--force"])?.success()?;
        let forced: Value = serde_json::from_str(&forced.stdout)?;
        assert_eq!((originals(&setup)?, quarantined(&setup)?), (2, 8), "{forced:#}");

        let listed = gc(server.url(), &["--take-back", "--dry-run"])?.success()?;
        let listed: Value = serde_json::from_str(&listed.stdout)?;
        assert_eq!(listed["backfill"]["images"]["planned"], 8, "{listed:#}");
        let run = forced["id"].as_str().context("an id")?;
        gc(server.url(), &["--take-back", run])?.success()?;
        assert_eq!((originals(&setup)?, quarantined(&setup)?), (4, 0));
    }
    restore_database_from(&setup, newest.path())?;
    let (_server, client) = setup.start(&[])?;
    assert_eq!(all_bytes(&client, &tasks).await?, bytes);
    Ok(())
}

/// Promise: once the right database is back, what it refers to returns from the quarantine by itself.
#[tokio::test(flavor = "multi_thread")]
async fn quarantined_images_return_with_their_database() -> Result<()> {
    let Outdated { setup, newest, tasks, bytes } = Outdated::new().await?;
    {
        let (server, _client) = setup.start(&[])?;
        gc(server.url(), &["--force"])?.success()?;
        assert_eq!((originals(&setup)?, quarantined(&setup)?), (2, 8));
    }
    restore_database_from(&setup, newest.path())?;
    let (_server, client) = setup.start(&[])?;
    eventually("the quarantine is empty", async || Ok(quarantined(&setup)? == 0)).await?;
    assert_eq!(all_bytes(&client, &tasks).await?, bytes);
    Ok(())
}

/// Promise: a collection that crashes at any step continues, loses nothing that is needed, and moves the rest once.
#[tokio::test(flavor = "multi_thread")]
async fn collection_survives_crash_at_every_step() -> Result<()> {
    for step in STEPS {
        let setup = test_server(SETTINGS)?;
        let photo = pictures::jpeg(320, 240, 1)?;
        let (task, bytes) = {
            let (_server, client) = setup.start(&[])?;
            let task = upload_and_finish(&client, &photo).await?;
            let bytes = fetch_all(&client, &task).await?;
            (task, bytes)
        };
        store_orphan(&setup.data().join("blobs"), b"no image has it")?;
        let collection = {
            let (mut server, client) = setup.start(&[fail_point(&format!("{step}=kill"))])?;
            let request = json!({ "kind": "gc", "force": true });
            let collection = client.start_backfill(&request).await?;
            wait_until_killed(&mut server).with_context(|| step.to_owned())?;
            collection
        };
        let (_server, client) = setup.start(&[])?;
        let done = client.finished(&collection).await?;
        assert_eq!(done["status"], "succeeded", "after {step}: {done:#}");
        assert_eq!((originals(&setup)?, quarantined(&setup)?), (1, 1), "after {step}");
        assert_eq!(fetch_all(&client, &task).await?, bytes, "after {step}");
        let ledger = Ledger::default();
        ledger.record(&task, &photo)?;
        setup.audit().run(&ledger).await?.clean().with_context(|| step.to_owned())?;
    }
    Ok(())
}

/// Promise: a take-back that crashes continues.
#[tokio::test(flavor = "multi_thread")]
async fn take_back_survives_crash() -> Result<()> {
    let setup = test_server(SETTINGS)?;
    let take_back = {
        let (mut server, client) = setup.start(&[fail_point("gc.taken_back=kill")])?;
        for number in 0..3_u8 {
            store_orphan(&setup.data().join("blobs"), &[number; 15])?;
        }
        let done = finish_gc(&client, json!({ "kind": "gc", "force": true })).await?;
        assert_eq!(done["backfill"]["images"]["succeeded"], 3, "{done:#}");
        let request = json!({ "kind": "gc", "take_back": true });
        let take_back = client.start_backfill(&request).await?;
        wait_until_killed(&mut server)?;
        take_back
    };
    let (_server, client) = setup.start(&[])?;
    let done = client.finished(&take_back).await?;
    assert_eq!(done["status"], "succeeded", "{done:#}");
    assert_eq!((originals(&setup)?, quarantined(&setup)?), (3, 0));
    Ok(())
}
