//! Cancelled uploads: nothing is left of them but what other images share.

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

use super::test_worker::{TestWorker, facts, job, picture, within};

#[tokio::test]
async fn cancelled_upload_leaves_no_bytes() {
    let test = TestWorker::new(&[]).await;
    let (queued, written) = (test.upload(b"queued").await, written(&test, b"written").await);
    for upload in [&queued, &written] {
        assert!(test.parts.store.cancel(upload.task).await.expect("cancel"));
    }
    let _janitor = test.janitor();
    within("the janitor has passed", async {
        while test.path(&BlobKey::Incoming(queued.image)).exists()
            || test.path(&BlobKey::Blob(written.sha256)).exists()
            || !test.parts.store.discarded(9, Duration::ZERO).await.expect("discarded").is_empty()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(test.trash(), 0);
}

/// A proxy that answers every request with the status that was set, and notes its requests.
pub(super) async fn proxy() -> (String, watch::Sender<u16>, Arc<Mutex<Vec<String>>>) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (status, current) = watch::channel(503);
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let notes = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n")
                && stream.read_buf(&mut head).await.is_ok_and(|n| n > 0)
            {}
            let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
            notes.lock().expect("a lock").push(line);
            let status = *current.borrow();
            let answer =
                format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (url, status, asked)
}

#[tokio::test]
async fn proxies_are_purged_before_cancelled_bytes_are_removed() {
    let (url, status, asked) = proxy().await;
    let urls = format!("[\"{url}\"]");
    let keys = [("SAFELIGHT_PURGE_URLS", urls.as_str()), ("SAFELIGHT_METADATA_CACHE_MS", "0")];
    let test = TestWorker::new(&keys).await;
    let upload = written(&test, b"secret").await;
    test.parts.store.cancel(upload.task).await.expect("cancel");
    // At first a delivery node could still serve it to the proxy.
    test.discarded_images().remove().await.expect("nothing to do yet");
    assert!(asked.lock().expect("a lock").is_empty());
    let refused = within("the image is old enough", async {
        loop {
            match test.discarded_images().remove().await {
                Ok(()) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => return error,
            }
        }
    })
    .await;
    assert!(refused.to_string().contains("503"), "{refused}");
    assert!(test.path(&BlobKey::Blob(upload.sha256)).exists(), "removed before the proxy knew");
    status.send_replace(404);
    asked.lock().expect("a lock").clear();
    test.discarded_images().remove().await.expect("remove");
    let mut asked = asked.lock().expect("a lock").clone();
    asked.sort();
    let path = |end: &str| format!("PURGE /images/{}{end} HTTP/1.1", upload.image);
    assert_eq!(asked, [path(""), path("/large"), path("/medium"), path("/small")]);
    assert!(!test.path(&BlobKey::Blob(upload.sha256)).exists());
    assert!(test.parts.store.discarded(9, Duration::ZERO).await.expect("discarded").is_empty());
}

#[tokio::test]
async fn cancellation_keeps_bytes_of_equal_image() {
    let test = TestWorker::new(&[]).await;
    let (first, second) = (written(&test, b"the same").await, written(&test, b"the same").await);
    test.parts.store.cancel(first.task).await.expect("cancel");
    test.discarded_images().remove().await.expect("remove");
    assert_eq!(read(&test, &second).await, b"the same");
    assert!(test.parts.store.discarded(9, Duration::ZERO).await.expect("discarded").is_empty());
}

/// The moment between the look and the deletion, when an equal upload could lose its bytes.
#[tokio::test]
async fn equal_upload_during_removal_keeps_its_bytes() {
    let test = TestWorker::new(&[]).await;
    let first = written(&test, b"the same").await;
    test.parts.store.cancel(first.task).await.expect("cancel");
    // One janitor has asked and found no other image; then the upload comes and is written…
    let late = written(&test, b"the same").await;
    // …and only now the janitor moves the bytes to the trash, and dies.
    let keys = [BlobKey::Blob(first.sha256)];
    test.parts.blobs.trash(&keys).await.expect("move");
    test.parts.store.mark_removed(first.image).await.expect("another had finished it");
    assert_eq!(test.trash(), 1);

    test.remover().resume().await.expect("resume");
    assert_eq!(read(&test, &late).await, b"the same");
    assert_eq!(test.trash(), 0);
}

/// Two janitors on one image: one has decided that no image needs its bytes, and sleeps before it
/// removes them. Meanwhile an equal upload is written, and the other janitor moves that to the trash.
#[tokio::test]
async fn janitor_keeps_trash_that_another_janitor_moved() {
    let test = TestWorker::new(&[]).await;
    let blobs = &test.parts.blobs;
    let first = written(&test, b"the same").await;
    test.parts.store.cancel(first.task).await.expect("cancel");
    let keys = [BlobKey::Blob(first.sha256)];
    blobs.trash(&keys).await.expect("move");
    let decided = blobs.trashed(&first.sha256).await.expect("list");
    assert!(test.parts.store.forget_blob(&first.sha256).await.expect("forget"));

    let late = written(&test, b"the same").await;
    blobs.trash(&keys).await.expect("the other moves");
    blobs.delete_trashed(decided).await.expect("the sleeper removes");
    test.remover().resume().await.expect("the other decides");
    assert_eq!(read(&test, &late).await, b"the same");
    assert_eq!(test.trash(), 0);
}

#[tokio::test]
async fn trash_of_dead_janitor_is_removed() {
    let test = TestWorker::new(&[]).await;
    let upload = written(&test, b"bytes").await;
    test.parts.store.cancel(upload.task).await.expect("cancel");
    let keys = [BlobKey::Blob(upload.sha256), BlobKey::Incoming(upload.image)];
    test.parts.blobs.trash(&keys).await.expect("move");
    assert_eq!(test.trash(), 1, "what is not there cannot be moved");
    test.discarded_images().remove().await.expect("remove");
    assert_eq!(test.trash(), 0);
    assert!(!test.path(&BlobKey::Blob(upload.sha256)).exists());
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
    let held = claim(&test, &notices.due, JobKind::Thumbnail).await;
    test.parts.store.cancel(upload.task).await.expect("cancel");
    let rendered = Outcome::Succeeded(Vec::new());
    let settled = test.parts.store.settle(&held, &rendered).await;
    assert_eq!(settled.expect("settle"), Settled::Stale);
    let task = test.ended(upload.task).await;
    assert_eq!(task.status, Status::Cancelled);
    assert_eq!(job(&task, JobKind::Thumbnail).status, Status::Cancelled);
}

/// An upload whose write job is done, so that its bytes have their content's name.
pub(super) async fn written(test: &TestWorker, bytes: &[u8]) -> NewUpload {
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

pub(super) async fn read(test: &TestWorker, upload: &NewUpload) -> Vec<u8> {
    let key = BlobKey::Blob(upload.sha256);
    test.parts.blobs.read(&key, 1000).await.expect("the bytes are there").to_vec()
}
