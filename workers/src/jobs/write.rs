//! The write job: checks that the bytes are a picture, reads its facts, and stores the bytes under their
//! hash.

use async_trait::async_trait;
use safelight_blobs::StagedUpload;
use safelight_domain::{ErrorCode, Failure, Image, ImageFacts};
use safelight_store::{ClaimedJob, Effect, Outcome};

use super::{
    job::{Context, Job, SlotClass},
    source,
};

/// First bytes that usually hold the header and the EXIF block (at most 64 KiB, among others).
const HEAD_BYTES: u64 = 256 * 1024;

/// Stores a blob under its hash, and its metadata.
pub(super) struct Write;

#[async_trait]
impl Job for Write {
    fn slots(&self) -> SlotClass {
        SlotClass::Storage
    }

    async fn run(&self, context: &Context, job: &ClaimedJob) -> Result<Outcome, Failure> {
        let image = &job.image;
        let mut facts = facts(context, image).await?;
        if !context.parts.keep_gps {
            facts.gps = None;
        }
        let staged = StagedUpload { image: image.id, sha256: image.sha256, bytes: image.bytes };
        safelight_fail_points::hit("write.inspected").await;
        context.parts.blobs.promote(&staged).await.map_err(source::failure)?;
        safelight_fail_points::hit("write.promoted").await;
        Ok(Outcome::Succeeded(vec![Effect::StoredBlob(facts)]))
    }
}

async fn facts(context: &Context, image: &Image) -> Result<ImageFacts, Failure> {
    let blobs = &context.parts.blobs;
    let head = source::read_head(blobs, image, HEAD_BYTES).await?;
    let is_whole = head.len() as u64 >= image.bytes;
    if is_whole || safelight_imaging::head_suffices(&head) {
        match context.parts.decoder.inspect(head, &context.attempt).await {
            // Of all failures, only a damaged header may be caused by the cut.
            Err(failure) if failure.code == ErrorCode::CorruptImage && !is_whole => {}
            known => return known,
        }
    }
    context.parts.decoder.inspect(source::read(blobs, image).await?, &context.attempt).await
}
