//! Cancelled uploads: only bytes that other images share are left.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use safelight_blobs::{BlobKey, StagedUpload};
use safelight_domain::{JOB_VERSION, JobKind, JobNotice, Status, WorkerId};
use safelight_store::{Claim, Effect, NewUpload, Outcome, QueueCapacity, Settled};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
};

use super::test_worker::{TestWorker, eventually, eventually_some, facts, job, picture};

#[tokio::test]
async fn cancelled_upload_leaves_no_bytes() {
    let test = TestWorker::new(&[]).await;
    let (queued, stored) =
        (test.upload_staged(b"queued").await, stored_upload(&test, b"stored").await);
    for upload in [&queued, &stored] {
        assert!(test.parts.store.cancel(upload.task).await.expect("cancel"));
    }
    let _janitor = test.janitor();
    let staged = test.blob_path(&BlobKey::Incoming(queued.image));
    let blob = test.blob_path(&BlobKey::Blob(stored.sha256));
    eventually("the janitor has removed everything", async || {
        let discarded = test.parts.store.discarded(9, Duration::ZERO).await.expect("discarded");
        !staged.exists() && !blob.exists() && discarded.is_empty()
    })
    .await;
    assert_eq!(test.trash_count(), 0);
}

/// A proxy that answers every request with the current status and records the request lines.
pub(super) async fn proxy() -> (String, watch::Sender<u16>, Arc<Mutex<Vec<String>>>) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (status, current) = watch::channel(503);
    let requests: Arc<Mutex<Vec<String>>> = Arc::default();
    let recorded = requests.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n")
                && stream.read_buf(&mut head).await.is_ok_and(|n| n > 0)
            {}
            let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
            recorded.lock().expect("a lock").push(line);
            let status = *current.borrow();
            let response =
                format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(response.as_bytes()).await;
        }
    });
    (url, status, requests)
}

#[tokio::test]
async fn proxies_are_purged_before_cancelled_bytes_are_removed() {
    let (url, status, requests) = proxy().await;
    let urls = format!("[\"{url}\"]");
    let keys = [("SAFELIGHT_PURGE_URLS", urls.as_str()), ("SAFELIGHT_METADATA_CACHE_MS", "0")];
    let test = TestWorker::new(&keys).await;
    let upload = stored_upload(&test, b"secret").await;
    test.parts.store.cancel(upload.task).await.expect("cancel");
    // A delivery node may still have the image in its metadata cache, so nothing is removed yet.
    test.discarded_images().remove().await.expect("remove nothing");
    assert!(requests.lock().expect("a lock").is_empty());
    let remove = async || test.discarded_images().remove().await.err();
    let error = eventually_some("the image is old enough", remove).await;
    assert!(error.to_string().contains("503"), "{error}");
    assert!(
        test.blob_path(&BlobKey::Blob(upload.sha256)).exists(),
        "the bytes stay until the proxies are purged"
    );
    status.send_replace(404);
    requests.lock().expect("a lock").clear();
    test.discarded_images().remove().await.expect("remove");
    let mut requests = requests.lock().expect("a lock").clone();
    requests.sort();
    let path = |end: &str| format!("PURGE /images/{}{end} HTTP/1.1", upload.image);
    assert_eq!(requests, [path(""), path("/large"), path("/medium"), path("/small")]);
    assert!(!test.blob_path(&BlobKey::Blob(upload.sha256)).exists());
    assert!(test.parts.store.discarded(9, Duration::ZERO).await.expect("discarded").is_empty());
}

#[tokio::test]
async fn cancellation_keeps_bytes_of_equal_image() {
    let test = TestWorker::new(&[]).await;
    let (first, second) =
        (stored_upload(&test, b"the same").await, stored_upload(&test, b"the same").await);
    test.parts.store.cancel(first.task).await.expect("cancel");
    test.discarded_images().remove().await.expect("remove");
    assert_eq!(read_blob(&test, &second).await, b"the same");
    assert!(test.parts.store.discarded(9, Duration::ZERO).await.expect("discarded").is_empty());
}

/// Between the reference check and the removal, an equal upload could lose its bytes.
#[tokio::test]
async fn equal_upload_during_removal_keeps_its_bytes() {
    let test = TestWorker::new(&[]).await;
    let first = stored_upload(&test, b"the same").await;
    test.parts.store.cancel(first.task).await.expect("cancel");
    // A janitor found no other image with this content. Then an equal upload is stored, …
    let late = stored_upload(&test, b"the same").await;
    // … and only then the janitor moves the bytes to the trash, and dies.
    let keys = [BlobKey::Blob(first.sha256)];
    test.parts.blobs.trash(&keys).await.expect("move");
    test.parts.store.mark_removed(first.image).await.expect("mark");
    assert_eq!(test.trash_count(), 1);

    test.remover().resume().await.expect("resume");
    assert_eq!(read_blob(&test, &late).await, b"the same");
    assert_eq!(test.trash_count(), 0);
}

/// A janitor decides that no image needs the bytes, and is delayed before it removes them. Meanwhile an equal
/// upload is stored, and another janitor moves its bytes to the trash.
#[tokio::test]
async fn janitor_keeps_trash_that_another_janitor_moved() {
    let test = TestWorker::new(&[]).await;
    let blobs = &test.parts.blobs;
    let first = stored_upload(&test, b"the same").await;
    test.parts.store.cancel(first.task).await.expect("cancel");
    let keys = [BlobKey::Blob(first.sha256)];
    let condemned = blobs.trash(&keys).await.expect("move");
    assert!(test.parts.store.forget_blob(&first.sha256).await.expect("forget"));

    let late = stored_upload(&test, b"the same").await;
    blobs.trash(&keys).await.expect("the other janitor moves");
    blobs.delete_trashed(condemned).await.expect("the delayed janitor removes");
    test.remover().resume().await.expect("the other janitor decides");
    assert_eq!(read_blob(&test, &late).await, b"the same");
    assert_eq!(test.trash_count(), 0);
}

#[tokio::test]
async fn trash_of_dead_janitor_is_removed() {
    let test = TestWorker::new(&[]).await;
    let upload = stored_upload(&test, b"bytes").await;
    test.parts.store.cancel(upload.task).await.expect("cancel");
    let keys = [BlobKey::Blob(upload.sha256), BlobKey::Incoming(upload.image)];
    test.parts.blobs.trash(&keys).await.expect("move");
    assert_eq!(test.trash_count(), 1, "only existing objects are moved");
    test.discarded_images().remove().await.expect("remove");
    assert_eq!(test.trash_count(), 0);
    assert!(!test.blob_path(&BlobKey::Blob(upload.sha256)).exists());
}

#[tokio::test]
async fn result_of_cancelled_running_job_is_discarded() {
    let test = TestWorker::new(&[("SAFELIGHT_LEASE_MS", "300")]).await;
    let upload = test.upload(&picture()).await;
    let notices = test
        .parts
        .store
        .take_unpublished(&QueueCapacity::each(9), Duration::from_mins(1))
        .await
        .expect("take");
    let lease = claim(&test, &notices.due, JobKind::Thumbnail).await;
    test.parts.store.cancel(upload.task).await.expect("cancel");
    let rendered = Outcome::Succeeded(Vec::new());
    let settled = test.parts.store.settle(&lease, &rendered).await;
    assert_eq!(settled.expect("settle"), Settled::Stale);
    let task = test.wait_until_ended(upload.task).await;
    assert_eq!(task.status, Status::Cancelled);
    assert_eq!(job(&task, JobKind::Thumbnail).status, Status::Cancelled);
}

/// An upload whose write job has succeeded, so its bytes are in a blob.
pub(super) async fn stored_upload(test: &TestWorker, bytes: &[u8]) -> NewUpload {
    let upload = test.upload(bytes).await;
    let (image, sha256) = (upload.image, upload.sha256);
    let staged = StagedUpload { image, sha256, bytes: upload.bytes };
    test.parts.blobs.promote(&staged).await.expect("promote");
    let (id, kind) = upload.jobs[0];
    let notice = JobNotice { job: id, kind, lane: upload.lane, generation: 0, trace: None };
    let lease = claim(test, &[notice], JobKind::Write).await;
    let settled = test
        .parts
        .store
        .settle(&lease, &Outcome::Succeeded(vec![Effect::StoredBlob(facts())]))
        .await;
    assert_eq!(settled.expect("settle"), Settled::Applied);
    upload
}

async fn claim(test: &TestWorker, notices: &[JobNotice], kind: JobKind) -> safelight_store::Lease {
    let notice = notices.iter().find(|notice| notice.kind == kind).expect("a notice of each kind");
    let lease = Duration::from_millis(300);
    match test.parts.store.claim(notice, false, WorkerId::new(), lease, JOB_VERSION).await {
        Ok(Claim::Run(job)) => job.lease,
        other => panic!("{other:?}"),
    }
}

pub(super) async fn read_blob(test: &TestWorker, upload: &NewUpload) -> Vec<u8> {
    let key = BlobKey::Blob(upload.sha256);
    test.parts.blobs.read(&key, 1000).await.expect("the blob exists").to_vec()
}
