//! JPEG by libjpeg-turbo: scaled while it is decoded, and kept as planes if possible.

mod markers;

use image::{DynamicImage, RgbImage};
use moxcms::Layout;
use safelight_domain::{ErrorCode, Failure, Size};
use turbojpeg::{
    Colorspace, Compressor, DecompressHeader, Decompressor, Image, PixelFormat, ScalingFactor,
    Subsamp, YuvImage, YuvPlanesImage,
};

pub(super) use markers::{Header, is_complete};

use crate::{
    color::{ToSrgb, uncalibrated_cmyk},
    failure::{bug, damaged},
    limits::area,
    picture::{Picture, Pixels},
    planes::{Planes, Sampling, chroma_size},
    resize::Resizer,
};

/// Maximum number of scans of a progressive JPEG. Encoders write about ten, and a scan of a few bytes can make
/// the decoder process the whole picture again.
const MAX_SCANS: u32 = 100;

/// The factors by which libjpeg-turbo scales down at almost no cost, by skipping high frequencies in the
/// transform of 8 × 8 blocks. Other factors have no fast code.
const REDUCTIONS: [u32; 4] = [8, 4, 2, 1];

/// Warnings of libjpeg-turbo that affect no pixel.
const HARMLESS_WARNINGS: [&str; 3] =
    ["extraneous bytes before marker", "JFIF revision", "Adobe color transform"];

/// A reusable decoder and encoder.
pub(super) struct Jpeg {
    decompressor: Decompressor,
    compressor: Compressor,
}

impl Jpeg {
    pub fn new() -> Result<Self, Failure> {
        let mut decompressor = Decompressor::new().map_err(bug)?;
        decompressor.set_scan_limit(MAX_SCANS).map_err(bug)?;
        Ok(Self { decompressor, compressor: Compressor::new().map_err(bug)? })
    }

    /// Decodes a picture that will be scaled down by `reduction` or more. `None` for a variant that
    /// libjpeg-turbo's interface does not support; another decoder may.
    pub fn decode(
        &mut self,
        bytes: &[u8],
        header: &Header,
        reduction: f64,
        resizer: &mut Resizer,
    ) -> Result<Option<Picture>, Failure> {
        if !is_complete(bytes) {
            return Err(Failure::new(
                ErrorCode::CorruptImage,
                "the JPEG ends before its end marker",
            ));
        }
        let Ok(coded) = self.decompressor.read_header(bytes) else { return Ok(None) };
        if coded.is_lossless {
            return Ok(None);
        }
        let by = REDUCTIONS.into_iter().find(|by| f64::from(*by) <= reduction).unwrap_or(1);
        let factor = ScalingFactor::new(1, by as usize);
        self.decompressor.set_scaling_factor(factor).map_err(bug)?;
        let scaled = coded.scaled(factor);
        let pixels = match coded.colorspace {
            Colorspace::YCbCr | Colorspace::Gray if coded.subsamp != Subsamp::Unknown => {
                self.planes(bytes, &scaled, resizer)?
            }
            // RGB, and samplings that libjpeg-turbo has no name for.
            Colorspace::YCbCr | Colorspace::Gray | Colorspace::RGB => {
                let pixels = self.pixels(bytes, &scaled, PixelFormat::RGB)?;
                Pixels::Image(rgb(pixels, &scaled)?)
            }
            Colorspace::CMYK | Colorspace::YCCK => {
                let mut inks = self.pixels(bytes, &scaled, PixelFormat::CMYK)?;
                return cmyk(&mut inks, header, &scaled).map(|image| {
                    Some(Picture { pixels: Pixels::Image(image), scale: scale(by), color: None })
                });
            }
        };
        let layout = if coded.colorspace == Colorspace::Gray { Layout::Gray } else { Layout::Rgb };
        let color = header.icc.as_ref().and_then(|icc| ToSrgb::from_icc(icc, layout));
        Ok(Some(Picture { pixels, scale: scale(by), color }))
    }

    fn planes(
        &mut self,
        bytes: &[u8],
        scaled: &DecompressHeader,
        resizer: &mut Resizer,
    ) -> Result<Pixels, Failure> {
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
        check_decoded(self.decompressor.decompress_to_yuv(bytes, output))?;
        Ok(Pixels::Planes(planes))
    }

    fn pixels(
        &mut self,
        bytes: &[u8],
        scaled: &DecompressHeader,
        format: PixelFormat,
    ) -> Result<Vec<u8>, Failure> {
        let pitch = scaled.width * format.size();
        let mut pixels = vec![0; pitch * scaled.height];
        let (width, height) = (scaled.width, scaled.height);
        let output = Image { pixels: &mut pixels[..], width, height, pitch, format };
        check_decoded(self.decompressor.decompress(bytes, output))?;
        Ok(pixels)
    }

    /// Encodes with 4:2:0 chroma, as is usual for a JPEG. `quality` is 1–100. The picture must have no alpha
    /// channel.
    pub fn encode(&mut self, pixels: &Pixels, quality: u8) -> Result<Vec<u8>, Failure> {
        self.compressor.set_quality(quality.into()).map_err(bug)?;
        match pixels {
            Pixels::Planes(planes) => self.encode_planes(planes),
            Pixels::Image(DynamicImage::ImageLuma8(gray)) => {
                self.encode_pixels(gray, gray.width(), PixelFormat::GRAY, Subsamp::Gray)
            }
            Pixels::Image(image) => {
                let rgb = image.as_rgb8().ok_or_else(|| bug("neither gray nor RGB"))?;
                self.encode_pixels(rgb, rgb.width(), PixelFormat::RGB, Subsamp::Sub2x2)
            }
        }
    }

    fn encode_planes(&mut self, planes: &Planes) -> Result<Vec<u8>, Failure> {
        let Size { width, height } = planes.size;
        let subsamp = match planes.sampling {
            None => {
                return self.encode_pixels(
                    &planes.samples,
                    width,
                    PixelFormat::GRAY,
                    Subsamp::Gray,
                );
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

    fn encode_pixels(
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

/// An estimate of the memory for decoding, in bytes. A progressive picture is held as 16-bit coefficients
/// until its last scan; a sequential one is decoded as a stream.
pub(super) fn decode_memory(header: &Header) -> u64 {
    let samples = area(header.width, header.height) * u64::from(header.quarter_samples) / 4;
    if header.is_progressive { 2 * samples + samples } else { samples }
}

fn check_decoded(outcome: Result<(), turbojpeg::Error>) -> Result<(), Failure> {
    match outcome {
        Ok(()) => Ok(()),
        // The decoder continued to the end.
        Err(turbojpeg::Error::TurboJpegError(why))
            if HARMLESS_WARNINGS.iter().any(|harmless| why.contains(harmless)) =>
        {
            Ok(())
        }
        Err(turbojpeg::Error::TurboJpegError(why)) if why.contains("nsufficient memory") => {
            Err(Failure::new(ErrorCode::DecoderOutOfMemory, "decoding would take too much memory"))
        }
        Err(why) => {
            tracing::debug!(%why, "libjpeg-turbo rejected a picture");
            Err(damaged())
        }
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
    // Adobe stores inverted inks, profiles expect them not inverted.
    let invert = header.is_adobe == profile.is_some();
    if invert {
        for ink in inks.iter_mut() {
            *ink = u8::MAX - *ink;
        }
    }
    match profile {
        Some(profile) => Ok(profile.to_rgb(inks, width, height)?.into()),
        None => Ok(uncalibrated_cmyk(inks, width, height).into()),
    }
}
