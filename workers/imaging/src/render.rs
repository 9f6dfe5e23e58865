//! Makes the renditions of a picture.

use bytes::Bytes;
use image::{DynamicImage, metadata::Orientation};
use safelight_domain::{
    ContentHash, ErrorCode, Failure, Fit, Focus, ImageFormat, Placeholder, Preset, PresetFormat,
    Presets, Rendition, Size,
};

use crate::{
    animation::{Animation, WebpWriter, first_frame},
    bmp,
    encode::{self, WEBP_MAX_SIDE},
    failure::damaged,
    focus,
    geometry::{Region, Viewport},
    header::Header,
    heif::decode as heif,
    jpeg,
    limits::Limits,
    metadata::Metadata,
    orientation::swaps_sides,
    picture::{Picture, Pixels},
    placeholder::{self, placeholder},
    planes::Sampling,
    png,
    pyramid::Pyramid,
    resize::Resizer,
    tiff, webp,
};

/// A rendition with its bytes.
#[derive(Debug, Clone)]
pub struct Rendered {
    /// The record for the store.
    pub rendition: Rendition,
    /// The encoded picture.
    pub data: Bytes,
}

/// Everything that is made from a picture.
#[derive(Debug, Clone)]
pub struct Renditions {
    /// One per preset and format.
    pub renditions: Vec<Rendered>,
    /// Shown until a rendition is loaded.
    pub placeholder: Placeholder,
}

/// Makes renditions of one picture after the other. It reuses memory, and nothing that a picture could have
/// changed: codecs keep tables and errors, so each picture has its own.
pub struct Renderer {
    resizer: Resizer,
}

/// How one preset is applied to one picture.
struct PresetPlan<'a> {
    name: &'a str,
    preset: &'a Preset,
    viewport: Viewport,
}

/// A picture's bytes, and what is known without decoding them.
struct Source<'a> {
    bytes: &'a [u8],
    header: Header,
    orientation: Orientation,
    metadata: Metadata,
}

impl Renderer {
    /// Fails only if the codecs cannot be set up.
    pub fn new() -> Result<Self, Failure> {
        Ok(Self { resizer: Resizer::new()? })
    }

    /// Makes one rendition per preset and format, and the placeholder. Decodes the picture once, and resizes
    /// it once per preset. Calls `is_stopped` between the steps; if it returns true, the work ends early with
    /// a failure that the caller ignores.
    pub fn render(
        &mut self,
        bytes: &[u8],
        presets: &Presets,
        limits: Limits,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Renditions, Failure> {
        let header = Header::read(bytes, limits)?;
        let metadata = Metadata::read(bytes);
        let orientation = header.orientation.unwrap_or_else(|| metadata.transform());
        let source = Source { bytes, header, orientation, metadata };
        let plans = plan_presets(presets, &source);
        let picture = self.decode(&source, &plans)?;
        let has_alpha = picture.pixels.has_alpha();
        let mut pyramid = Pyramid::new(picture, source.header.size);
        let mut made: Vec<(usize, Rendered)> = Vec::with_capacity(plans.len());
        let mut animated = Vec::new();
        for (at, plan) in plans.iter().enumerate() {
            if is_stopped() {
                return Err(Failure::new(ErrorCode::LeaseLost, "the attempt was stopped"));
            }
            let is_animated = source.header.frames > 1;
            let mut formats = encode::choose_formats(&plan.preset.formats, has_alpha, is_animated);
            if is_animated && formats.contains(&ImageFormat::Webp) {
                formats.retain(|format| *format != ImageFormat::Webp);
                animated.push(at);
            }
            if formats.is_empty() {
                continue;
            }
            let duplicate = plans[..at].iter().position(|other| plan.has_same_output(other));
            let stills: Vec<Rendered> = match duplicate {
                Some(duplicate) => {
                    let existing = made.iter().filter(|(other, _)| *other == duplicate);
                    existing.map(|(_, one)| plan.copy_of(one)).collect()
                }
                None => self.render_stills(&mut pyramid, &source, plan, &formats)?,
            };
            made.extend(stills.into_iter().map(|still| (at, still)));
        }
        let placeholder = self.placeholder(&mut pyramid, &source)?;
        pyramid.recycle(&mut self.resizer);
        let mut renditions: Vec<Rendered> = made.into_iter().map(|(_, made)| made).collect();
        if !animated.is_empty() {
            let plans: Vec<_> = animated.into_iter().map(|at| &plans[at]).collect();
            renditions.extend(animate(&source, &plans, &mut self.resizer, is_stopped)?);
        }
        Ok(Renditions { renditions, placeholder })
    }

    fn decode(
        &mut self,
        source: &Source<'_>,
        plans: &[PresetPlan<'_>],
    ) -> Result<Picture, Failure> {
        let Source { bytes, header, .. } = source;
        match header.format {
            ImageFormat::Gif => first_frame(bytes, ImageFormat::Gif),
            ImageFormat::Webp if webp::is_animated(bytes) => first_frame(bytes, ImageFormat::Webp),
            ImageFormat::Tiff => tiff::decode(bytes),
            ImageFormat::Bmp => bmp::decode(bytes),
            ImageFormat::Webp => webp::decode(bytes),
            ImageFormat::Avif | ImageFormat::Heic => heif::decode(bytes),
            ImageFormat::Jpeg => {
                let least = plans.iter().map(|plan| plan.viewport.reduction()).reduce(f64::min);
                let least = least.unwrap_or(f64::from(u16::MAX));
                let header = header.jpeg.as_ref().ok_or_else(damaged)?;
                jpeg::decode(bytes, header, least, &mut self.resizer)
            }
            ImageFormat::Png => png::decode(bytes),
        }
    }

    /// Renders a still picture in each of the formats.
    fn render_stills(
        &mut self,
        pyramid: &mut Pyramid,
        source: &Source<'_>,
        plan: &PresetPlan<'_>,
        formats: &[ImageFormat],
    ) -> Result<Vec<Rendered>, Failure> {
        let PresetPlan { name, preset, viewport } = plan;
        let viewport = self.focused(pyramid, source, preset, *viewport)?;
        let sampling = if formats.iter().copied().all(subsamples_chroma) {
            Sampling::QUARTER
        } else {
            Sampling::FULL
        };
        let pixels = pyramid.render(viewport, sampling, &mut self.resizer)?;
        let mut changed = None;
        if source.orientation != Orientation::NoTransforms || preset.sharpen > 0 {
            let mut own = pixels.oriented(source.orientation, &mut self.resizer)?;
            own.sharpen(preset.sharpen);
            changed = Some(own);
        }
        let shown = changed.as_ref().unwrap_or(&pixels);
        let exif = source.exif(preset);
        let resizer = &mut self.resizer;
        let mut made = Vec::with_capacity(formats.len());
        for &format in formats {
            // Only the chroma planes shrink; the luma plane is copied.
            let mut subsampled = None;
            if sampling == Sampling::FULL
                && subsamples_chroma(format)
                && matches!(shown, Pixels::Planes(_))
            {
                let size = shown.size();
                let whole = Region::whole(size);
                subsampled = Some(shown.resized(resizer, whole, size, Sampling::QUARTER)?);
            }
            let pixels = subsampled.as_ref().unwrap_or(shown);
            let exif = exif.as_deref();
            let data = encode::encode(pixels, format, preset.quality, exif, resizer)?;
            made.push(rendered(name, preset, format, shown.size(), data));
            if let Some(subsampled) = subsampled {
                subsampled.recycle(resizer);
            }
        }
        if let Some(changed) = changed {
            changed.recycle(&mut self.resizer);
        }
        pyramid.keep(viewport, pixels, &mut self.resizer);
        Ok(made)
    }

    /// The viewport, moved to the part that the preset's focus selects.
    fn focused(
        &mut self,
        pyramid: &mut Pyramid,
        source: &Source<'_>,
        preset: &Preset,
        viewport: Viewport,
    ) -> Result<Viewport, Failure> {
        if preset.focus != Focus::Attention {
            return Ok(viewport);
        }
        let full = source.header.size;
        let whole = Viewport::new(full, Size::square(focus::SAMPLE_SIDE), Fit::Inside);
        let small = pyramid.render(whole, Sampling::FULL, &mut self.resizer)?;
        let small = small.into_image(&mut self.resizer)?.into_rgb8();
        Ok(focus::follow_attention(viewport, (full.width.into(), full.height.into()), &small))
    }

    fn placeholder(
        &mut self,
        pyramid: &mut Pyramid,
        source: &Source<'_>,
    ) -> Result<Placeholder, Failure> {
        let square = Size::square(placeholder::SAMPLE_SIDE);
        let whole = Viewport::new(source.header.size, square, Fit::Inside);
        let small = pyramid.render(whole, Sampling::FULL, &mut self.resizer)?;
        let small =
            small.oriented(source.orientation, &mut self.resizer)?.into_image(&mut self.resizer)?;
        Ok(placeholder(&small.into_rgba8()))
    }
}

impl PresetPlan<'_> {
    /// Whether another preset produces the same picture. All presets larger than the picture do.
    fn has_same_output(&self, other: &Self) -> bool {
        let (mine, its) = (self.preset, other.preset);
        self.viewport == other.viewport
            && mine.formats == its.formats
            && (mine.focus, mine.quality, mine.sharpen, mine.keep_copyright)
                == (its.focus, its.quality, its.sharpen, its.keep_copyright)
    }

    /// The rendition of another preset, as one of this preset.
    fn copy_of(&self, made: &Rendered) -> Rendered {
        let mut rendition = made.rendition.clone();
        self.name.clone_into(&mut rendition.preset);
        rendition.fingerprint = self.preset.fingerprint();
        Rendered { rendition, data: made.data.clone() }
    }
}

impl Source<'_> {
    /// The EXIF block for a rendition.
    fn exif(&self, preset: &Preset) -> Option<Vec<u8>> {
        preset.keep_copyright.then(|| self.metadata.copyright()).flatten()
    }
}

/// Whether a format is encoded with 4:2:0 chroma.
fn subsamples_chroma(format: ImageFormat) -> bool {
    matches!(format, ImageFormat::Jpeg | ImageFormat::Webp)
}

/// Sorts the presets from the largest rendition to the smallest, so that smaller ones can be made from
/// larger ones.
fn plan_presets<'a>(presets: &'a Presets, source: &Source<'_>) -> Vec<PresetPlan<'a>> {
    let plan = |(name, preset): (&'a String, &'a Preset)| {
        let mut size = preset.size;
        let may_be_webp = |format| matches!(format, &PresetFormat::Webp | &PresetFormat::Auto);
        if preset.formats.iter().any(may_be_webp) {
            size.width = size.width.min(WEBP_MAX_SIDE);
            size.height = size.height.min(WEBP_MAX_SIDE);
        }
        if swaps_sides(source.orientation) {
            size = Size { width: size.height, height: size.width };
        }
        let viewport = Viewport::new(source.header.size, size, preset.fit);
        PresetPlan { name: name.as_str(), preset, viewport }
    };
    let mut plans: Vec<PresetPlan<'a>> = presets.iter().map(plan).collect();
    plans.sort_by(|a, b| a.viewport.reduction().total_cmp(&b.viewport.reduction()));
    plans
}

/// Makes the animated renditions, one frame at a time.
fn animate(
    source: &Source<'_>,
    plans: &[&PresetPlan<'_>],
    resizer: &mut Resizer,
    is_stopped: &dyn Fn() -> bool,
) -> Result<Vec<Rendered>, Failure> {
    let Header { format, frames, .. } = source.header;
    let animation = Animation::open(source.bytes, format, frames)?;
    let mut writers: Vec<(&PresetPlan<'_>, WebpWriter)> = Vec::new();
    for plan in plans {
        if !writers.iter().any(|(other, _)| plan.has_same_output(other)) {
            let writer =
                WebpWriter::new(plan.viewport, plan.preset, source.orientation, animation.plays);
            writers.push((plan, writer));
        }
    }
    let color = animation.color();
    for frame in animation.frames {
        if is_stopped() {
            return Err(Failure::new(ErrorCode::LeaseLost, "the attempt was stopped"));
        }
        let frame = frame?;
        let canvas = Pixels::Image(DynamicImage::ImageRgba8(frame.canvas));
        for (_, writer) in &mut writers {
            writer.add(&canvas, frame.duration_ms, color.as_ref(), resizer)?;
        }
    }
    let mut files = Vec::with_capacity(writers.len());
    for (plan, writer) in writers {
        let size = writer.size();
        let mut data = writer.finish()?;
        if let Some(exif) = source.exif(plan.preset) {
            data = encode::with_exif(data, ImageFormat::Webp, &exif)?;
        }
        files.push((plan, size, data));
    }
    let of = |plan: &&PresetPlan<'_>| {
        let (_, size, data) = files.iter().find(|(other, ..)| plan.has_same_output(other))?;
        Some(rendered(plan.name, plan.preset, ImageFormat::Webp, *size, data.clone()))
    };
    Ok(plans.iter().filter_map(of).collect())
}

fn rendered(
    name: &str,
    preset: &Preset,
    format: ImageFormat,
    size: Size,
    data: Vec<u8>,
) -> Rendered {
    let data = Bytes::from(data);
    let rendition = Rendition {
        preset: name.to_owned(),
        fingerprint: preset.fingerprint(),
        format,
        width: size.width,
        height: size.height,
        bytes: data.len() as u64,
        sha256: ContentHash::of(&data),
        made_at: None,
    };
    Rendered { rendition, data }
}
