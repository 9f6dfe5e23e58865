//! Every object of a bucket under a prefix, in the order of keys.

use futures::{StreamExt, TryStreamExt};
use safelight_common::blobs::{BlobError, Bucket};

use super::{ByteStream, Entry, Place, SourceError};

pub(in crate::backfill) struct S3Source {
    bucket: String,
    prefix: String,
}

impl S3Source {
    pub fn new(bucket: &str, prefix: &str) -> Self {
        Self { bucket: bucket.to_owned(), prefix: prefix.trim_matches('/').to_owned() }
    }

    pub async fn count(&self) -> Result<u64, SourceError> {
        let bucket = open_bucket(&self.bucket)?;
        let keys = bucket.keys(&self.prefix, None);
        keys.try_fold(0, |count, _| async move { Ok(count + 1) }).await.map_err(store)
    }

    pub async fn page(&self, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, SourceError> {
        let bucket = open_bucket(&self.bucket)?;
        let entry = |key: String| {
            let name = format!("s3://{}/{key}", self.bucket);
            Entry::at(key.clone(), name, Place::Object { bucket: self.bucket.clone(), key })
        };
        let keys = bucket.keys(&self.prefix, after).take(limit);
        keys.map_ok(entry).try_collect().await.map_err(store)
    }
}

fn open_bucket(name: &str) -> Result<Bucket, SourceError> {
    Bucket::open(name).map_err(store)
}

/// An object's bytes.
pub(super) async fn open(bucket: &str, key: &str) -> Result<ByteStream, SourceError> {
    let bytes = open_bucket(bucket)?.read(key).await.map_err(store)?;
    Ok(bytes.map_err(store).boxed())
}

fn store(error: BlobError) -> SourceError {
    if error.is_refusal() {
        let what = "there is no such bucket or object, or it may not be read";
        return SourceError::Unusable(what.to_owned());
    }
    SourceError::Store(error)
}
