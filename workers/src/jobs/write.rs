//! The write job: proves that the bytes are those that were uploaded and that they are a picture, and reads its
//! facts. It stores bytes under their hash that a node of the version before staged.

use async_trait::async_trait;
use bytes::Bytes;
use safelight_domain::{ErrorCode, Failure, Image, ImageFacts};
use safelight_store::{ClaimedJob, Effect, Outcome};

use super::{
    job::{Context, Job, SlotClass},
    source,
};

/// First bytes that usually hold the header and the EXIF block (at most 64 KiB, among others).
const HEAD_BYTES: usize = 256 * 1024;

/// Proves the bytes of an image, and records its metadata.
pub(super) struct Write;

#[async_trait]
impl Job for Write {
    fn slots(&self) -> SlotClass {
        SlotClass::Storage
    }

    async fn run(&self, context: &Context, job: &ClaimedJob) -> Result<Outcome, Failure> {
        let image = &job.image;
        let blobs = &context.parts.blobs;
        let verified = blobs.verify_upload(&source::upload_of(image), HEAD_BYTES).await;
        let verified = verified.map_err(source::failure)?;
        let mut facts = facts(context, image, verified.head.clone()).await?;
        if !context.parts.keep_gps {
            facts.gps = None;
        }
        safelight_fail_points::hit("write.inspected").await;
        blobs.store_verified(&verified).await.map_err(source::failure)?;
        safelight_fail_points::hit("write.promoted").await;
        Ok(Outcome::Succeeded(vec![Effect::StoredBlob(facts)]))
    }
}

async fn facts(context: &Context, image: &Image, head: Bytes) -> Result<ImageFacts, Failure> {
    let is_whole = head.len() as u64 >= image.bytes;
    if is_whole || safelight_imaging::head_suffices(&head) {
        match context.parts.decoder.inspect(head, &context.attempt).await {
            // Of all failures, only a damaged header may be caused by the cut.
            Err(failure) if failure.code == ErrorCode::CorruptImage && !is_whole => {}
            known => return known,
        }
    }
    let whole = source::read(&context.parts.blobs, image).await?;
    context.parts.decoder.inspect(whole, &context.attempt).await
}
