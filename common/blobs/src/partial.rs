//! A multipart upload that leaves nothing behind if it is not finished.

use bytes::Bytes;
use object_store::{MultipartUpload, PutPayload};

use super::BlobError;

/// A multipart upload that is aborted when dropped unfinished.
pub(super) struct Partial(Option<Box<dyn MultipartUpload>>);

impl Partial {
    pub(super) fn of(upload: Box<dyn MultipartUpload>) -> Self {
        Self(Some(upload))
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), BlobError> {
        match &mut self.0 {
            Some(upload) => Ok(upload.put_part(PutPayload::from(bytes)).await?),
            None => Ok(()),
        }
    }

    pub(super) async fn complete(&mut self) -> Result<(), BlobError> {
        if let Some(upload) = &mut self.0 {
            upload.complete().await?;
            self.0 = None;
        }
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Without a runtime (at exit) nothing can run it, and the store's lifecycle rules remove the rest.
        if let (Some(mut upload), Ok(runtime)) =
            (self.0.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(async move { upload.abort().await });
        }
    }
}
