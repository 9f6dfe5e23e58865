//! JPEG by libjpeg-turbo: scaled while it is decoded, and kept as planes if possible.
//!
//! Each picture has a decoder and an encoder of its own, because libjpeg-turbo keeps tables, and the state of an
//! error, until the next picture. Together they cost microseconds.

mod decode_error;
mod markers;
mod padding;
mod progress;
#[cfg(test)]
mod tests;
mod tidy;

use std::borrow::Cow;

use image::{DynamicImage, GrayImage, RgbImage};
use moxcms::Layout;
use safelight_domain::{Failure, Size};
use turbojpeg::{
    Colorspace, Compressor, DecompressHeader, Decompressor, Image, PixelFormat, ScalingFactor,
    Subsamp, YuvImage, YuvPlanesImage,
};

pub(super) use markers::Header;

use self::decode_error::{DecodeError, classify};
use crate::{
    color::{ToSrgb, uncalibrated_cmyk},
    failure::bug,
    limits::area,
    picture::{Picture, Pixels},
    planes::{Planes, Sampling, chroma_size},
    resize::Resizer,
};

/// Maximum number of scans of a progressive JPEG. Encoders write about ten, and a scan of a few bytes can make
/// the decoder process the whole picture again.
const MAX_SCANS: u32 = 100;

/// How often a picture is decoded again without more of the padding between its scans and restart markers. A decoder
/// that reads ahead does not notice the last bytes of each.
const MAX_PADDINGS: usize = 4;

/// The factors by which libjpeg-turbo scales down at almost no cost, by skipping high frequencies in the
/// transform of 8 × 8 blocks. Other factors have no fast code.
const REDUCTIONS: [u32; 4] = [8, 4, 2, 1];

/// How many copies of the file are in memory at most: one without oddities, and one that is made of it, in another
/// order or without padding.
const COPIES: u64 = 2;

/// Decodes a picture that will be scaled down by `reduction` or more.
pub(super) fn decode(
    bytes: &[u8],
    header: &Header,
    reduction: f64,
    resizer: &mut Resizer,
) -> Result<Picture, Failure> {
    let mut jpeg = tidy::tidy(bytes, header)?;
    let mut decode = |bytes: &[u8]| Decoder::new(bytes, header)?.decode(reduction, resizer);
    let mut outcome = decode(&jpeg);
    for _ in 0..MAX_PADDINGS {
        let Err(DecodeError::InnerPadding(count)) = outcome else { break };
        let shorter = tidy::without_padding(&jpeg, count);
        if shorter.len() == jpeg.len() {
            break;
        }
        jpeg = Cow::Owned(shorter);
        outcome = decode(&jpeg);
    }
    outcome.map_err(DecodeError::into_failure)
}

/// The decoder of one picture.
struct Decoder<'a> {
    bytes: &'a [u8],
    header: &'a Header,
    decompressor: Decompressor,
}

impl<'a> Decoder<'a> {
    fn new(bytes: &'a [u8], header: &'a Header) -> Result<Self, Failure> {
        let mut decompressor = Decompressor::new().map_err(bug)?;
        decompressor.set_scan_limit(MAX_SCANS).map_err(bug)?;
        Ok(Self { bytes, header, decompressor })
    }

    fn decode(&mut self, reduction: f64, resizer: &mut Resizer) -> Result<Picture, DecodeError> {
        let coded = self.decompressor.read_header(self.bytes);
        let coded = coded.map_err(|error| classify(&error, self.bytes))?;
        let by = REDUCTIONS.into_iter().find(|by| f64::from(*by) <= reduction);
        let by = by.filter(|_| !coded.is_lossless).unwrap_or(1);
        let factor = ScalingFactor::new(1, by as usize);
        self.decompressor.set_scaling_factor(factor).map_err(bug)?;
        let scaled = coded.scaled(factor);
        let has_planes = coded.subsamp != Subsamp::Unknown && !coded.is_lossless;
        let pixels = match coded.colorspace {
            Colorspace::YCbCr | Colorspace::Gray if has_planes => self.planes(&scaled, resizer)?,
            Colorspace::Gray => {
                Pixels::Image(gray(self.pixels(&scaled, PixelFormat::GRAY)?, &scaled)?)
            }
            // RGB, and samplings that libjpeg-turbo has no name for.
            Colorspace::YCbCr | Colorspace::RGB => {
                Pixels::Image(rgb(self.pixels(&scaled, PixelFormat::RGB)?, &scaled)?)
            }
            Colorspace::CMYK | Colorspace::YCCK => {
                let mut inks = self.pixels(&scaled, PixelFormat::CMYK)?;
                let image = cmyk(&mut inks, self.header, &scaled)?;
                return Ok(Picture { pixels: Pixels::Image(image), scale: scale(by), color: None });
            }
        };
        let layout = if coded.colorspace == Colorspace::Gray { Layout::Gray } else { Layout::Rgb };
        let color = self.header.icc.as_ref().and_then(|icc| ToSrgb::from_icc(icc, layout));
        Ok(Picture { pixels, scale: scale(by), color })
    }

    fn planes(
        &mut self,
        scaled: &DecompressHeader,
        resizer: &mut Resizer,
    ) -> Result<Pixels, DecodeError> {
        let Size { width: across, height: down } =
            sides(scaled.subsamp.width(), scaled.subsamp.height())?;
        let sampling = (scaled.subsamp != Subsamp::Gray).then_some(Sampling { across, down });
        let mut planes = Planes::new(size(scaled)?, sampling, resizer);
        let output = YuvImage {
            pixels: &mut planes.samples[..],
            width: scaled.width,
            height: scaled.height,
            align: 1,
            subsamp: scaled.subsamp,
        };
        let outcome = self.decompressor.decompress_to_yuv(self.bytes, output);
        check_decoded(outcome, self.bytes)?;
        Ok(Pixels::Planes(planes))
    }

    fn pixels(
        &mut self,
        scaled: &DecompressHeader,
        format: PixelFormat,
    ) -> Result<Vec<u8>, DecodeError> {
        let pitch = scaled.width * format.size();
        let mut pixels = vec![0; pitch * scaled.height];
        let (width, height) = (scaled.width, scaled.height);
        let output = Image { pixels: &mut pixels[..], width, height, pitch, format };
        check_decoded(self.decompressor.decompress(self.bytes, output), self.bytes)?;
        Ok(pixels)
    }
}

/// The encoder of one picture.
struct Encoder {
    compressor: Compressor,
}

/// Encodes with 4:2:0 chroma, as is usual for a JPEG. `quality` is 1–100. The picture must have no alpha
/// channel.
pub(super) fn encode(pixels: &Pixels, quality: u8) -> Result<Vec<u8>, Failure> {
    let mut encoder = Encoder { compressor: Compressor::new().map_err(bug)? };
    encoder.compressor.set_quality(quality.into()).map_err(bug)?;
    match pixels {
        Pixels::Planes(planes) => encoder.planes(planes),
        Pixels::Image(DynamicImage::ImageLuma8(gray)) => {
            encoder.pixels(gray, gray.width(), PixelFormat::GRAY, Subsamp::Gray)
        }
        Pixels::Image(image) => {
            let rgb = image.as_rgb8().ok_or_else(|| bug("neither gray nor RGB"))?;
            encoder.pixels(rgb, rgb.width(), PixelFormat::RGB, Subsamp::Sub2x2)
        }
    }
}

impl Encoder {
    fn planes(&mut self, planes: &Planes) -> Result<Vec<u8>, Failure> {
        let Size { width, height } = planes.size;
        let subsamp = match planes.sampling {
            None => {
                return self.pixels(&planes.samples, width, PixelFormat::GRAY, Subsamp::Gray);
            }
            Some(Sampling::FULL) => Subsamp::None,
            Some(Sampling::QUARTER) => Subsamp::Sub2x2,
            Some(_) => return Err(bug("planes of an odd sampling")),
        };
        let [y_plane, u_plane, v_plane] = planes.split();
        let color = chroma_size(planes.size, planes.sampling.unwrap_or(Sampling::FULL));
        let picture = YuvPlanesImage {
            y_plane,
            u_plane,
            v_plane,
            y_stride: width.next_multiple_of(planes.sampling.map_or(1, |s| s.across)) as usize,
            u_stride: color.width as usize,
            v_stride: color.width as usize,
            width: width as usize,
            height: height as usize,
            subsamp,
        };
        self.compressor.compress_yuv_planes_to_vec(&picture).map_err(bug)
    }

    fn pixels(
        &mut self,
        pixels: &[u8],
        width: u32,
        format: PixelFormat,
        subsamp: Subsamp,
    ) -> Result<Vec<u8>, Failure> {
        self.compressor.set_subsamp(subsamp).map_err(bug)?;
        let pitch = width as usize * format.size();
        let height = pixels.len() / pitch.max(1);
        let picture = Image { pixels, width: width as usize, height, pitch, format };
        self.compressor.compress_to_vec(picture).map_err(bug)
    }
}

/// An estimate of the memory for decoding a file of `length` bytes, besides the file itself, in bytes. Sequential
/// pictures are decoded as a stream; if there are several scans, 16-bit coefficients are kept until the last one.
pub(super) fn decode_memory(header: &Header, length: usize) -> u64 {
    let pixels = area(header.width, header.height);
    let samples = pixels * u64::from(header.quarter_samples) / 4;
    // CMYK is converted to RGB.
    let decoded = if header.components == 4 { 7 * pixels } else { samples };
    let coefficients = if header.has_several_scans { 2 * samples } else { 0 };
    decoded + coefficients + COPIES * length as u64
}

/// The decoder continues to the end after most messages.
fn check_decoded(outcome: Result<(), turbojpeg::Error>, bytes: &[u8]) -> Result<(), DecodeError> {
    match outcome.map_err(|error| classify(&error, bytes)) {
        Ok(()) | Err(DecodeError::Padding) => Ok(()),
        Err(error) => Err(error),
    }
}

fn scale(by: u32) -> [f64; 2] {
    [1.0 / f64::from(by); 2]
}

fn size(scaled: &DecompressHeader) -> Result<Size, Failure> {
    sides(scaled.width, scaled.height)
}

fn sides(width: usize, height: usize) -> Result<Size, Failure> {
    let side = |side: usize| u32::try_from(side).map_err(bug);
    Ok(Size { width: side(width)?, height: side(height)? })
}

fn gray(pixels: Vec<u8>, scaled: &DecompressHeader) -> Result<DynamicImage, Failure> {
    let Size { width, height } = size(scaled)?;
    let image = GrayImage::from_raw(width, height, pixels);
    image.map(DynamicImage::from).ok_or_else(|| bug("a row is missing"))
}

fn rgb(pixels: Vec<u8>, scaled: &DecompressHeader) -> Result<DynamicImage, Failure> {
    let Size { width, height } = size(scaled)?;
    let image = RgbImage::from_raw(width, height, pixels);
    image.map(DynamicImage::from).ok_or_else(|| bug("a row is missing"))
}

fn cmyk(
    inks: &mut [u8],
    header: &Header,
    scaled: &DecompressHeader,
) -> Result<DynamicImage, Failure> {
    let Size { width, height } = size(scaled)?;
    let profile = header.icc.as_ref().and_then(|icc| ToSrgb::from_icc(icc, Layout::Rgba));
    // Inks are stored inverted, as Photoshop does, also without its marker, which tools remove together with other
    // metadata; browsers, libvips and Pillow agree. Profiles expect them not inverted.
    if profile.is_some() {
        for ink in inks.iter_mut() {
            *ink = u8::MAX - *ink;
        }
    }
    match profile {
        Some(profile) => Ok(profile.to_rgb(inks, width, height)?.into()),
        None => Ok(uncalibrated_cmyk(inks, width, height).into()),
    }
}
