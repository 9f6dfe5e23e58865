//! Bytes that are damaged after their upload was accepted: staged ones, of a node of the version before, and stored ones.

use std::fs;

use safelight_blobs::BlobKey;
use safelight_domain::{ErrorCode, JobKind, Status, Task};
use safelight_store::NewUpload;

use super::test_worker::{TestWorker, count_files, job};

/// What happens to a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    /// A part of it reads as zeros.
    Zeroed,
    /// Its end is missing.
    CutShort,
}

const DAMAGES: [Damage; 2] = [Damage::Zeroed, Damage::CutShort];

/// Few attempts, because nothing repairs the bytes.
const SETTINGS: &[(&str, &str)] = &[("SAFELIGHT_MAX_ATTEMPTS", "2")];

/// Damages the staged bytes of an upload.
fn damage(test: &TestWorker, upload: &NewUpload, damage: Damage) {
    let file = test.blob_path(&BlobKey::Incoming(upload.image));
    let mut bytes = fs::read(&file).expect("staged bytes");
    // The header stays good, so that the picture can still be inspected.
    let middle = bytes.len() / 2;
    match damage {
        Damage::Zeroed => {
            let end = bytes.len().min(middle + 4096);
            bytes[middle..end].fill(0);
        }
        Damage::CutShort => bytes.truncate(middle),
    }
    fs::write(file, bytes).expect("write");
}

/// A JPEG, which decoders can read in spite of missing or wrong pixels. It is much larger than the damage.
fn photo() -> Vec<u8> {
    let picture = image::RgbImage::from_fn(1200, 900, |x, y| {
        let grain = (x.wrapping_mul(7919) ^ y.wrapping_mul(104_729)).to_le_bytes()[1] / 4;
        let slope = |value: u32, end: u32| (value * 150 / end).to_le_bytes()[0];
        image::Rgb([slope(x, 1200) + grain, slope(y, 900) + grain, grain])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Jpeg).expect("encode");
    bytes.into_inner()
}

/// The renditions of an image, as bytes by file.
fn renditions(test: &TestWorker, upload: &NewUpload, task: &Task) -> Vec<Vec<u8>> {
    let image = task.image.as_ref().expect("an image");
    let file = |made| test.blob_path(&BlobKey::rendition(upload.sha256, made));
    image.renditions.iter().map(|made| fs::read(file(made)).expect("a rendition")).collect()
}

#[tokio::test]
async fn damaged_staged_bytes_make_no_rendition() {
    for kind in DAMAGES {
        let test = TestWorker::new(SETTINGS).await;
        let upload = test.upload_staged(&photo()).await;
        damage(&test, &upload, kind);
        let (_worker, _relay) = (test.worker(), test.relay());
        let task = test.wait_until_ended(upload.task).await;
        assert_eq!(task.status, Status::Failed, "{kind:?}: {task:?}");
        for kind_of_job in [JobKind::Write, JobKind::Thumbnail] {
            let error = job(&task, kind_of_job).error.as_ref().expect("an error");
            assert_eq!(error.code, ErrorCode::BlobDamaged, "{kind:?}: {task:?}");
        }
        assert_eq!(count_files(&test.rendition_folder()), 0, "{kind:?}");
        assert!(!test.blob_path(&BlobKey::Blob(upload.sha256)).exists(), "{kind:?}");
    }
}

#[tokio::test]
async fn equal_upload_repairs_image_with_damaged_bytes() {
    let expected = {
        let test = TestWorker::new(&[]).await;
        let (_worker, _relay) = (test.worker(), test.relay());
        let upload = test.upload_staged(&photo()).await;
        let task = test.wait_until_ended(upload.task).await;
        renditions(&test, &upload, &task)
    };
    assert_eq!(expected.len(), 3);
    for kind in DAMAGES {
        let test = TestWorker::new(SETTINGS).await;
        let first = test.upload_staged(&photo()).await;
        damage(&test, &first, kind);
        let (_worker, _relay) = (test.worker(), test.relay());
        assert_eq!(test.wait_until_ended(first.task).await.status, Status::Failed, "{kind:?}");

        let second = test.upload_staged(&photo()).await;
        let good = test.wait_until_ended(second.task).await;
        assert_eq!(good.status, Status::Succeeded, "{kind:?}: {good:?}");
        assert_eq!(renditions(&test, &second, &good), expected, "{kind:?}");

        let retried = test.parts.store.retry(&[first.task]).await.expect("retry");
        assert_eq!(retried, [first.task], "{kind:?}");
        test.parts.outbox_signal.notify();
        let repaired =
            test.wait_for_task(first.task, |task| task.status == Status::Succeeded).await;
        assert_eq!(renditions(&test, &first, &repaired), expected, "{kind:?}");
        let blob = fs::read(test.blob_path(&BlobKey::Blob(first.sha256))).expect("a blob");
        assert_eq!(blob, photo(), "{kind:?}");
    }
}

#[tokio::test]
async fn damaged_staged_bytes_never_replace_good_original() {
    for kind in DAMAGES {
        let test = TestWorker::new(SETTINGS).await;
        let (worker, relay) = (test.worker(), test.relay());
        let first = test.upload_staged(&photo()).await;
        assert_eq!(test.wait_until_ended(first.task).await.status, Status::Succeeded);
        // The second is damaged before a worker sees it.
        test.shutdown.cancel();
        drop((worker.await, relay.await));
        let second = test.upload_staged(&photo()).await;
        damage(&test, &second, kind);
        let test = test.restarted();
        let (_worker, _relay) = (test.worker(), test.relay());
        test.wait_until_ended(second.task).await;
        let blob = fs::read(test.blob_path(&BlobKey::Blob(first.sha256))).expect("a blob");
        assert_eq!(blob, photo(), "{kind:?}");
    }
}

#[tokio::test]
async fn equal_upload_repairs_damaged_stored_bytes() {
    let test = TestWorker::new(SETTINGS).await;
    let first = test.upload(&photo()).await;
    let blob = test.blob_path(&BlobKey::Blob(first.sha256));
    fs::write(&blob, b"damaged").expect("write");
    let (_worker, _relay) = (test.worker(), test.relay());
    let task = test.wait_until_ended(first.task).await;
    for kind in [JobKind::Write, JobKind::Thumbnail] {
        let error = job(&task, kind).error.as_ref().expect("an error");
        assert_eq!(error.code, ErrorCode::BlobDamaged, "{task:?}");
    }
    assert_eq!(count_files(&test.rendition_folder()), 0);
    let second = test.upload(&photo()).await;
    assert_eq!(test.wait_until_ended(second.task).await.status, Status::Succeeded);
    assert_eq!(fs::read(blob).expect("a blob"), photo());
}
