//! Deleted images: only bytes that other images share are left.

use std::time::Duration;

use safelight_blobs::BlobKey;
use safelight_domain::{
    BackfillKind, BackfillSpec, ContentHash, ErrorCode, Image, ImageFormat, JobId, JobKind,
    Receipt, Rendition, Status, Task, TaskId, TaskKind,
};
use safelight_store::{BackfillStep, ChildTask, Deletion, DeletionRequest, NewBackfill, NewUpload};

use super::{
    cancel::{proxy, read_blob, stored_upload},
    test_worker::{TestWorker, count_files, job, picture},
};

/// Deletes an image like the API; returns the task.
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

/// The number of objects that exist of an image.
fn count_objects(test: &TestWorker, image: &Image) -> usize {
    let renditions = image.renditions.iter().map(|made| BlobKey::rendition(image.sha256, made));
    let keys = renditions.chain([BlobKey::Blob(image.sha256), BlobKey::Incoming(image.id)]);
    keys.filter(|key| test.blob_path(key).exists()).count()
}

#[tokio::test]
async fn deletion_removes_all_bytes_except_shared_ones() {
    let test = TestWorker::new(&[]).await;
    let (_worker, _relay) = (test.worker(), test.relay());
    let (first, second) = (test.upload(&picture()).await, test.upload(&picture()).await);
    for upload in [&first, &second] {
        assert_eq!(test.wait_until_ended(upload.task).await.status, Status::Succeeded);
    }
    let before = image(&test, &second).await;
    assert_eq!(before.renditions.len(), 3);

    let shared = test.wait_until_ended(delete(&test, &first).await).await;
    assert_eq!(shared.status, Status::Succeeded, "{shared:?}");
    assert_eq!(image(&test, &second).await, before);
    assert_eq!(count_objects(&test, &before), 4, "the blob and three renditions are shared");

    let last = test.wait_until_ended(delete(&test, &second).await).await;
    assert_eq!(last.status, Status::Succeeded, "{last:?}");
    assert_eq!((count_objects(&test, &before), test.trash_count()), (0, 0));
    assert_eq!(receipt(&last), receipt(&shared), "receipts do not reveal other images");
    assert_eq!((receipt(&last).renditions.len(), receipt(&last).proxies), (3, Some(0)));
}

/// The time that a job takes on its own would tell whether it removed bytes, or found that others need them.
#[tokio::test]
async fn deletion_takes_longer_than_removal() {
    let test = TestWorker::new(&[]).await;
    let (first, second) =
        (stored_upload(&test, b"the same").await, stored_upload(&test, b"the same").await);
    let (_worker, _relay) = (test.worker(), test.relay());
    for (upload, kind) in [(&first, "shared"), (&second, "unshared")] {
        let started = std::time::Instant::now();
        let ended = test.wait_until_ended(delete(&test, upload).await).await;
        assert_eq!(ended.status, Status::Succeeded, "{kind}: {ended:?}");
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(250), "{kind}: {took:?}");
    }
}

/// The worker's probes cannot be written, as on a full disk. Deletions make room, so they do not wait.
#[tokio::test]
async fn deletions_run_while_the_blob_store_is_full() {
    let test = TestWorker::new(&[("SAFELIGHT_MAX_ATTEMPTS", "100")]).await;
    let (_worker, _relay) = (test.worker(), test.relay());
    let stored = test.upload(&picture()).await;
    assert_eq!(test.wait_until_ended(stored.task).await.status, Status::Succeeded);
    let other = [picture(), b"other".to_vec()].concat();
    let rendition = BlobKey::Rendition {
        of: ContentHash::of(&other),
        preset: "small".to_owned(),
        fingerprint: "0123456789ab".to_owned(),
        format: ImageFormat::Jpeg,
    };
    // A file in place of the folder of its renditions.
    let path = test.blob_path(&rendition);
    let folder = path.parent().expect("a folder");
    std::fs::create_dir_all(folder.parent().expect("a folder")).expect("create");
    std::fs::write(folder, "").expect("write");
    std::fs::write(test.probe_folder(), "").expect("write");
    let waiting = test.upload(&other).await;
    test.parts.outbox_signal.notify();
    let has_failed = |task: &Task| job(task, JobKind::Thumbnail).error.is_some();
    test.wait_for_task(waiting.task, has_failed).await;

    let deletion = test.wait_until_ended(delete(&test, &stored).await).await;
    assert_eq!(deletion.status, Status::Succeeded, "{deletion:?}");
    let task = test.task(waiting.task).await;
    assert_eq!(job(&task, JobKind::Thumbnail).status, Status::Queued, "{task:?}");
    std::fs::remove_file(folder).expect("remove");
    std::fs::remove_file(test.probe_folder()).expect("remove");
    assert_eq!(test.wait_until_ended(waiting.task).await.status, Status::Succeeded);
}

#[tokio::test]
async fn deletion_is_retried_until_every_proxy_confirms() {
    let (url, status, requests) = proxy().await;
    let urls = format!("[\"{url}\"]");
    let test = TestWorker::new(&[("SAFELIGHT_PURGE_URLS", &urls)]).await;
    let upload = stored_upload(&test, b"secret").await;
    let (_worker, _relay) = (test.worker(), test.relay());
    let id = delete(&test, &upload).await;
    let retried = test.wait_for_task(id, |task| task.jobs[0].attempt >= 3).await;
    let error = retried.jobs[0].error.clone().expect("an error");
    assert_eq!(error.code, ErrorCode::ProxyUnavailable);
    assert!(!error.message.contains("127.0.0.1"), "{error}");
    assert!(
        !test.blob_path(&BlobKey::Blob(upload.sha256)).exists(),
        "the bytes are removed without waiting for a proxy"
    );
    assert_eq!(receipt(&retried).proxies, None);

    status.send_replace(200);
    requests.lock().expect("a lock").clear();
    let done = test.wait_until_ended(id).await;
    assert_eq!((done.status, receipt(&done).proxies), (Status::Succeeded, Some(1)));
    let path = |end: &str| format!("PURGE /images/{}{end} HTTP/1.1", upload.image);
    let requests = requests.lock().expect("a lock");
    for wanted in ["", "/large", "/medium", "/small"].map(path) {
        assert!(requests.contains(&wanted), "{requests:?}");
    }
}

/// The first attempt deletes the rows of the renditions, so `deletions` must keep what the second needs.
#[tokio::test]
async fn second_deletion_attempt_knows_what_first_removed() {
    let (url, status, requests) = proxy().await;
    let urls = format!("[\"{url}\"]");
    let test = TestWorker::new(&[("SAFELIGHT_PURGE_URLS", &urls)]).await;
    let upload = stored_upload(&test, b"secret").await;
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
    test.wait_for_task(id, |task| task.jobs[0].attempt >= 2).await;
    assert!(
        image(&test, &upload).await.renditions.is_empty(),
        "the first attempt deleted the rows"
    );
    requests.lock().expect("a lock").clear();
    status.send_replace(404);
    let done = test.wait_until_ended(id).await;
    let named: Vec<_> = receipt(&done).renditions.into_iter().map(|made| made.preset).collect();
    assert_eq!(named, ["small"], "only configured presets are listed");
    let retired = format!("PURGE /images/{}/retired HTTP/1.1", upload.image);
    assert!(requests.lock().expect("a lock").contains(&retired));
}

#[tokio::test]
async fn deletion_is_retried_while_shared_cache_is_unavailable() {
    let test = TestWorker::new(&[("SAFELIGHT_SHARED_CACHE_URL", "redis://127.0.0.1:1")]).await;
    let (first, second) =
        (stored_upload(&test, b"the same").await, stored_upload(&test, b"the same").await);
    let (_worker, _relay) = (test.worker(), test.relay());
    for (upload, kind) in [(&first, "shared"), (&second, "unshared")] {
        let id = delete(&test, upload).await;
        let waiting = test.wait_for_task(id, |task| task.jobs[0].attempt >= 2).await;
        let error = waiting.jobs[0].error.clone().expect("an error");
        assert_eq!(error.code, ErrorCode::CacheUnavailable, "{kind}");
    }
}

#[tokio::test]
async fn equal_upload_after_reference_check_keeps_its_bytes() {
    let test = TestWorker::new(&[]).await;
    let first = stored_upload(&test, b"the same").await;
    let id = delete(&test, &first).await;
    // A worker found no other image with this content, moved the bytes to the trash, and died. Then the
    // upload arrives.
    let keys = [BlobKey::Blob(first.sha256)];
    test.parts.blobs.trash(&keys).await.expect("move");
    let late = stored_upload(&test, b"the same").await;
    let (_worker, _relay) = (test.worker(), test.relay());
    assert_eq!(test.wait_until_ended(id).await.status, Status::Succeeded);
    assert_eq!(read_blob(&test, &late).await, b"the same");
}

/// Trash can appear after the hash of a deleted image was removed from its row.
#[tokio::test]
async fn trash_of_forgotten_image_is_identified_by_its_own_name() {
    let test = TestWorker::new(&[]).await;
    let first = stored_upload(&test, b"the same").await;
    let id = delete(&test, &first).await;
    let (_worker, _relay) = (test.worker(), test.relay());
    test.wait_until_ended(id).await;
    let late = stored_upload(&test, b"the same").await;
    let keys = [BlobKey::Blob(first.sha256)];
    test.parts.blobs.trash(&keys).await.expect("a delayed worker moves the bytes");
    test.remover().resume().await.expect("resume");
    assert_eq!(read_blob(&test, &late).await, b"the same");
    assert_eq!(test.trash_count(), 0);
}

/// A backfill queues a child task just after the image was deleted.
#[tokio::test]
async fn jobs_of_deleted_image_make_no_renditions() {
    let test = TestWorker::new(&[]).await;
    let upload = stored_upload(&test, &picture()).await;
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
    let ended = test.wait_until_ended(child).await;
    assert_eq!((ended.status, ended.jobs[0].attempt), (Status::Failed, 1), "{ended:?}");
    test.wait_until_ended(deletion).await;
    assert_eq!(count_files(&test.rendition_folder()), 0);
}
