//! A bucket that is not Safelight's own, to take pictures from.

use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, aws::AmazonS3, path::Path};

use super::{
    BlobError, BlobStream,
    store::{environment, s3_from},
};

/// A bucket, reached as the `AWS_*` variables say. Only read.
pub struct Bucket(AmazonS3);

impl Bucket {
    /// The bucket `name`. Does not contact it.
    pub fn open(name: &str) -> Result<Self, BlobError> {
        let client = ClientOptions::new().with_allow_http(true);
        let s3 = s3_from(environment()).with_bucket_name(name).with_client_options(client);
        Ok(Self(s3.build()?))
    }

    /// The keys of all objects under `prefix` (a folder, as it were), in their order, from after
    /// `after` on.
    pub fn keys(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> BoxStream<'static, Result<String, BlobError>> {
        let prefix = Path::from(prefix);
        let prefix = Some(&prefix).filter(|prefix| !prefix.as_ref().is_empty());
        let listed = match after {
            Some(after) => self.0.list_with_offset(prefix, &Path::from(after)),
            None => self.0.list(prefix),
        };
        listed.map_ok(|object| object.location.to_string()).map_err(BlobError::from).boxed()
    }

    /// Streams an object.
    pub async fn read(&self, key: &str) -> Result<BlobStream, BlobError> {
        let key = Path::parse(key).map_err(object_store::Error::from)?;
        Ok(self.0.get(&key).await?.into_stream().map_err(BlobError::from).boxed())
    }
}
