//! What a blob store promises, on a local directory and on S3.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{aws::AmazonS3Builder, prefix::PrefixStore};
use safelight_common::{
    blobs::{BlobError, BlobKey, Blobs, StagedUpload},
    domain::{ContentHash, ImageId},
};
use safelight_harness::s3::{self, S3};

/// A store over fresh, empty ground, and whatever keeps the ground there.
struct Ground {
    blobs: Blobs,
    _keep: Box<dyn std::any::Any>,
}

macro_rules! on_both {
    ($($promise:ident),+ $(,)?) => {
        mod local {
            $( #[tokio::test]
            async fn $promise() {
                super::$promise(super::local_ground()).await;
            } )+
        }
        mod s3 {
            $( #[tokio::test]
            async fn $promise() {
                super::$promise(super::s3_ground().await).await;
            } )+
        }
    };
}

on_both!(
    staged_bytes_are_there_under_their_id_and_hashed,
    an_unfinished_upload_leaves_nothing,
    promotion_moves_once_and_may_be_repeated,
    promotion_without_bytes_says_so,
    objects_read_back_whole_and_in_part,
    deleting_is_idempotent,
    many_parts_arrive_in_order,
);

fn local_ground() -> Ground {
    let folder = tempfile::tempdir().expect("temp folder");
    let url = format!("file://{}", folder.path().display()).parse().expect("url");
    let blobs = Blobs::open(&url, folder.path()).expect("blobs");
    Ground { blobs, _keep: Box::new(folder) }
}

async fn s3_ground() -> Ground {
    let s3 = S3::shared().await.expect("private S3 server");
    let store = AmazonS3Builder::new()
        .with_endpoint(s3.endpoint())
        .with_allow_http(true)
        .with_bucket_name(s3.bucket())
        .with_access_key_id(s3::ACCESS_KEY)
        .with_secret_access_key(s3::SECRET_KEY)
        .build()
        .expect("client");
    let store = PrefixStore::new(store, uuid::Uuid::new_v4().to_string());
    let spool = tempfile::tempdir().expect("temp folder");
    let blobs = Blobs::remote(Arc::new(store), spool.path()).expect("blobs");
    Ground { blobs, _keep: Box::new(spool) }
}

async fn staged(blobs: &Blobs, body: &[u8]) -> StagedUpload {
    let mut staging = blobs.stage(ImageId::new()).await.expect("stage");
    for chunk in body.chunks(10_000) {
        staging.write(chunk).await.expect("write");
    }
    staging.finish().await.expect("finish")
}

async fn incoming(blobs: &Blobs) -> Vec<ImageId> {
    blobs.incoming().map_ok(|found| found.image).try_collect().await.expect("list")
}

async fn staged_bytes_are_there_under_their_id_and_hashed(ground: Ground) {
    let body = vec![7; 300_000];
    let upload = staged(&ground.blobs, &body).await;
    assert_eq!((upload.bytes, upload.sha256), (300_000, ContentHash::of(&body)));
    let read = ground.blobs.read(&BlobKey::Incoming(upload.image), 300_000).await.expect("read");
    assert_eq!(read, body);
    assert_eq!(incoming(&ground.blobs).await, [upload.image]);
}

async fn an_unfinished_upload_leaves_nothing(ground: Ground) {
    let mut staging = ground.blobs.stage(ImageId::new()).await.expect("stage");
    staging.write(&vec![1; 400_000]).await.expect("write");
    drop(staging);
    let marker = staged(&ground.blobs, b"after").await;
    assert_eq!(incoming(&ground.blobs).await, [marker.image]);
}

async fn promotion_moves_once_and_may_be_repeated(ground: Ground) {
    let upload = staged(&ground.blobs, b"picture").await;
    ground.blobs.promote(&upload).await.expect("first");
    ground.blobs.promote(&upload).await.expect("again");
    let read = ground.blobs.read(&BlobKey::Blob(upload.sha256), 100).await.expect("read");
    assert_eq!(read, "picture");
    assert!(incoming(&ground.blobs).await.is_empty());
    // An equal upload promotes onto the same name.
    let equal = staged(&ground.blobs, b"picture").await;
    ground.blobs.promote(&equal).await.expect("equal");
    assert!(incoming(&ground.blobs).await.is_empty());
}

async fn promotion_without_bytes_says_so(ground: Ground) {
    let upload = StagedUpload {
        image: ImageId::new(),
        sha256: ContentHash::of(b"never sent"),
        bytes: 10,
    };
    let error = ground.blobs.promote(&upload).await.expect_err("nothing there");
    assert!(matches!(error, BlobError::NotFound), "{error}");
}

async fn objects_read_back_whole_and_in_part(ground: Ground) {
    let key = BlobKey::Blob(ContentHash::of(b"x"));
    ground.blobs.put(&key, Bytes::from_static(b"0123456789")).await.expect("put");
    assert_eq!(ground.blobs.read_head(&key, 4).await.expect("head"), "0123");
    assert_eq!(ground.blobs.read_head(&key, 99).await.expect("whole"), "0123456789");
    let body = ground.blobs.get(&key).await.expect("get");
    assert_eq!(body.bytes, 10);
    let chunks: Vec<Bytes> = body.stream.try_collect().await.expect("stream");
    assert_eq!(chunks.concat(), b"0123456789");
    let error = ground.blobs.read(&key, 9).await.expect_err("limit");
    assert!(matches!(error, BlobError::TooLarge { bytes: 10, limit: 9 }), "{error}");
}

async fn deleting_is_idempotent(ground: Ground) {
    let key = BlobKey::Blob(ContentHash::of(b"gone"));
    ground.blobs.put(&key, Bytes::from_static(b"gone")).await.expect("put");
    ground.blobs.delete(&key).await.expect("first");
    ground.blobs.delete(&key).await.expect("again");
    assert!(matches!(ground.blobs.get(&key).await, Err(BlobError::NotFound)));
    ground.blobs.check().await.expect("an empty store is reachable");
}

async fn many_parts_arrive_in_order(ground: Ground) {
    // More than two parts of a multipart upload, with a content that shows any mix-up.
    let body: Vec<u8> = (0..12_000_000_u32).map(|i| (i / 1000).to_le_bytes()[(i % 4) as usize]).collect();
    let upload = staged(&ground.blobs, &body).await;
    let read = ground.blobs.read(&BlobKey::Incoming(upload.image), 12_000_000).await.expect("read");
    assert!(read == body, "the bytes differ");
    assert_eq!(upload.sha256, ContentHash::of(&body));
}
