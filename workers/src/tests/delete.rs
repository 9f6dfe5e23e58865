//! Deleted images: nothing is left of them but what other images share.

use std::time::Duration;

use safelight_blobs::BlobKey;
use safelight_domain::{
    BackfillKind, BackfillSpec, ContentHash, ErrorCode, Image, ImageFormat, JobId, JobKind,
    Receipt, Rendition, Status, Task, TaskId, TaskKind,
};
use safelight_store::{BackfillStep, ChildTask, Deletion, DeletionRequest, NewBackfill, NewUpload};

use super::{
    cancel::{proxy, read, written},
    test_worker::{TestWorker, files, picture},
};

/// Has an upload's image deleted, as the API does; returns the task.
pub(super) async fn delete(test: &TestWorker, upload: &NewUpload) -> TaskId {
    let presets = test.parts.config.presets.iter();
    let request = DeletionRequest {
        image: upload.image,
        task: TaskId::new(),
        job: JobId::new(),
        max_attempts: 1000,
        after: Duration::ZERO,
        presets: presets.map(|(name, preset)| (name.clone(), preset.fingerprint())).collect(),
        trace: None,
    };
    let deletion = test.parts.store.delete_image(&request).await.expect("delete");
    assert_eq!(deletion, Deletion::Accepted(request.task));
    test.parts.outbox_signal.notify();
    request.task
}

pub(super) async fn image(test: &TestWorker, upload: &NewUpload) -> Image {
    test.parts.store.image(upload.image).await.expect("read").expect("an image")
}

fn receipt(task: &Task) -> Receipt {
    *task.receipt.clone().expect("a receipt")
}

/// All objects of an image that are there.
fn there(test: &TestWorker, image: &Image) -> usize {
    let renditions = image.renditions.iter().map(|made| BlobKey::rendition(image.sha256, made));
    let keys = renditions.chain([BlobKey::Blob(image.sha256), BlobKey::Incoming(image.id)]);
    keys.filter(|key| test.path(key).exists()).count()
}

#[tokio::test]
async fn deletion_removes_all_bytes_except_shared_ones() {
    let test = TestWorker::new(&[]).await;
    let (_worker, _relay) = (test.worker(), test.relay());
    let (first, second) = (test.upload(&picture()).await, test.upload(&picture()).await);
    for upload in [&first, &second] {
        assert_eq!(test.ended(upload.task).await.status, Status::Succeeded);
    }
    let before = image(&test, &second).await;
    assert_eq!(before.renditions.len(), 3);

    let shared = test.ended(delete(&test, &first).await).await;
    assert_eq!(shared.status, Status::Succeeded, "{shared:?}");
    assert_eq!(image(&test, &second).await, before);
    assert_eq!(there(&test, &before), 4, "its own bytes, and three renditions");

    let alone = test.ended(delete(&test, &second).await).await;
    assert_eq!(alone.status, Status::Succeeded, "{alone:?}");
    assert_eq!((there(&test, &before), test.trash()), (0, 0));
    assert_eq!(receipt(&alone), receipt(&shared), "it tells nothing of others");
    assert_eq!((receipt(&alone).renditions.len(), receipt(&alone).proxies), (3, Some(0)));
}

#[tokio::test]
async fn deletion_is_retried_until_every_proxy_confirms() {
    let (url, status, asked) = proxy().await;
    let urls = format!("[\"{url}\"]");
    let test = TestWorker::new(&[("SAFELIGHT_PURGE_URLS", &urls)]).await;
    let upload = written(&test, b"secret").await;
    let (_worker, _relay) = (test.worker(), test.relay());
    let id = delete(&test, &upload).await;
    let refused = test.task_when(id, |task| task.jobs[0].attempt >= 3).await;
    let error = refused.jobs[0].error.clone().expect("why");
    assert_eq!(error.code, ErrorCode::ProxyUnavailable);
    assert!(!error.message.contains("127.0.0.1"), "{error}");
    assert!(!test.path(&BlobKey::Blob(upload.sha256)).exists(), "that need not wait for a proxy");
    assert_eq!(receipt(&refused).proxies, None);

    status.send_replace(200);
    asked.lock().expect("a lock").clear();
    let done = test.ended(id).await;
    assert_eq!((done.status, receipt(&done).proxies), (Status::Succeeded, Some(1)));
    let path = |end: &str| format!("PURGE /images/{}{end} HTTP/1.1", upload.image);
    let asked = asked.lock().expect("a lock");
    for wanted in ["", "/large", "/medium", "/small"].map(path) {
        assert!(asked.contains(&wanted), "{asked:?}");
    }
}

/// The rows that say which presets and objects there were go with the bytes.
#[tokio::test]
async fn second_deletion_attempt_knows_what_first_removed() {
    let (url, status, asked) = proxy().await;
    let urls = format!("[\"{url}\"]");
    let test = TestWorker::new(&[("SAFELIGHT_PURGE_URLS", &urls)]).await;
    let upload = written(&test, b"secret").await;
    let fingerprint = test.parts.config.presets["small"].fingerprint();
    for preset in ["small", "retired"] {
        let made = Rendition {
            preset: preset.to_owned(),
            fingerprint: fingerprint.clone(),
            format: ImageFormat::Jpeg,
            width: 1,
            height: 1,
            bytes: 1,
            sha256: ContentHash::of(preset.as_bytes()),
            made_at: None,
        };
        test.record_rendition(&upload, &made).await;
    }
    let (_worker, _relay) = (test.worker(), test.relay());
    let id = delete(&test, &upload).await;
    test.task_when(id, |task| task.jobs[0].attempt >= 2).await;
    assert!(image(&test, &upload).await.renditions.is_empty(), "forgotten with the first attempt");
    asked.lock().expect("a lock").clear();
    status.send_replace(404);
    let done = test.ended(id).await;
    let named: Vec<_> = receipt(&done).renditions.into_iter().map(|made| made.preset).collect();
    assert_eq!(named, ["small"], "of what is configured");
    let retired = format!("PURGE /images/{}/retired HTTP/1.1", upload.image);
    assert!(asked.lock().expect("a lock").contains(&retired));
}

#[tokio::test]
async fn deletion_is_retried_while_shared_cache_is_unavailable() {
    let test = TestWorker::new(&[("SAFELIGHT_SHARED_CACHE_URL", "redis://127.0.0.1:1")]).await;
    let (first, second) = (written(&test, b"the same").await, written(&test, b"the same").await);
    let (_worker, _relay) = (test.worker(), test.relay());
    for (upload, whose) in [(&first, "shared"), (&second, "unshared")] {
        let id = delete(&test, upload).await;
        let waiting = test.task_when(id, |task| task.jobs[0].attempt >= 2).await;
        let error = waiting.jobs[0].error.clone().expect("why");
        assert_eq!(error.code, ErrorCode::CacheUnavailable, "{whose}: no difference shows");
    }
}

#[tokio::test]
async fn equal_upload_after_reference_check_keeps_its_bytes() {
    let test = TestWorker::new(&[]).await;
    let first = written(&test, b"the same").await;
    let id = delete(&test, &first).await;
    // A worker has asked, found no other image, moved the bytes to the trash, and died; then the upload came.
    let keys = [BlobKey::Blob(first.sha256)];
    test.parts.blobs.trash(&keys).await.expect("move");
    let late = written(&test, b"the same").await;
    let (_worker, _relay) = (test.worker(), test.relay());
    assert_eq!(test.ended(id).await.status, Status::Succeeded);
    assert_eq!(read(&test, &late).await, b"the same");
}

/// Trash that appears after the hash of a deleted image was forgotten is identified by its own name.
#[tokio::test]
async fn trash_of_forgotten_image_is_identified_by_its_own_name() {
    let test = TestWorker::new(&[]).await;
    let first = written(&test, b"the same").await;
    let id = delete(&test, &first).await;
    let (_worker, _relay) = (test.worker(), test.relay());
    test.ended(id).await;
    let late = written(&test, b"the same").await;
    let keys = [BlobKey::Blob(first.sha256)];
    test.parts.blobs.trash(&keys).await.expect("the sleeper moves");
    test.remover().resume().await.expect("resume");
    assert_eq!(read(&test, &late).await, b"the same");
    assert_eq!(test.trash(), 0);
}

/// A child of a backfill that was queued just after the image was deleted.
#[tokio::test]
async fn jobs_of_deleted_image_make_no_renditions() {
    let test = TestWorker::new(&[]).await;
    let upload = written(&test, &picture()).await;
    let store = &test.parts.store;
    let (backfill, child) = (TaskId::new(), TaskId::new());
    let spec = BackfillSpec::new(BackfillKind::Renditions);
    let new = NewBackfill { task: backfill, owner: safelight_domain::Owner::local(), spec };
    store.create_backfill(&new).await.expect("begin");
    let deletion = delete(&test, &upload).await;
    let work = ChildTask {
        task: child,
        kind: TaskKind::Rendition,
        image: upload.image,
        jobs: vec![(JobId::new(), JobKind::Thumbnail)],
        import: None,
    };
    let step =
        BackfillStep { work: vec![work], max_attempts: 8, ..BackfillStep::of(backfill, None) };
    assert!(store.advance_backfill(&step).await.expect("a step"));
    let (_worker, _relay) = (test.worker(), test.relay());
    let ended = test.ended(child).await;
    assert_eq!((ended.status, ended.jobs[0].attempt), (Status::Failed, 1), "{ended:?}");
    test.ended(deletion).await;
    assert_eq!(files(&test.renditions()), 0);
}
