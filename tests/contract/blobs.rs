//! The contract of the blob store, on a local directory and on S3.

use std::{
    io::Read,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use safelight_blobs::{
    BlobContent, BlobError, BlobKey, BlobLocation, Blobs, OpenBlob, Shard, StagedUpload, Stored,
    StoredBytes, TakenBack, WrongStore,
};
use safelight_domain::{ContentHash, ImageFormat, ImageId, InstallationId, TaskId, new_id};
use safelight_testing::{
    chaos::{Chaos, Link},
    s3::S3,
    wait::eventually,
};
use tempfile::TempDir;

/// Less than a part, and more than two parts of a multipart upload.
const SIZES: [usize; 3] = [1, 800_000, 11_000_000];

/// A store under test, with its folder and its server.
struct TestBlobs {
    blobs: Blobs,
    s3: Option<S3>,
    folder: TempDir,
}

fn local() -> Result<TestBlobs> {
    let folder = TempDir::new()?;
    let url = BlobLocation::Folder(folder.path().join("blobs"));
    let blobs = Blobs::open(&url, &folder.path().join("spool"))?;
    Ok(TestBlobs { blobs, s3: None, folder })
}

fn s3() -> Result<TestBlobs> {
    let (folder, s3) = (TempDir::new()?, S3::start("images")?);
    let url =
        BlobLocation::Bucket { bucket: "images".to_owned(), prefix: "some/prefix".to_owned() };
    let blobs = Blobs::open_from(&url, &folder.path().join("spool"), s3.env())?;
    Ok(TestBlobs { blobs, s3: Some(s3), folder })
}

macro_rules! on_both_backends {
    ($($promise:ident),+ $(,)?) => {
        mod on_local {
            $(#[tokio::test]
            async fn $promise() -> anyhow::Result<()> {
                super::$promise(super::local()?).await
            })+
        }
        mod on_s3 {
            $(#[tokio::test]
            async fn $promise() -> anyhow::Result<()> {
                super::$promise(super::s3()?).await
            })+
        }
    };
}

on_both_backends! {
    staged_bytes_are_promoted_once_and_read_back,
    bytes_are_stored_once_they_are_complete,
    bytes_that_a_removal_took_are_stored_again,
    unfinished_upload_leaves_no_bytes,
    objects_are_replaced_and_removed,
    missing_objects_differ_from_store_errors,
    clock_agrees_with_dates_of_staged_bytes,
    walk_returns_every_object_once,
    store_is_believed_only_with_its_mark,
    damaged_copies_are_passed_over,
    every_rendition_of_a_blob_is_found,
    quarantined_objects_return_to_free_places,
}

fn installation() -> InstallationId {
    InstallationId(new_id())
}

async fn store_is_believed_only_with_its_mark(test: TestBlobs) -> Result<()> {
    let (unbound, ours) = (test.blobs, installation());
    let blobs = unbound.clone().of_installation(ours);
    let missing = BlobKey::Blob(ContentHash::of(b"nothing"));
    let unmarked = |answer: Result<(), BlobError>| {
        assert!(matches!(answer, Err(BlobError::WrongStore(WrongStore::Unmarked))), "{answer:?}");
    };
    assert_eq!(unbound.read_mark().await?, None);
    unmarked(blobs.check().await);
    unmarked(blobs.check_writable().await);
    unmarked(blobs.read(&missing, 1).await.map(drop));
    unmarked(blobs.size(&missing).await.map(drop));
    unmarked(blobs.trash(std::slice::from_ref(&missing)).await.map(drop));
    unmarked(
        store(&blobs, b"bytes").await.map(drop).map_err(|error| error.downcast().expect("own")),
    );
    assert!(unbound.is_empty().await?, "a rejected upload leaves nothing behind");

    blobs.mark(ours).await?;
    blobs.mark(ours).await?;
    assert_eq!(unbound.read_mark().await?, Some(ours));
    blobs.check_writable().await?;
    assert!(matches!(blobs.read(&missing, 1).await, Err(BlobError::NotFound)));
    store(&blobs, b"bytes").await?.ensure_stored().await?;
    assert!(!blobs.is_empty().await?);

    let other = unbound.clone().of_installation(installation());
    let foreign = other.read(&missing, 1).await;
    assert!(
        matches!(foreign, Err(BlobError::WrongStore(WrongStore::Foreign(found))) if found == ours),
        "{foreign:?}"
    );
    assert!(other.mark(installation()).await.is_err(), "a store has one owner");
    blobs.confirm().await?;

    assert_eq!(blobs.generation().await?, 0);
    for (written, kept) in [(7, 7), (6, 7), (8, 8)] {
        blobs.raise_generation(written).await?;
        assert_eq!(blobs.generation().await?, kept);
    }
    Ok(())
}

async fn damaged_copies_are_passed_over(test: TestBlobs) -> Result<()> {
    let blobs = &test.blobs;
    for size in SIZES {
        let bytes = content(size);
        let (first, second) = (stage(blobs, &bytes).await?, stage(blobs, &bytes).await?);
        let (blob, staged) = (BlobKey::Blob(first.sha256), BlobKey::Incoming(second.image));
        blobs.promote(&first).await?;
        for damage in [vec![9; size], bytes[..size / 2].to_vec()] {
            blobs.put(&staged, damage.clone().into()).await?;
            let verified = blobs.verify_upload(&second, 5).await?;
            assert_eq!(verified.head, bytes[..size.min(5)]);
            blobs.store_verified(&verified).await?;
            assert_eq!(blobs.hash(&blob).await?, (first.sha256, size as u64));

            // The other way round: good staged bytes repair the blob.
            blobs.put(&blob, damage.clone().into()).await?;
            blobs.put(&staged, bytes.clone().into()).await?;
            blobs.promote(&second).await?;
            assert_eq!(blobs.hash(&blob).await?, (first.sha256, size as u64));

            // No good copy is left, and none is moved.
            blobs.put(&blob, damage.clone().into()).await?;
            blobs.put(&staged, damage.into()).await?;
            let neither = blobs.promote(&second).await;
            assert!(matches!(neither, Err(BlobError::Damaged)), "{neither:?}");
            assert!(blobs.exists(&staged).await? && blobs.exists(&blob).await?);
            blobs.put(&blob, bytes.clone().into()).await?;
        }
    }
    Ok(())
}

async fn every_rendition_of_a_blob_is_found(test: TestBlobs) -> Result<()> {
    let key = |of: &[u8], preset: &str| BlobKey::Rendition {
        of: ContentHash::of(of),
        preset: preset.to_owned(),
        fingerprint: "0123456789ab".to_owned(),
        format: ImageFormat::Webp,
    };
    let ours = [key(b"1", "large"), key(b"1", "small")];
    for key in ours.iter().chain([&key(b"2", "small")]) {
        test.blobs.put(key, Bytes::from_static(b"bytes")).await?;
    }
    let mut found = test.blobs.renditions_of(&ContentHash::of(b"1")).await?;
    found.sort_unstable_by_key(|key| key.path().to_string());
    assert_eq!(found, ours);
    assert_eq!(test.blobs.renditions_of(&ContentHash::of(b"3")).await?, []);
    Ok(())
}

async fn walk_to_the_end(blobs: &Blobs) -> Result<Vec<Stored>> {
    let (mut found, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let walked = blobs.walk(cursor.as_deref(), 99).await?;
        found.extend(walked.objects);
        cursor = walked.next;
        if cursor.is_none() {
            return Ok(found);
        }
    }
}

async fn quarantined_objects_return_to_free_places(test: TestBlobs) -> Result<()> {
    let blobs = &test.blobs;
    let (run, other_run, now) = (TaskId::new(), TaskId::new(), blobs.clock().await?);
    assert_eq!(blobs.quarantined().count().await, 0);
    for n in 0..20_u8 {
        blobs.put(&BlobKey::Blob(ContentHash::of(&[n])), vec![n; 3].into()).await?;
    }
    let stored = walk_to_the_end(blobs).await?;
    assert_eq!(stored.len(), 20);
    for (place, object) in stored.iter().enumerate() {
        let run = if place < 12 { run } else { other_run };
        let moved = blobs.quarantine(object, run, now).await?.context("moved")?;
        assert_eq!((Some(&moved.key), moved.bytes, moved.run), (object.key.as_ref(), 3, run));
        assert!(blobs.quarantine(object, run, now).await?.is_none(), "it is not there any more");
    }
    assert_eq!(walk_to_the_end(blobs).await?, [], "it is no part of the walk");
    let mut all: Vec<_> = blobs.quarantined().try_collect().await?;
    all.sort_by_key(|object| object.path().to_owned());
    for page in [1, 7, 1000] {
        let (mut found, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let walked = blobs.walk_quarantine(cursor.as_deref(), page).await?;
            found.extend(walked.objects);
            cursor = walked.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(found, all, "page {page}");
    }
    let millis = now.timestamp_millis();
    assert!(all.iter().all(|object| object.moved_at.timestamp_millis() == millis));
    assert_eq!(all.iter().filter(|object| object.run == run).count(), 12);

    let [first, second, third, ..] = &all[..] else { anyhow::bail!("20 were moved") };
    blobs.put(&first.key, Bytes::from_static(b"again")).await?;
    assert_eq!(blobs.take_back(first).await?, TakenBack::StoredAgain);
    assert_eq!(blobs.read(&first.key, 99).await?, "again");
    assert_eq!(blobs.take_back(second).await?, TakenBack::Yes);
    assert_eq!(blobs.read(&second.key, 99).await?.len(), 3);
    assert_eq!(blobs.take_back(second).await?, TakenBack::StoredAgain);
    blobs.delete(&second.key).await?;
    assert_eq!(blobs.take_back(second).await?, TakenBack::Gone);
    assert!(blobs.take_back_key(&third.key).await? && !blobs.take_back_key(&second.key).await?);
    assert_eq!(blobs.read(&third.key, 99).await?.len(), 3);
    // Without renames, a copy stays in the quarantine.
    let left = if blobs.is_local() { 18 } else { 19 };
    assert_eq!(blobs.quarantined().count().await, left);
    for object in &all {
        for found in blobs.quarantined_of(&object.blob).await? {
            assert_eq!(found.blob, object.blob);
            blobs.delete_from_quarantine(&found).await?;
        }
    }
    assert_eq!(blobs.quarantined().count().await, 0);
    assert!(!test.folder.path().join("blobs/quarantine").exists(), "empty folders are left");
    Ok(())
}

async fn clock_agrees_with_dates_of_staged_bytes(test: TestBlobs) -> Result<()> {
    let blobs = &test.blobs;
    let before = blobs.clock().await?;
    stage(blobs, b"bytes").await?;
    let staged: Vec<_> = blobs.incoming().try_collect().await?;
    let after = blobs.clock().await?;
    // Some stores round to whole seconds.
    let second = chrono::TimeDelta::seconds(1);
    assert!(before <= staged[0].modified && staged[0].modified < after + second);
    Ok(())
}

async fn staged_bytes_are_promoted_once_and_read_back(test: TestBlobs) -> Result<()> {
    let blobs = &test.blobs;
    for size in SIZES {
        let bytes = content(size);
        let staged = stage(blobs, &bytes).await?;
        assert_eq!((staged.bytes, staged.sha256), (size as u64, ContentHash::of(&bytes)));
        let incoming: Vec<_> = blobs.incoming().try_collect().await?;
        assert_eq!(incoming.iter().map(|found| found.image).collect::<Vec<_>>(), [staged.image]);

        blobs.promote(&staged).await?;
        blobs.promote(&staged).await?;
        assert_eq!(blobs.incoming().count().await, 0);

        let key = BlobKey::Blob(staged.sha256);
        let limit = size as u64;
        assert_eq!(blobs.read(&key, limit).await?, bytes);
        assert_eq!(blobs.read_head(&key, 64).await?, bytes[..size.min(64)]);
        let opened = blobs.open_blob(&key).await?;
        assert_eq!(opened.bytes, limit);
        assert_eq!(blobs.is_local(), matches!(opened.content, BlobContent::File(_)));
        assert_eq!(content_of(opened).await?, bytes);
        let (from, to) = (limit / 3, limit - limit / 4);
        let part: Vec<Bytes> = blobs.stream_range(&key, from..to).await?.try_collect().await?;
        assert_eq!(part.concat(), bytes[usize::try_from(from)?..usize::try_from(to)?]);
        let too_large = blobs.read(&key, limit - 1).await;
        assert!(matches!(too_large, Err(BlobError::TooLarge { .. })), "{too_large:?}");
    }
    Ok(())
}

/// Nothing has the name of an upload before it is complete; nothing else is left of it afterwards.
async fn bytes_are_stored_once_they_are_complete(test: TestBlobs) -> Result<()> {
    let blobs = &test.blobs;
    for size in SIZES {
        let bytes = content(size);
        let key = BlobKey::Blob(ContentHash::of(&bytes));
        let mut staging = blobs.stage().await?;
        staging.write(&bytes).await?;
        let staged = staging.end().await?;
        assert_eq!((staged.bytes(), staged.sha256()), (size as u64, ContentHash::of(&bytes)));
        assert!(!blobs.exists(&key).await?);
        drop(staged);

        // What is stored may be damaged: it is replaced.
        blobs.put(&key, vec![9; size].into()).await?;
        let stored = store(blobs, &bytes).await?;
        assert_eq!(blobs.read(&key, size as u64).await?, bytes);
        stored.ensure_stored().await?;
        assert_eq!(blobs.read(&key, size as u64).await?, bytes);
        assert_eq!(blobs.incoming().count().await, 0);
    }
    eventually("no unfinished file is left", async || {
        let files = files_under(test.folder.path())?;
        Ok(!files.iter().any(|file| file.to_string_lossy().contains('#')))
    })
    .await
}

async fn bytes_that_a_removal_took_are_stored_again(test: TestBlobs) -> Result<()> {
    let blobs = &test.blobs;
    for size in SIZES {
        let bytes = content(size);
        let key = BlobKey::Blob(ContentHash::of(&bytes));
        let stored = store(blobs, &bytes).await?;
        let trashed = blobs.trash(std::slice::from_ref(&key)).await?;
        blobs.delete_trashed(trashed).await?;
        assert!(!blobs.exists(&key).await?);
        stored.ensure_stored().await?;
        assert_eq!(blobs.read(&key, size as u64).await?, bytes);
        // And if another writer has cut them.
        let stored = store(blobs, &bytes).await?;
        blobs.put(&key, bytes[..size / 2].to_vec().into()).await?;
        stored.ensure_stored().await?;
        assert_eq!(blobs.read(&key, size as u64).await?, bytes);
    }
    Ok(())
}

async fn walk_returns_every_object_once(test: TestBlobs) -> Result<()> {
    let blobs = &test.blobs;
    stage(blobs, b"staged").await?;
    let mut keys: Vec<BlobKey> = (0..40_u8).map(|n| BlobKey::Blob(ContentHash::of(&[n]))).collect();
    for n in 0..20_u8 {
        keys.push(BlobKey::Rendition {
            of: ContentHash::of(&[n % 3]),
            preset: format!("p{n}"),
            fingerprint: "0123456789ab".to_owned(),
            format: ImageFormat::Webp,
        });
    }
    for (size, key) in keys.iter().enumerate() {
        blobs.put(key, vec![7; size].into()).await?;
    }
    let now = blobs.clock().await? + chrono::TimeDelta::seconds(2);
    for page in [1, 7, 1000] {
        let (mut found, mut cursor, mut pages) = (Vec::new(), None::<String>, 0);
        loop {
            let walked = blobs.walk(cursor.as_deref(), page).await?;
            assert!(walked.objects.len() <= page);
            found.extend(walked.objects);
            pages += 1;
            cursor = walked.next;
            if cursor.is_none() {
                break;
            }
            assert!(pages < 1000, "the walk does not end");
        }
        assert!(found.is_sorted_by_key(|object| object.path.clone()));
        assert!(found.iter().all(|object| object.modified < now));
        let sizes: Vec<_> = found.into_iter().map(|object| (object.key, object.bytes)).collect();
        assert_eq!(sizes.len(), keys.len());
        for (size, key) in (0..).zip(&keys) {
            assert!(sizes.contains(&(Some(key.clone()), size)), "{key:?}");
        }
    }
    Ok(())
}

async fn content_of(opened: OpenBlob) -> Result<Vec<u8>> {
    match opened.content {
        BlobContent::File(mut file) => {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        }
        BlobContent::Stream(stream) => Ok(stream.try_collect::<Vec<Bytes>>().await?.concat()),
    }
}

async fn unfinished_upload_leaves_no_bytes(test: TestBlobs) -> Result<()> {
    let mut staging = test.blobs.stage().await?;
    staging.write(&content(3_000_000)).await?;
    drop(staging);
    // The removal runs in the background.
    eventually("the staged bytes are removed", async || {
        Ok(files_under(test.folder.path())?.is_empty())
    })
    .await?;
    if let Some(s3) = &test.s3 {
        assert_eq!(files_under(&s3.bucket_folder())?, Vec::<PathBuf>::new());
    }
    Ok(())
}

async fn objects_are_replaced_and_removed(test: TestBlobs) -> Result<()> {
    let (blobs, key) = (&test.blobs, BlobKey::Blob(ContentHash::of(b"name")));
    blobs.put(&key, Bytes::from_static(b"first")).await?;
    blobs.put(&key, Bytes::from_static(b"second")).await?;
    assert_eq!(blobs.read(&key, 100).await?, "second");
    blobs.delete(&key).await?;
    blobs.delete(&key).await?;
    assert!(matches!(blobs.read(&key, 100).await, Err(BlobError::NotFound)));
    Ok(())
}

async fn missing_objects_differ_from_store_errors(test: TestBlobs) -> Result<()> {
    let TestBlobs { blobs, s3, .. } = test;
    blobs.check().await?;
    let missing = BlobKey::Blob(ContentHash::of(b"nothing"));
    assert!(matches!(blobs.read(&missing, 1).await, Err(BlobError::NotFound)));
    assert!(matches!(blobs.read_head(&missing, 1).await, Err(BlobError::NotFound)));
    let never_staged =
        StagedUpload { image: ImageId::new(), sha256: ContentHash::of(b"nothing"), bytes: 7 };
    assert!(matches!(blobs.promote(&never_staged).await, Err(BlobError::NotFound)));
    let Some(mut s3) = s3 else { return Ok(()) };

    s3.stop();
    assert!(matches!(blobs.check().await, Err(BlobError::Store(_))));
    assert!(matches!(blobs.read(&missing, 1).await, Err(BlobError::Store(_))));
    s3.resume()?;
    blobs.check().await?;
    Ok(())
}

#[tokio::test]
async fn reads_time_out_when_store_hangs() -> Result<()> {
    let (folder, s3) = (TempDir::new()?, S3::start("images")?);
    let endpoint = s3.endpoint();
    let (_, port) = endpoint.rsplit_once(':').context("a port")?;
    let chaos = Chaos::start(port.parse()?)?;
    let mut env = s3.env();
    env.push(("AWS_ENDPOINT".to_owned(), format!("http://127.0.0.1:{}", chaos.port())));
    let url = BlobLocation::Bucket { bucket: "images".to_owned(), prefix: String::new() };
    let blobs = Blobs::open_from(&url, folder.path(), env)?;
    let key = BlobKey::Blob(ContentHash::of(b"name"));
    blobs.put(&key, Bytes::from_static(b"bytes")).await?;
    assert_eq!(blobs.read(&key, 100).await?, "bytes");

    chaos.set(Link::BlackHole);
    let started_at = Instant::now();
    let (check, read, ranged) =
        tokio::join!(blobs.check(), blobs.read(&key, 100), blobs.stream_range(&key, 0..1));
    assert!(started_at.elapsed() < Duration::from_secs(20), "{:?}", started_at.elapsed());
    assert!(matches!(check, Err(BlobError::Late)), "{check:?}");
    assert!(matches!(read, Err(BlobError::Late)), "{read:?}");
    assert!(matches!(ranged.err(), Some(BlobError::Late)));
    chaos.set(Link::Up);
    assert_eq!(blobs.read(&key, 100).await?, "bytes");
    Ok(())
}

#[tokio::test]
async fn old_partial_uploads_are_removed() -> Result<()> {
    let TestBlobs { blobs, folder, .. } = local()?;
    let mut partial_upload = blobs.stage().await?;
    partial_upload.write(&content(300_000)).await?;
    let files = || files_under(&folder.path().join("blobs"));
    assert_eq!(files()?.len(), 1);

    let earlier = chrono::Utc::now() - chrono::TimeDelta::minutes(1);
    assert_eq!(blobs.remove_unfinished_uploads(earlier).await?, 0);
    assert_eq!(files()?.len(), 1);

    // A killed process does not run `drop` either.
    std::mem::forget(partial_upload);
    let later = chrono::Utc::now() + chrono::TimeDelta::minutes(1);
    assert_eq!(blobs.remove_unfinished_uploads(later).await?, 1);
    assert_eq!(files()?, Vec::<PathBuf>::new());
    Ok(())
}

#[tokio::test]
async fn old_partial_objects_are_removed_beside_finished_ones() -> Result<()> {
    let TestBlobs { blobs, folder, .. } = local()?;
    let blob = ContentHash::of(b"original");
    let rendition = BlobKey::Rendition {
        of: blob,
        preset: "small".to_owned(),
        fingerprint: "0123456789ab".to_owned(),
        format: ImageFormat::Webp,
    };
    let keys = [BlobKey::Blob(blob), rendition];
    for key in &keys {
        blobs.put(key, Bytes::from_static(b"bytes")).await?;
    }
    let finished = files_under(&folder.path().join("blobs"))?;
    for file in &finished {
        std::fs::write(format!("{}#1", file.display()), "bytes")?;
    }

    let remove = async |before| -> Result<u64> {
        let shards = std::iter::successors(Some(Shard::FIRST), |shard| shard.next());
        let mut removed = 0;
        for shard in shards {
            removed += blobs.remove_unfinished_objects(shard, before).await?;
        }
        Ok(removed)
    };
    assert_eq!(remove(chrono::Utc::now() - chrono::TimeDelta::minutes(1)).await?, 0);
    assert_eq!(remove(chrono::Utc::now() + chrono::TimeDelta::minutes(1)).await?, 2);
    assert_eq!(files_under(&folder.path().join("blobs"))?, finished);
    Ok(())
}

/// A part of the store on a volume of its own can be missing while the mark is there.
#[tokio::test]
async fn folder_on_another_volume_is_refused() -> Result<()> {
    let TestBlobs { blobs, folder, .. } = local()?;
    let installation = installation();
    blobs.mark(installation).await?;
    let blobs = blobs.of_installation(installation);
    blobs.confirm().await?;
    let other_volume = TempDir::new_in("/dev/shm").context("needs a tmpfs at /dev/shm")?;
    let incoming = folder.path().join("blobs/incoming");
    std::fs::remove_dir(&incoming)?;
    std::os::unix::fs::symlink(other_volume.path(), incoming)?;
    let refused = blobs.confirm().await;
    assert!(
        matches!(refused, Err(BlobError::WrongStore(WrongStore::Divided("incoming")))),
        "{refused:?}"
    );
    Ok(())
}

/// Bytes in which every position differs from its neighbors.
fn content(size: usize) -> Vec<u8> {
    (0..size).map(|i| u8::try_from(i % 251).unwrap_or(0)).collect()
}

/// Stages bytes as a node of the version before does.
async fn stage(blobs: &Blobs, bytes: &[u8]) -> Result<StagedUpload> {
    let (image, sha256) = (ImageId::new(), ContentHash::of(bytes));
    blobs.put(&BlobKey::Incoming(image), Bytes::copy_from_slice(bytes)).await?;
    Ok(StagedUpload { image, sha256, bytes: bytes.len() as u64 })
}

/// Stores bytes as an upload does.
async fn store(blobs: &Blobs, bytes: &[u8]) -> Result<StoredBytes> {
    let mut staging = blobs.stage().await?;
    for chunk in bytes.chunks(100_000) {
        staging.write(chunk).await?;
    }
    Ok(staging.end().await?.store().await?)
}

fn files_under(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_under(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}
