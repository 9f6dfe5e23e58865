//! Stored bytes that are missing or damaged: renditions are made again, originals are never delivered wrong.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::Path,
    time::{Duration, SystemTime},
};

use axum::http::{Method, Request};
use futures::future::{join, join_all};
use safelight_blobs::BlobKey;
use safelight_domain::{
    ContentHash, ErrorCode, Failure, Image, ImageFormat, ImageId, JobKind, Status, TaskId, TaskKind,
};
use safelight_store::{Effect, Outcome, PageRequest, TaskFilter};

use crate::app::{TestApp, eventually, fake_png, image_id, task_id};

/// Memory takes no object, so that every read looks into the store.
const NO_MEMORY: &[(&str, &str)] = &[("SAFELIGHT_MEMORY_CACHE_BYTES", "0")];

/// An image whose jobs are done, with the file of its rendition `small`.
struct Stored {
    id: ImageId,
    image: Image,
    small: BlobKey,
}

impl Stored {
    async fn new(app: &TestApp, seed: u8, rendition: &'static [u8]) -> Self {
        let document = app.upload(fake_png(5_000, seed)).await;
        let task = task_id(&document);
        let image = app.write(task).await;
        app.render(task, rendition).await;
        let made = app.rendition("small", ImageFormat::Jpeg, rendition);
        let small = BlobKey::rendition(image.sha256, &made);
        Self { id: image_id(&document), image, small }
    }

    fn path(&self) -> String {
        format!("/images/{}/small", self.id)
    }
}

/// The tasks of requests for renditions, newest first.
async fn requests(app: &TestApp) -> Vec<(TaskId, Status)> {
    let filter = TaskFilter { kind: Some(TaskKind::Rendition), ..TaskFilter::default() };
    let page = PageRequest { before: None, limit: 100 };
    let tasks = app.parts.store.list_tasks(&filter, &page).await.expect("tasks").tasks;
    tasks.into_iter().map(|task| (task.id, task.status)).collect()
}

/// Waits for a request for renditions whose job nobody has run.
async fn open_request(app: &TestApp) -> TaskId {
    let mut found = None;
    eventually(async || {
        let open = |(_, status): &(TaskId, Status)| *status == Status::Queued;
        found = requests(app).await.into_iter().find(open).map(|(task, _)| task);
        found.is_some()
    })
    .await;
    found.expect("a task")
}

#[tokio::test]
async fn damaged_rendition_is_made_again_once_for_all_readers() {
    const RIGHT: &[u8] = b"the small image";
    let damages: [fn(&Path); 4] = [
        |file| fs::remove_file(file).expect("removed"),
        |file| fs::write(file, &RIGHT[..7]).expect("cut short"),
        |file| fs::write(file, vec![0; RIGHT.len()]).expect("zeroed"),
        |file| fs::write(file, b"another picture, which is longer").expect("replaced"),
    ];
    let app = TestApp::configured(NO_MEMORY).await;
    for (seed, damage) in (1..).zip(damages) {
        let stored = Stored::new(&app, seed, RIGHT).await;
        let (path, file) = (stored.path(), app.blob_file(&stored.small));
        assert_eq!(app.get(&path).await.body, RIGHT);
        damage(&file);
        let readers = join_all((0..50).map(|_| app.get(&path)));
        let make = async { app.render(open_request(&app).await, RIGHT).await };
        let (answers, ()) = join(readers, make).await;
        for answer in answers {
            assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
            assert_eq!(answer.body, RIGHT);
            assert_eq!(answer.header("etag"), format!("\"{}\"", ContentHash::of(RIGHT)));
        }
        assert_eq!(requests(&app).await.len(), usize::from(seed), "one job for all readers");
        assert_eq!(fs::read(&file).expect("the file"), RIGHT);
    }
}

#[tokio::test]
async fn rendition_made_again_may_have_other_bytes() {
    let app = TestApp::configured(NO_MEMORY).await;
    let stored = Stored::new(&app, 1, b"by the old encoder").await;
    let (path, file) = (stored.path(), app.blob_file(&stored.small));
    let before = app.get(&path).await.header("etag").to_owned();
    fs::remove_file(&file).expect("removed");
    let request = Request::get(&path).header("range", "bytes=7-9").header("if-none-match", "\"x\"");
    let make = async { app.render(open_request(&app).await, b"by the new encoder").await };
    let (part, ()) = join(app.send(request, ""), make).await;
    assert_eq!((part.status.as_u16(), part.text().as_str()), (206, "new"));
    assert_eq!(part.header("etag"), format!("\"{}\"", ContentHash::of(b"by the new encoder")));
    assert_ne!(part.header("etag"), before);
    let head = app.send(Request::builder().method(Method::HEAD).uri(&path), "").await;
    assert_eq!((head.status.as_u16(), head.header("etag")), (200, part.header("etag")));
    assert_eq!(app.get(&path).await.text(), "by the new encoder");
}

#[tokio::test]
async fn rendition_of_a_lost_original_is_a_clear_problem() {
    let app = TestApp::configured(NO_MEMORY).await;
    let stored = Stored::new(&app, 1, b"small").await;
    let (file, original) =
        (app.blob_file(&stored.small), app.blob_file(&BlobKey::Blob(stored.image.sha256)));
    fs::remove_file(&file).expect("removed");
    let kept = fs::read(&original).expect("the original");
    fs::remove_file(&original).expect("removed");
    let problem = app.get(&stored.path()).await.assert_problem(500, "blob_damaged");
    assert!(problem["hint"].as_str().is_some_and(|hint| hint.contains("again")), "{problem}");
    assert_eq!(requests(&app).await, [], "nothing could make it");
    let document = app.get(&format!("/v1/images/{}", stored.id)).await.json();
    assert!(document["renditions"]["small"].is_object(), "the record stays: {document}");

    // An original of which only the job finds out that it is damaged.
    fs::write(&original, vec![0; kept.len()]).expect("damaged");
    let fail = async {
        let failure = Failure::new(ErrorCode::BlobDamaged, "the original is damaged");
        app.fail(open_request(&app).await, JobKind::Thumbnail, failure).await;
    };
    let (path, id) = (stored.path(), stored.id);
    let problem = join(app.get(&path), fail).await.0.assert_problem(404, "image_failed");
    assert_eq!(problem["reason"], "blob_damaged");
    assert!(problem["hint"].as_str().is_some_and(|hint| hint.contains("again")), "{problem}");

    // The same picture is uploaded again.
    let document = app.upload(kept).await;
    app.write(task_id(&document)).await;
    app.render(task_id(&document), b"small").await;
    assert_eq!(app.get(&format!("/images/{id}/small")).await.body, b"small");
}

#[tokio::test]
async fn store_that_returns_wrong_bytes_is_not_written_to_without_end() {
    let app = TestApp::configured(NO_MEMORY).await;
    let stored = Stored::new(&app, 1, b"small").await;
    let file = app.blob_file(&stored.small);
    fs::write(&file, b"wrong").expect("damaged");
    // The worker writes what is right, and the store keeps something else.
    let make = async {
        let task = open_request(&app).await;
        let (lease, _) = app.claim(task, JobKind::Thumbnail).await;
        let made = app.rendition("small", ImageFormat::Jpeg, b"small");
        let recorded = Effect::UpsertRenditions(vec![made]);
        app.settle(lease, Outcome::Succeeded(vec![recorded])).await;
    };
    let path = stored.path();
    join(app.get(&path), make).await.0.assert_problem(503, "store_unavailable");
    for _ in 0..3 {
        app.get(&path).await.assert_problem(503, "store_unavailable");
    }
    assert_eq!(requests(&app).await.len(), 1);
}

#[tokio::test]
async fn other_formats_of_a_preset_are_no_substitute() {
    let presets = r#"{ card = { size = 9, format = ["auto", "webp"] } }"#;
    let app = TestApp::configured(&[NO_MEMORY[0], ("SAFELIGHT_PRESETS", presets)]).await;
    let document = app.upload(fake_png(500, 1)).await;
    let task = task_id(&document);
    let stored = app.write(task).await;
    let make = async |task: TaskId| {
        let (lease, _) = app.claim(task, JobKind::Thumbnail).await;
        let mut made = Vec::new();
        for (format, bytes) in [(ImageFormat::Jpeg, "a larger JPEG"), (ImageFormat::Webp, "WebP")] {
            let one = app.rendition("card", format, bytes.as_bytes());
            let key = BlobKey::rendition(stored.sha256, &one);
            app.parts.blobs.put(&key, bytes.into()).await.expect("stored");
            made.push(one);
        }
        app.settle(lease, Outcome::Succeeded(vec![Effect::UpsertRenditions(made)])).await;
    };
    make(task).await;
    let webp = app.rendition("card", ImageFormat::Webp, b"WebP");
    app.parts.blobs.delete(&BlobKey::rendition(stored.sha256, &webp)).await.expect("lost");
    let path = format!("/images/{}/card", image_id(&document));
    let request = Request::get(&path).header("accept", "image/webp,*/*;q=0.8");
    let again = async { make(open_request(&app).await).await };
    let (answer, ()) = join(app.send(request, ""), again).await;
    assert_eq!((answer.header("content-type"), &*answer.text()), ("image/webp", "WebP"));
}

/// Changes one byte of a file in place. Its modification time moves on, as it does when it is written to later.
fn flip(file: &Path, at: u64) {
    let before = fs::read(file).expect("a file")[usize::try_from(at).expect("small")];
    let mut open = File::options().write(true).open(file).expect("a file");
    open.seek(SeekFrom::Start(at)).expect("sought");
    open.write_all(&[before ^ 1]).expect("written");
    open.set_modified(SystemTime::now() + Duration::from_secs(1)).expect("a modification time");
}

#[tokio::test]
async fn damaged_large_original_is_never_delivered() {
    const BYTES: usize = 3_000_000;
    let cut = |file: &Path, bytes: u64| {
        File::options().write(true).open(file).expect("a file").set_len(bytes).expect("cut short");
    };
    let damages: [&dyn Fn(&Path); 4] = [
        &|file| flip(file, BYTES as u64 / 2),
        &|file| flip(file, BYTES as u64 - 1),
        &|file| flip(file, 100),
        &|file| cut(file, BYTES as u64 - 1),
    ];
    let app = TestApp::configured(&[("SAFELIGHT_MEMORY_CACHE_BYTES", "1000000")]).await;
    for (seed, damage) in (1..).zip(damages) {
        // Damaged before it is read for the first time, and after it was read and found right.
        for was_read in [false, true] {
            let bytes = fake_png(BYTES, seed * 2 + u8::from(was_read));
            let document = app.upload(bytes.clone()).await;
            let stored = app.write(task_id(&document)).await;
            let key = BlobKey::Blob(stored.sha256);
            let path = format!("/images/{}", image_id(&document));
            if was_read {
                assert_eq!(app.get(&path).await.body, bytes);
            }
            damage(&app.blob_file(&key));
            for range in ["bytes=0-", "bytes=0-9", "bytes=1500000-1500009", "bytes=0-1,9-10"] {
                let part = app.send(Request::get(&path).header("range", range), "").await;
                part.assert_problem(500, "blob_damaged");
            }
            let problem = app.get(&path).await.assert_problem(500, "blob_damaged");
            assert!(problem["hint"].is_string(), "{problem}");
            app.parts.blobs.put(&key, bytes.clone().into()).await.expect("restored");
            assert_eq!(app.get(&path).await.body, bytes);
            let part = app.send(Request::get(&path).header("range", "bytes=-7"), "").await;
            assert_eq!(part.body, bytes[BYTES - 7..]);
        }
    }
}

#[tokio::test]
async fn store_that_is_not_mounted_is_unavailable_and_nothing_is_made_again() {
    let app = TestApp::configured(NO_MEMORY).await;
    let stored = Stored::new(&app, 1, b"small").await;
    let original = format!("/images/{}", stored.id);
    let volume = app.unmount_blobs();
    for path in [&original, &stored.path()] {
        let problem = app.get(path).await.assert_problem(503, "store_unavailable");
        assert_eq!(problem["retryable"], true);
    }
    assert_eq!(requests(&app).await, []);
    app.mount_blobs(&volume);
    assert_eq!(app.get(&original).await.body, fake_png(5_000, 1));
    assert_eq!(app.get(&stored.path()).await.body, b"small");
}

#[tokio::test]
async fn cached_bytes_are_served_while_the_store_is_not_mounted() {
    let app = TestApp::new().await;
    let stored = Stored::new(&app, 1, b"small").await;
    assert_eq!(app.get(&stored.path()).await.body, b"small");
    app.unmount_blobs();
    assert_eq!(app.get(&stored.path()).await.body, b"small");
    let cold = app.get(&format!("/images/{}", stored.id)).await;
    cold.assert_problem(503, "store_unavailable");
}
