//! The renditions of a picture.

use bytes::Bytes;
use image::{DynamicImage, metadata::Orientation};
use safelight_domain::{
    ContentHash, ErrorCode, Failure, Fit, Focus, ImageFormat, Placeholder, Preset, PresetFormat,
    Presets, Rendition, Size,
};

use super::{
    Limits,
    animation::{Animation, Writer},
    avif,
    encode::{self, WEBP_MAX_SIDE},
    focus,
    geometry::{Frame, Region},
    header::{Header, damaged},
    jpeg::Jpeg,
    metadata::Metadata,
    picture::{Picture, Pixels},
    placeholder::{self, placeholder},
    planes::Sampling,
    pyramid::Pyramid,
    raster,
    resize::Resizer,
    turn::swaps_sides,
    webp,
};

/// A rendition with its bytes.
#[derive(Debug, Clone)]
pub struct Rendered {
    /// What the store records of it.
    pub rendition: Rendition,
    /// The encoded picture.
    pub data: Bytes,
}

/// All that is made of a picture.
#[derive(Debug, Clone)]
pub struct Renditions {
    /// One per preset and format.
    pub renditions: Vec<Rendered>,
    /// What a page shows until they have come.
    pub placeholder: Placeholder,
}

/// Makes renditions, one picture after the other; its codecs and memory are used again.
pub struct Renderer {
    jpeg: Jpeg,
    resizer: Resizer,
}

/// What one preset makes of one picture.
struct Plan<'a> {
    name: &'a str,
    preset: &'a Preset,
    frame: Frame,
}

/// What a picture is beside its pixels.
struct Source<'a> {
    bytes: &'a [u8],
    header: Header,
    turn: Orientation,
    metadata: Metadata,
}

impl Renderer {
    /// Fails only if the codecs cannot be set up.
    pub fn new() -> Result<Self, Failure> {
        Ok(Self { jpeg: Jpeg::new()?, resizer: Resizer::new()? })
    }

    /// Makes one rendition per preset and format, and the placeholder. The picture is decoded once, and
    /// resized once per preset. `stopped` is asked between the steps; once it says so the work ends
    /// early with a failure that nobody will look at.
    pub fn render(
        &mut self,
        bytes: &[u8],
        presets: &Presets,
        limits: Limits,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Renditions, Failure> {
        let header = Header::read(bytes, limits)?;
        let metadata = Metadata::read(bytes);
        let turn = header.turn.unwrap_or_else(|| metadata.turn());
        let source = Source { bytes, header, turn, metadata };
        let plans = plans(presets, &source);
        let picture = self.decode(&source, &plans)?;
        let has_alpha = picture.pixels.has_alpha();
        let mut pyramid = Pyramid::new(picture, source.header.size);
        let mut made: Vec<(usize, Rendered)> = Vec::with_capacity(plans.len());
        let mut animated = Vec::new();
        for (at, plan) in plans.iter().enumerate() {
            if stopped() {
                return Err(Failure::new(ErrorCode::LeaseLost, "the attempt was stopped"));
            }
            let is_animated = source.header.frames > 1;
            let mut formats = encode::choose(&plan.preset.formats, has_alpha, is_animated);
            if is_animated && formats.contains(&ImageFormat::Webp) {
                formats.retain(|format| *format != ImageFormat::Webp);
                animated.push(at);
            }
            if formats.is_empty() {
                continue;
            }
            let equal = plans[..at].iter().position(|other| plan.gives_the_same(other));
            let stills: Vec<Rendered> = match equal {
                Some(equal) => {
                    let its = made.iter().filter(|(other, _)| *other == equal);
                    its.map(|(_, one)| plan.renamed(one)).collect()
                }
                None => self.stills(&mut pyramid, &source, plan, &formats)?,
            };
            made.extend(stills.into_iter().map(|still| (at, still)));
        }
        let placeholder = self.placeholder(&mut pyramid, &source)?;
        pyramid.dissolve(&mut self.resizer);
        let mut renditions: Vec<Rendered> = made.into_iter().map(|(_, made)| made).collect();
        if !animated.is_empty() {
            let plans: Vec<_> = animated.into_iter().map(|at| &plans[at]).collect();
            renditions.extend(animate(&source, &plans, &mut self.resizer, stopped)?);
        }
        Ok(Renditions { renditions, placeholder })
    }

    fn decode(&mut self, source: &Source<'_>, plans: &[Plan<'_>]) -> Result<Picture, Failure> {
        let Source { bytes, header, .. } = source;
        if header.frames > 1 {
            let mut animation = Animation::open(bytes, header.format, header.frames)?;
            let first = animation.frames.next().ok_or_else(damaged)??;
            let image = raster::plain(first.canvas.into());
            return Ok(Picture::full(image, animation.colour));
        }
        match header.format {
            ImageFormat::Webp => webp::decode(bytes),
            ImageFormat::Avif => avif::decode(bytes),
            ImageFormat::Jpeg => {
                let least = plans.iter().map(|plan| plan.frame.reduction()).reduce(f64::min);
                let least = least.unwrap_or(f64::from(u16::MAX));
                let jpeg = header.jpeg.as_ref().ok_or_else(damaged)?;
                match self.jpeg.decode(bytes, jpeg, least, &mut self.resizer)? {
                    Some(picture) => Ok(picture),
                    None => raster::decode(bytes, ImageFormat::Jpeg),
                }
            }
            format => raster::decode(bytes, format),
        }
    }

    /// One picture in each of the formats.
    fn stills(
        &mut self,
        pyramid: &mut Pyramid,
        source: &Source<'_>,
        plan: &Plan<'_>,
        formats: &[ImageFormat],
    ) -> Result<Vec<Rendered>, Failure> {
        let Plan { name, preset, frame } = plan;
        let frame = self.focused(pyramid, source, preset, *frame)?;
        let sampling = if formats.iter().copied().all(holds_a_quarter) {
            Sampling::QUARTER
        } else {
            Sampling::FULL
        };
        let pixels = pyramid.show(frame, sampling, &mut self.resizer)?;
        let mut changed = None;
        if source.turn != Orientation::NoTransforms || preset.sharpen > 0 {
            let mut own = pixels.turned(source.turn, &mut self.resizer)?;
            own.sharpen(preset.sharpen);
            changed = Some(own);
        }
        let shown = changed.as_ref().unwrap_or(&pixels);
        let exif = source.exif(preset);
        let (jpeg, resizer) = (&mut self.jpeg, &mut self.resizer);
        let mut made = Vec::with_capacity(formats.len());
        for &format in formats {
            // Of planes with all colour samples only these shrink: their brightness stays as it is.
            let mut quartered = None;
            if sampling == Sampling::FULL
                && holds_a_quarter(format)
                && matches!(shown, Pixels::Planes(_))
            {
                let size = shown.size();
                let whole = Region::whole(size);
                quartered = Some(shown.resized(resizer, whole, size, Sampling::QUARTER)?);
            }
            let pixels = quartered.as_ref().unwrap_or(shown);
            let exif = exif.as_deref();
            let data = encode::encode(pixels, format, preset.quality, exif, jpeg, resizer)?;
            made.push(rendered(name, preset, format, shown.size(), data));
            if let Some(quartered) = quartered {
                quartered.dissolve(resizer);
            }
        }
        if let Some(changed) = changed {
            changed.dissolve(&mut self.resizer);
        }
        pyramid.keep(frame, pixels, &mut self.resizer);
        Ok(made)
    }

    /// The frame, moved to what the preset wants to keep.
    fn focused(
        &mut self,
        pyramid: &mut Pyramid,
        source: &Source<'_>,
        preset: &Preset,
        frame: Frame,
    ) -> Result<Frame, Failure> {
        if preset.focus != Focus::Attention {
            return Ok(frame);
        }
        let full = source.header.size;
        let look = Frame::new(full, Size::square(focus::LOOK), Fit::Inside);
        let small = pyramid.show(look, Sampling::FULL, &mut self.resizer)?;
        let small = small.into_image(&mut self.resizer)?.into_rgb8();
        Ok(focus::attend(frame, (full.width.into(), full.height.into()), &small))
    }

    fn placeholder(
        &mut self,
        pyramid: &mut Pyramid,
        source: &Source<'_>,
    ) -> Result<Placeholder, Failure> {
        let square = Size::square(placeholder::LOOK);
        let look = Frame::new(source.header.size, square, Fit::Inside);
        let small = pyramid.show(look, Sampling::FULL, &mut self.resizer)?;
        let small = small.turned(source.turn, &mut self.resizer)?.into_image(&mut self.resizer)?;
        Ok(placeholder(&small.into_rgba8()))
    }
}

impl Plan<'_> {
    /// Whether another preset makes the very same picture of this one: of small pictures, all those
    /// larger than it do.
    fn gives_the_same(&self, other: &Self) -> bool {
        let (mine, its) = (self.preset, other.preset);
        self.frame == other.frame
            && mine.formats == its.formats
            && (mine.focus, mine.quality, mine.sharpen, mine.keep_copyright)
                == (its.focus, its.quality, its.sharpen, its.keep_copyright)
    }

    /// What another preset made, as this one's.
    fn renamed(&self, made: &Rendered) -> Rendered {
        let mut rendition = made.rendition.clone();
        self.name.clone_into(&mut rendition.preset);
        rendition.fingerprint = self.preset.fingerprint();
        Rendered { rendition, data: made.data.clone() }
    }
}

impl Source<'_> {
    /// What a rendition keeps of the metadata.
    fn exif(&self, preset: &Preset) -> Option<Vec<u8>> {
        preset.keep_copyright.then(|| self.metadata.copyright()).flatten()
    }
}

/// Whether a format holds only a quarter of the colour samples anyway.
fn holds_a_quarter(format: ImageFormat) -> bool {
    matches!(format, ImageFormat::Jpeg | ImageFormat::Webp)
}

/// The presets from the largest rendition down, so that smaller ones can be made of larger ones.
fn plans<'a>(presets: &'a Presets, source: &Source<'_>) -> Vec<Plan<'a>> {
    let plan = |(name, preset): (&'a String, &'a Preset)| {
        let mut size = preset.size;
        let may_be_webp = |format| matches!(format, &PresetFormat::Webp | &PresetFormat::Auto);
        if preset.formats.iter().any(may_be_webp) {
            size.width = size.width.min(WEBP_MAX_SIDE);
            size.height = size.height.min(WEBP_MAX_SIDE);
        }
        if swaps_sides(source.turn) {
            size = Size { width: size.height, height: size.width };
        }
        let frame = Frame::new(source.header.size, size, preset.fit);
        Plan { name: name.as_str(), preset, frame }
    };
    let mut plans: Vec<Plan<'a>> = presets.iter().map(plan).collect();
    plans.sort_by(|a, b| a.frame.reduction().total_cmp(&b.frame.reduction()));
    plans
}

/// Makes the animated renditions, frame by frame.
fn animate(
    source: &Source<'_>,
    plans: &[&Plan<'_>],
    resizer: &mut Resizer,
    stopped: &dyn Fn() -> bool,
) -> Result<Vec<Rendered>, Failure> {
    let Header { format, frames, .. } = source.header;
    let animation = Animation::open(source.bytes, format, frames)?;
    let mut writers: Vec<(&Plan<'_>, Writer)> = Vec::new();
    for plan in plans {
        if !writers.iter().any(|(other, _)| plan.gives_the_same(other)) {
            let writer = Writer::new(plan.frame, plan.preset, source.turn, animation.plays);
            writers.push((plan, writer));
        }
    }
    for frame in animation.frames {
        if stopped() {
            return Err(Failure::new(ErrorCode::LeaseLost, "the attempt was stopped"));
        }
        let frame = frame?;
        let canvas = Pixels::Image(DynamicImage::ImageRgba8(frame.canvas));
        for (_, writer) in &mut writers {
            writer.add(&canvas, frame.duration, animation.colour.as_ref(), resizer)?;
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
    let of = |plan: &&Plan<'_>| {
        let (_, size, data) = files.iter().find(|(other, ..)| plan.gives_the_same(other))?;
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
