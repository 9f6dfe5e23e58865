//! Deleted images: nothing is left of them, unless it is somebody else's as well.

use std::time::Duration;

use safelight_blobs::BlobKey;
use safelight_domain::{
    BackfillKind, BackfillSpec, ContentHash, ErrorCode, Image, ImageFormat, JobId, JobKind,
    Receipt, Rendition, Status, Task, TaskId, TaskKind,
};
use safelight_store::{BackfillStep, ChildTask, Deletion, DeletionRequest, NewBackfill, NewUpload};

use super::{
    cancel::{proxy, read, written},
    lab::{Lab, files, picture},
};

/// Has an upload's image deleted, as the API does; answers with the task.
pub(super) async fn delete(lab: &Lab, upload: &NewUpload) -> TaskId {
    let presets = lab.services.config.presets.iter();
    let request = DeletionRequest {
        image: upload.image,
        task: TaskId::new(),
        job: JobId::new(),
        max_attempts: 1000,
        after: Duration::ZERO,
        presets: presets.map(|(name, preset)| (name.clone(), preset.fingerprint())).collect(),
        trace: None,
    };
    let deletion = lab.services.store.delete_image(&request).await.expect("delete");
    assert_eq!(deletion, Deletion::Accepted(request.task));
    lab.services.outbox_signal.notify();
    request.task
}

pub(super) async fn image(lab: &Lab, upload: &NewUpload) -> Image {
    lab.services.store.image(upload.image).await.expect("read").expect("an image")
}

fn receipt(task: &Task) -> Receipt {
    *task.receipt.clone().expect("a receipt")
}

/// All objects of an image that are there.
fn there(lab: &Lab, image: &Image) -> usize {
    let renditions = image.renditions.iter().map(|made| BlobKey::rendition(image.sha256, made));
    let keys = renditions.chain([BlobKey::Blob(image.sha256), BlobKey::Incoming(image.id)]);
    keys.filter(|key| lab.path(key).exists()).count()
}

#[tokio::test]
async fn a_deleted_image_leaves_nothing_and_a_shared_one_what_is_shared() {
    let lab = Lab::new(&[]).await;
    let (_worker, _relay) = (lab.worker(), lab.relay());
    let (first, second) = (lab.upload(&picture()).await, lab.upload(&picture()).await);
    for upload in [&first, &second] {
        assert_eq!(lab.ended(upload.task).await.status, Status::Succeeded);
    }
    let before = image(&lab, &second).await;
    assert_eq!(before.renditions.len(), 3);

    let shared = lab.ended(delete(&lab, &first).await).await;
    assert_eq!(shared.status, Status::Succeeded, "{shared:?}");
    assert_eq!(image(&lab, &second).await, before);
    assert_eq!(there(&lab, &before), 4, "its own bytes, and three renditions");

    let alone = lab.ended(delete(&lab, &second).await).await;
    assert_eq!(alone.status, Status::Succeeded, "{alone:?}");
    assert_eq!((there(&lab, &before), lab.trash()), (0, 0));
    assert_eq!(receipt(&alone), receipt(&shared), "it tells nothing of others");
    assert_eq!((receipt(&alone).renditions.len(), receipt(&alone).proxies), (3, Some(0)));
}

#[tokio::test]
async fn a_deletion_is_tried_until_every_proxy_has_confirmed() {
    let (url, status, asked) = proxy().await;
    let urls = format!("[\"{url}\"]");
    let lab = Lab::new(&[("SAFELIGHT_PURGE_URLS", &urls)]).await;
    let upload = written(&lab, b"secret").await;
    let (_worker, _relay) = (lab.worker(), lab.relay());
    let id = delete(&lab, &upload).await;
    let refused = lab.task_when(id, |task| task.jobs[0].attempt >= 3).await;
    let error = refused.jobs[0].error.clone().expect("why");
    assert_eq!(error.code, ErrorCode::ProxyUnavailable);
    assert!(!error.message.contains("127.0.0.1"), "{error}");
    assert!(!lab.path(&BlobKey::Blob(upload.sha256)).exists(), "that need not wait for a proxy");
    assert_eq!(receipt(&refused).proxies, None);

    status.send_replace(200);
    asked.lock().expect("a lock").clear();
    let done = lab.ended(id).await;
    assert_eq!((done.status, receipt(&done).proxies), (Status::Succeeded, Some(1)));
    let path = |end: &str| format!("PURGE /images/{}{end} HTTP/1.1", upload.image);
    let asked = asked.lock().expect("a lock");
    for wanted in ["", "/large", "/medium", "/small"].map(path) {
        assert!(asked.contains(&wanted), "{asked:?}");
    }
}

/// The rows that say which presets and objects there were go with the bytes.
#[tokio::test]
async fn a_second_attempt_knows_what_the_first_has_removed() {
    let (url, status, asked) = proxy().await;
    let urls = format!("[\"{url}\"]");
    let lab = Lab::new(&[("SAFELIGHT_PURGE_URLS", &urls)]).await;
    let upload = written(&lab, b"secret").await;
    let fingerprint = lab.services.config.presets["small"].fingerprint();
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
        lab.record_rendition(&upload, &made).await;
    }
    let (_worker, _relay) = (lab.worker(), lab.relay());
    let id = delete(&lab, &upload).await;
    lab.task_when(id, |task| task.jobs[0].attempt >= 2).await;
    assert!(image(&lab, &upload).await.renditions.is_empty(), "forgotten with the first attempt");
    asked.lock().expect("a lock").clear();
    status.send_replace(404);
    let done = lab.ended(id).await;
    let named: Vec<_> = receipt(&done).renditions.into_iter().map(|made| made.preset).collect();
    assert_eq!(named, ["small"], "of what is configured");
    let retired = format!("PURGE /images/{}/retired HTTP/1.1", upload.image);
    assert!(asked.lock().expect("a lock").contains(&retired));
}

#[tokio::test]
async fn a_shared_cache_that_is_away_is_asked_again() {
    let lab = Lab::new(&[("SAFELIGHT_SHARED_CACHE_URL", "redis://127.0.0.1:1")]).await;
    let (first, second) = (written(&lab, b"the same").await, written(&lab, b"the same").await);
    let (_worker, _relay) = (lab.worker(), lab.relay());
    for (upload, whose) in [(&first, "shared"), (&second, "nobody else's")] {
        let id = delete(&lab, upload).await;
        let waiting = lab.task_when(id, |task| task.jobs[0].attempt >= 2).await;
        let error = waiting.jobs[0].error.clone().expect("why");
        assert_eq!(error.code, ErrorCode::CacheUnavailable, "{whose}: no difference is told");
    }
}

#[tokio::test]
async fn an_equal_upload_that_comes_after_the_look_keeps_its_bytes() {
    let lab = Lab::new(&[]).await;
    let first = written(&lab, b"the same").await;
    let id = delete(&lab, &first).await;
    // A worker has looked, found nobody, moved the bytes aside, and died; then the upload came.
    let keys = [BlobKey::Blob(first.sha256)];
    lab.services.blobs.move_aside(&keys).await.expect("move");
    let late = written(&lab, b"the same").await;
    let (_worker, _relay) = (lab.worker(), lab.relay());
    assert_eq!(lab.ended(id).await.status, Status::Succeeded);
    assert_eq!(read(&lab, &late).await, b"the same");
}

/// What a sleeper moves aside after the hash of a deleted image was forgotten is told by its own name.
#[tokio::test]
async fn trash_of_an_image_that_is_forgotten_is_decided_by_its_blob() {
    let lab = Lab::new(&[]).await;
    let first = written(&lab, b"the same").await;
    let id = delete(&lab, &first).await;
    let (_worker, _relay) = (lab.worker(), lab.relay());
    lab.ended(id).await;
    let late = written(&lab, b"the same").await;
    let keys = [BlobKey::Blob(first.sha256)];
    lab.services.blobs.move_aside(&keys).await.expect("the sleeper moves");
    crate::removal::resume(lab.services.clone()).await.expect("resume");
    assert_eq!(read(&lab, &late).await, b"the same");
    assert_eq!(lab.trash(), 0);
}

/// A child of a backfill that was queued just after the image was deleted.
#[tokio::test]
async fn nothing_is_made_of_an_image_that_is_gone() {
    let lab = Lab::new(&[]).await;
    let upload = written(&lab, &picture()).await;
    let store = &lab.services.store;
    let (backfill, child) = (TaskId::new(), TaskId::new());
    let spec = BackfillSpec::new(BackfillKind::Renditions);
    let new = NewBackfill { task: backfill, owner: safelight_domain::Owner::local(), spec };
    store.create_backfill(&new).await.expect("begin");
    let deletion = delete(&lab, &upload).await;
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
    let (_worker, _relay) = (lab.worker(), lab.relay());
    let ended = lab.ended(child).await;
    assert_eq!((ended.status, ended.jobs[0].attempt), (Status::Failed, 1), "{ended:?}");
    lab.ended(deletion).await;
    assert_eq!(files(&lab.renditions()), 0);
}
