//! What is left of cancelled uploads: nothing, unless somebody else needs it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use safelight_blobs::{BlobKey, StagedUpload};
use safelight_domain::JobNotice;
use safelight_domain::{JOB_VERSION, JobKind, Status, WorkerId};
use safelight_store::{Claim, Effect, NewUpload, Outcome, QueueCapacity, Settled};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
};

use super::lab::{Lab, facts, job, picture, within};
use crate::removal::{self, discarded};

#[tokio::test]
async fn a_cancelled_upload_leaves_no_bytes() {
    let lab = Lab::new(&[]).await;
    let (queued, written) = (lab.upload(b"queued").await, written(&lab, b"written").await);
    for upload in [&queued, &written] {
        assert!(lab.services.store.cancel(upload.task).await.expect("cancel"));
    }
    let _janitor = lab.janitor();
    within("the janitor has passed", async {
        while lab.path(&BlobKey::Incoming(queued.image)).exists()
            || lab.path(&BlobKey::Blob(written.sha256)).exists()
            || !lab.services.store.discarded(9, Duration::ZERO).await.expect("discarded").is_empty()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(lab.trash(), 0);
}

/// A proxy that answers every request with the status that it is told, and notes what it was asked.
pub(super) async fn proxy() -> (String, watch::Sender<u16>, Arc<Mutex<Vec<String>>>) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (status, told) = watch::channel(503);
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
            let status = *told.borrow();
            let answer =
                format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (url, status, asked)
}

#[tokio::test]
async fn proxies_are_told_before_the_bytes_are_forgotten() {
    let (url, status, asked) = proxy().await;
    let urls = format!("[\"{url}\"]");
    let keys = [("SAFELIGHT_PURGE_URLS", urls.as_str()), ("SAFELIGHT_METADATA_CACHE_MS", "0")];
    let lab = Lab::new(&keys).await;
    let upload = written(&lab, b"secret").await;
    lab.services.store.cancel(upload.task).await.expect("cancel");
    // At first a delivery node could still serve it to the proxy.
    discarded::remove(lab.services.clone()).await.expect("nothing to do yet");
    assert!(asked.lock().expect("a lock").is_empty());
    let refused = within("the image is old enough", async {
        loop {
            match discarded::remove(lab.services.clone()).await {
                Ok(()) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => return error,
            }
        }
    })
    .await;
    assert!(refused.to_string().contains("503"), "{refused}");
    assert!(lab.path(&BlobKey::Blob(upload.sha256)).exists(), "removed before the proxy knew");
    status.send_replace(404);
    asked.lock().expect("a lock").clear();
    discarded::remove(lab.services.clone()).await.expect("remove");
    let mut asked = asked.lock().expect("a lock").clone();
    asked.sort();
    let path = |end: &str| format!("PURGE /images/{}{end} HTTP/1.1", upload.image);
    assert_eq!(asked, [path(""), path("/large"), path("/medium"), path("/small")]);
    assert!(!lab.path(&BlobKey::Blob(upload.sha256)).exists());
    assert!(lab.services.store.discarded(9, Duration::ZERO).await.expect("discarded").is_empty());
}

#[tokio::test]
async fn an_equal_image_keeps_its_bytes() {
    let lab = Lab::new(&[]).await;
    let (first, second) = (written(&lab, b"the same").await, written(&lab, b"the same").await);
    lab.services.store.cancel(first.task).await.expect("cancel");
    discarded::remove(lab.services.clone()).await.expect("remove");
    assert_eq!(read(&lab, &second).await, b"the same");
    assert!(lab.services.store.discarded(9, Duration::ZERO).await.expect("discarded").is_empty());
}

/// The moment between the look and the deletion, when an equal upload could lose its bytes.
#[tokio::test]
async fn an_equal_upload_at_the_worst_moment_keeps_its_bytes() {
    let lab = Lab::new(&[]).await;
    let first = written(&lab, b"the same").await;
    lab.services.store.cancel(first.task).await.expect("cancel");
    // One janitor has looked and found nobody; then the upload comes and is written…
    let late = written(&lab, b"the same").await;
    // …and only now the janitor moves the bytes aside, and dies.
    let keys = [BlobKey::Blob(first.sha256)];
    lab.services.blobs.move_aside(&keys).await.expect("move");
    lab.services.store.mark_removed(first.image).await.expect("another had finished it");
    assert_eq!(lab.trash(), 1);

    removal::resume(lab.services.clone()).await.expect("resume");
    assert_eq!(read(&lab, &late).await, b"the same");
    assert_eq!(lab.trash(), 0);
}

/// Two janitors on one image: one has decided that nobody needs its bytes, and sleeps before it
/// removes them. Meanwhile an equal upload is written, and the other janitor moves that aside.
#[tokio::test]
async fn what_one_janitor_moves_another_does_not_remove() {
    let lab = Lab::new(&[]).await;
    let blobs = &lab.services.blobs;
    let first = written(&lab, b"the same").await;
    lab.services.store.cancel(first.task).await.expect("cancel");
    let keys = [BlobKey::Blob(first.sha256)];
    blobs.move_aside(&keys).await.expect("move");
    let decided = blobs.aside_of(&first.sha256).await.expect("list");
    assert!(lab.services.store.forget_blob(&first.sha256).await.expect("forget"));

    let late = written(&lab, b"the same").await;
    blobs.move_aside(&keys).await.expect("the other moves");
    blobs.remove_aside(decided).await.expect("the sleeper removes");
    removal::resume(lab.services.clone()).await.expect("the other decides");
    assert_eq!(read(&lab, &late).await, b"the same");
    assert_eq!(lab.trash(), 0);
}

#[tokio::test]
async fn what_a_dead_janitor_had_moved_aside_is_removed() {
    let lab = Lab::new(&[]).await;
    let upload = written(&lab, b"bytes").await;
    lab.services.store.cancel(upload.task).await.expect("cancel");
    let keys = [BlobKey::Blob(upload.sha256), BlobKey::Incoming(upload.image)];
    lab.services.blobs.move_aside(&keys).await.expect("move");
    assert_eq!(lab.trash(), 1, "what is not there cannot be moved");
    discarded::remove(lab.services.clone()).await.expect("remove");
    assert_eq!(lab.trash(), 0);
    assert!(!lab.path(&BlobKey::Blob(upload.sha256)).exists());
}

#[tokio::test]
async fn a_running_job_is_stopped_and_its_result_discarded() {
    let lab = Lab::new(&[("SAFELIGHT_LEASE_MS", "300")]).await;
    let upload = lab.upload(&picture()).await;
    let bells = lab
        .services
        .store
        .take_unpublished(&QueueCapacity::each(9), Duration::from_mins(1))
        .await
        .expect("take");
    let held = claim(&lab, &bells.due, JobKind::Thumbnail).await;
    lab.services.store.cancel(upload.task).await.expect("cancel");
    let rendered = Outcome::Succeeded(Vec::new());
    let settled = lab.services.store.settle(&held, &rendered).await;
    assert_eq!(settled.expect("settle"), Settled::Stale);
    let task = lab.ended(upload.task).await;
    assert_eq!(task.status, Status::Cancelled);
    assert_eq!(job(&task, JobKind::Thumbnail).status, Status::Cancelled);
}

/// An upload whose write job is done, so that its bytes have their content's name.
pub(super) async fn written(lab: &Lab, bytes: &[u8]) -> NewUpload {
    let upload = lab.upload(bytes).await;
    let (image, sha256) = (upload.image, upload.sha256);
    let staged = StagedUpload { image, sha256, bytes: upload.bytes };
    lab.services.blobs.promote(&staged).await.expect("promote");
    let (id, kind) = upload.jobs[0];
    let bell = JobNotice { job: id, kind, lane: upload.lane, generation: 0, trace: None };
    let lease = claim(lab, &[bell], JobKind::Write).await;
    let settled = lab
        .services
        .store
        .settle(&lease, &Outcome::Succeeded(vec![Effect::StoredBlob(facts())]))
        .await;
    assert_eq!(settled.expect("settle"), Settled::Applied);
    upload
}

async fn claim(lab: &Lab, bells: &[JobNotice], kind: JobKind) -> safelight_store::Lease {
    let bell = bells.iter().find(|bell| bell.kind == kind).expect("a bell of each kind");
    let lease = Duration::from_millis(300);
    match lab.services.store.claim(bell, false, WorkerId::new(), lease, JOB_VERSION).await {
        Ok(Claim::Run(job)) => job.lease,
        other => panic!("{other:?}"),
    }
}

pub(super) async fn read(lab: &Lab, upload: &NewUpload) -> Vec<u8> {
    let key = BlobKey::Blob(upload.sha256);
    lab.services.blobs.read(&key, 1000).await.expect("the bytes are there").to_vec()
}
