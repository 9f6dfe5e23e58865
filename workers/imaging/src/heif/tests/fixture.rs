//! AVIF files to build, and comparisons of pictures.

use image::{DynamicImage, RgbaImage};
use rav1e::prelude::{
    ChromaSampling, ColorDescription, ColorPrimaries, Config, EncoderConfig, MatrixCoefficients,
    PixelRange, SpeedSettings, TransferCharacteristics,
};

use super::super::{
    boxes::FourCc,
    decode::{HeifPicture, decode_coded},
};

pub(crate) type Rgb = [u8; 3];

pub(crate) const RED: Rgb = [200, 40, 30];
pub(crate) const BLUE: Rgb = [20, 60, 210];

/// A bitstream to encode: a picture with one color in its left half and another in its right half.
#[derive(Clone, Copy)]
pub(crate) struct Av1 {
    pub(crate) size: (usize, usize),
    pub(crate) chroma: ChromaSampling,
    pub(crate) depth: usize,
    pub(crate) range: PixelRange,
    pub(crate) matrix: MatrixCoefficients,
    pub(crate) halves: [Rgb; 2],
}

impl Default for Av1 {
    fn default() -> Self {
        Self {
            size: (64, 48),
            chroma: ChromaSampling::Cs444,
            depth: 8,
            range: PixelRange::Full,
            matrix: MatrixCoefficients::BT601,
            halves: [RED, BLUE],
        }
    }
}

impl Av1 {
    /// The samples of a color, by the formulas of the standard.
    pub(crate) fn samples(&self, color: Rgb) -> [u16; 3] {
        let [red, green, blue] = color.map(|value| f64::from(value) / 255.0);
        let (kr, kb) = match self.matrix {
            MatrixCoefficients::BT709 => (0.2126, 0.0722),
            MatrixCoefficients::BT2020NCL => (0.2627, 0.0593),
            MatrixCoefficients::Identity => {
                return [green, blue, red].map(|value| self.scale(value, 0.0, 219.0));
            }
            _ => (0.299, 0.114),
        };
        let y = kr * red + (1.0 - kr - kb) * green + kb * blue;
        let (u, v) = ((blue - y) / (1.0 - kb) / 2.0, (red - y) / (1.0 - kr) / 2.0);
        let middle = f64::from(1 << (self.depth - 1));
        [self.scale(y, 0.0, 219.0), self.scale(u, middle, 224.0), self.scale(v, middle, 224.0)]
    }

    /// Quantizes one component; `middle` is 0 for luma.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(crate) fn scale(&self, value: f64, middle: f64, limited: f64) -> u16 {
        let unit = f64::from(1 << (self.depth - 8));
        let scaled = match self.range {
            PixelRange::Full => value * f64::from((1 << self.depth) - 1) + middle,
            PixelRange::Limited if middle == 0.0 => (value * limited + 16.0) * unit,
            PixelRange::Limited => value * limited * unit + middle,
        };
        scaled.round().clamp(0.0, f64::from((1 << self.depth) - 1)) as u16
    }

    /// The bitstream.
    pub(crate) fn encode(&self) -> Vec<u8> {
        if self.depth == 8 { self.encode_as::<u8>() } else { self.encode_as::<u16>() }
    }

    #[expect(clippy::default_trait_access, reason = "rav1e does not export the type")]
    pub(crate) fn encode_as<T: rav1e::Pixel>(&self) -> Vec<u8> {
        let mut config = EncoderConfig::with_speed_preset(10);
        (config.width, config.height) = self.size;
        config.bit_depth = self.depth;
        config.chroma_sampling = self.chroma;
        // rav1e allows GBR only with full range, so the container overrides the range.
        let is_gbr = self.matrix == MatrixCoefficients::Identity;
        config.pixel_range = if is_gbr { PixelRange::Full } else { self.range };
        config.color_description = Some(ColorDescription {
            color_primaries: ColorPrimaries::BT709,
            transfer_characteristics: TransferCharacteristics::SRGB,
            matrix_coefficients: self.matrix,
        });
        config.still_picture = true;
        config.quantizer = 10;
        config.speed_settings = SpeedSettings::from_preset(10);
        let config = Config::new().with_encoder_config(config).with_threads(1);
        let mut context = config.new_context::<T>().expect("a valid configuration");
        let mut frame = context.new_frame();
        let halves = self.halves.map(|color| self.samples(color));
        for (index, plane) in frame.planes.iter_mut().enumerate() {
            let middle = (self.size.0 / 2) >> plane.cfg.xdec;
            for row in plane.mut_slice(Default::default()).rows_iter_mut() {
                for (x, sample) in row.iter_mut().enumerate() {
                    let half = usize::from(x >= middle);
                    *sample = T::cast_from(halves[half][index]);
                }
            }
        }
        context.send_frame(frame).expect("an accepted frame");
        context.flush();
        context.receive_packet().expect("a packet").data
    }
}

/// An AVIF file to build.
#[derive(Clone, Default)]
pub(crate) struct Fixture {
    pub(crate) color: Vec<u8>,
    pub(crate) alpha: Option<Vec<u8>>,
    pub(crate) size: (u32, u32),
    pub(crate) depth: u8,
    pub(crate) kind: Option<FourCc>,
    /// Additional essential properties of the picture.
    pub(crate) properties: Vec<(FourCc, Vec<u8>)>,
    pub(crate) premultiplied: bool,
    /// The extents of the picture: offset and length within its data.
    pub(crate) extents: Option<Vec<(usize, usize)>>,
    /// Whether the data of the picture are in the `idat` box.
    pub(crate) in_idat: bool,
}

pub(crate) fn boxed(kind: FourCc, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let size = u32::try_from(body.len() + 8).expect("a small box").to_be_bytes();
    [&size[..], &kind, &body].concat()
}

fn u16s(values: &[usize]) -> Vec<u8> {
    let short = |&value| u16::try_from(value).expect("a small number").to_be_bytes();
    values.iter().flat_map(short).collect()
}

fn u32s(values: &[usize]) -> Vec<u8> {
    let long = |&value| u32::try_from(value).expect("a small number").to_be_bytes();
    values.iter().flat_map(long).collect()
}

impl Fixture {
    pub(crate) fn new(av1: Av1) -> Self {
        Self {
            color: av1.encode(),
            size: (
                av1.size.0.try_into().expect("made here"),
                av1.size.1.try_into().expect("made here"),
            ),
            depth: av1.depth.try_into().expect("made here"),
            ..Self::default()
        }
    }

    pub(crate) fn with(mut self, kind: FourCc, body: &[u8]) -> Self {
        self.properties.push((kind, body.to_vec()));
        self
    }

    pub(crate) fn with_alpha(mut self, alpha: Av1) -> Self {
        self.alpha = Some(alpha.encode());
        self
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let head = self.head(0).len();
        let alpha = self.alpha.clone().unwrap_or_default();
        let data = boxed(*b"mdat", &[&self.color, &alpha]);
        [self.head(head + 8), data].concat()
    }

    /// Everything before the data, which start at offset `at`.
    pub(crate) fn head(&self, at: usize) -> Vec<u8> {
        let full = [0_u8; 4];
        let kind = self.kind.unwrap_or(*b"av01");
        let info = |id: usize, kind: FourCc| {
            boxed(*b"infe", &[&[2, 0, 0, 0], &u16s(&[id, 0]), &kind, b"\0"])
        };
        let meta = [
            boxed(*b"hdlr", &[&full, &full, b"pict", &[0; 13]]),
            boxed(*b"pitm", &[&full, &u16s(&[1])]),
            boxed(*b"iinf", &[&full, &u16s(&[2]), &info(1, kind), &info(2, *b"av01")]),
            self.references(),
            self.item_properties(),
            self.locations(at),
            boxed(*b"idat", &[if self.in_idat { &self.color[..] } else { &[] }]),
        ];
        let ftyp = boxed(*b"ftyp", &[b"avif", &full, b"avifmif1"]);
        [ftyp, boxed(*b"meta", &[&full, &meta.concat()])].concat()
    }

    pub(crate) fn references(&self) -> Vec<u8> {
        let reference = |kind, from, to| boxed(kind, &[&u16s(&[from, 1, to])]);
        let mut all = vec![0; 4];
        if self.alpha.is_some() {
            all.extend(reference(*b"auxl", 2, 1));
        }
        if self.premultiplied {
            all.extend(reference(*b"prem", 1, 2));
        }
        boxed(*b"iref", &[&all])
    }

    pub(crate) fn item_properties(&self) -> Vec<u8> {
        let flags = match self.depth {
            12 => 0x60,
            10 => 0x40,
            _ => 0,
        };
        let (width, height) = (self.size.0.to_be_bytes(), self.size.1.to_be_bytes());
        let urn = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0";
        let mut container = [
            boxed(*b"ispe", &[&[0; 4], &width, &height]),
            boxed(*b"av1C", &[&[0x81, 0, flags, 0]]),
            boxed(*b"auxC", &[&[0; 4], urn]),
        ]
        .concat();
        let mut indices = vec![1, 0x82];
        for (index, (kind, body)) in self.properties.iter().enumerate() {
            container.extend(boxed(*kind, &[body]));
            indices.push(0x84 + u8::try_from(index).expect("made here"));
        }
        let count = u8::try_from(indices.len()).expect("made here");
        let ipma = [&[0; 4][..], &u32s(&[2]), &[0, 1, count], &indices, &[0, 2, 3, 1, 0x82, 3]];
        boxed(*b"iprp", &[&boxed(*b"ipco", &[&container]), &boxed(*b"ipma", &ipma)])
    }

    pub(crate) fn locations(&self, at: usize) -> Vec<u8> {
        let extents = self.extents.clone().unwrap_or(vec![(0, self.color.len())]);
        let from = if self.in_idat { 0 } else { at };
        let mut body = vec![1, 0, 0, 0, 0x44, 0, 0, 2];
        body.extend(u16s(&[1, usize::from(self.in_idat), 0, extents.len()]));
        for (offset, length) in extents {
            body.extend(u32s(&[from + offset, length]));
        }
        let alpha = self.alpha.as_ref().map_or(0, Vec::len);
        body.extend(u16s(&[2, 0, 0, 1]));
        body.extend(u32s(&[at + self.color.len(), alpha]));
        boxed(*b"iloc", &[&body])
    }

    pub(crate) fn decode(&self) -> HeifPicture {
        decode_coded(&self.build()).expect("a valid file")
    }
}

/// The color in the middle of each half.
pub(crate) fn halves(image: &DynamicImage) -> [Rgb; 2] {
    let pixels = image.to_rgb8();
    let (width, height) = pixels.dimensions();
    [width / 4, width * 3 / 4].map(|x| pixels.get_pixel(x, height / 2).0)
}

pub(crate) fn assert_close(found: &[u8], expected: &[u8], tolerance: u8, what: &str) {
    let far = found.iter().zip(expected).any(|(a, b)| a.abs_diff(*b) > tolerance);
    assert!(!far, "{what}: found {found:?}, expected {expected:?}");
}

pub(crate) fn assert_halves(image: &DynamicImage, what: &str) {
    let found = halves(image);
    assert_close(&found.concat(), &[RED, BLUE].concat(), 3, what);
}

pub(crate) fn gradient(width: u32, height: u32) -> RgbaImage {
    RgbaImage::from_fn(width, height, |x, y| {
        let value =
            |part: u32, whole: u32| u8::try_from(part * 255 / whole.max(1)).expect("made here");
        let across = value(x, width);
        image::Rgba([across, value(y, height), 255 - across, 255 - value(y, height) / 2])
    })
}

pub(crate) fn mean_difference(a: &[u8], b: &[u8]) -> u64 {
    assert_eq!(a.len(), b.len());
    let sum: u64 = a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum / a.len() as u64
}
