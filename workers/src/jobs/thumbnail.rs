//! The thumbnail job: makes the renditions that the configured presets ask for and the blob does
//! not have yet.

use async_trait::async_trait;
use bytes::Bytes;
use safelight_blobs::BlobKey;
use safelight_domain::{Failure, Image, Placeholder, Presets, Rendition};
use safelight_imaging::{Rendered, Renditions};
use safelight_store::{ClaimedJob, Effect, Outcome};

use super::{
    job::{Context, Job, SlotClass},
    presets::missing_presets,
    source,
};

/// Makes renditions.
pub(super) struct Thumbnail;

#[async_trait]
impl Job for Thumbnail {
    fn slots(&self) -> SlotClass {
        SlotClass::Processor
    }

    async fn run(&self, context: &Context, job: &ClaimedJob) -> Result<Outcome, Failure> {
        let image = &job.image;
        let blobs = &context.parts.blobs;
        let presets = wanted(context, job);
        if presets.is_empty() {
            return Ok(Outcome::Succeeded(Vec::new()));
        }
        let bytes = source::read(blobs, image).await?;
        let (renditions, placeholder) = make(context, image, bytes, presets).await?;
        Ok(Outcome::Succeeded(vec![
            Effect::UpsertRenditions(renditions),
            Effect::Placeholder(placeholder),
        ]))
    }
}

/// Makes and stores renditions of an image's bytes.
pub(super) async fn make(
    context: &Context,
    image: &Image,
    bytes: Bytes,
    presets: Presets,
) -> Result<(Vec<Rendition>, Placeholder), Failure> {
    let blobs = &context.parts.blobs;
    let Renditions { renditions, placeholder } =
        context.parts.decoder.render(bytes, presets, &context.attempt).await?;
    safelight_fail_points::hit("thumbnail.rendered").await;
    let (renditions, files) = renditions
        .into_iter()
        .map(|Rendered { rendition, data }| {
            let key = BlobKey::rendition(image.sha256, &rendition);
            (rendition, (key, data))
        })
        .unzip();
    blobs.put_renditions(files).await.map_err(source::failure)?;
    safelight_fail_points::hit("thumbnail.stored").await;
    Ok((renditions, placeholder))
}

/// The presets to render: those that the image lacks, or what its backfill asks for.
fn wanted(context: &Context, job: &ClaimedJob) -> Presets {
    let presets = &context.parts.presets;
    let mut wanted = match &job.backfill {
        Some(spec) if spec.all => presets.clone(),
        _ => missing_presets(presets, &job.image),
    };
    wanted.retain(|name, _| job.backfill.as_ref().is_none_or(|spec| spec.wants(name)));
    wanted
}
