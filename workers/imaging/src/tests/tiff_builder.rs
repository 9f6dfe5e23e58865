//! Writes TIFFs of every layout, byte order and compression that the tests need.

use super::{
    quarters,
    tiff_packing::{Packing, split_tables},
};

#[derive(Debug, Clone, Copy)]
pub enum Chunking {
    /// Rows per strip; 0 writes one strip and no such field.
    Strips(u32),
    Tiles(u32, u32),
}

/// The raw samples of a pixel.
pub type PixelFn = Box<dyn Fn(u32, u32) -> Vec<u64>>;

/// One page.
#[allow(clippy::struct_excessive_bools)] // each is a field of the format
pub struct TiffBuilder {
    pub big_endian: bool,
    pub is_big_tiff: bool,
    pub width: u32,
    pub height: u32,
    pub bits: u32,
    pub samples: u32,
    pub photometric: Option<u64>,
    pub extra_samples: Vec<u64>,
    pub sample_format: Option<u64>,
    pub predictor: u64,
    pub packing: Packing,
    pub chunking: Chunking,
    pub is_planar: bool,
    pub low_bit_first: bool,
    pub subsampling: Option<[u32; 2]>,
    pub is_progressive: bool,
    /// `JPEGTables`, whatever the packing.
    pub jpeg_tables: Vec<u8>,
    pub color_map: Vec<u64>,
    pub icc: Vec<u8>,
    pub make: &'static str,
    pub has_lengths: bool,
    /// The bytes that the last chunk lacks.
    pub cut: usize,
    /// Further fields, or other values of the ones above: tag, kind, value. A short with more than 16 bits
    /// is two shorts.
    pub fields: Vec<(u16, u16, u64)>,
    pub others: Vec<TiffBuilder>,
    /// The others are `SubIFDs`, not the next pages.
    pub are_children: bool,
    pub pixel: PixelFn,
}

/// The quarters of a picture of 96 × 64 pixels, in 8 bits.
pub fn quarter_samples(x: u32, y: u32) -> Vec<u64> {
    quarters(x, y).0.map(u64::from).to_vec()
}

impl TiffBuilder {
    /// Quarters of a picture, as RGB with as many bits as the field says.
    pub fn rgb(width: u32, height: u32) -> Self {
        Self {
            big_endian: false,
            is_big_tiff: false,
            width,
            height,
            bits: 8,
            samples: 3,
            photometric: Some(2),
            extra_samples: Vec::new(),
            sample_format: None,
            predictor: 1,
            packing: Packing::None,
            chunking: Chunking::Strips(16),
            is_planar: false,
            low_bit_first: false,
            subsampling: None,
            is_progressive: false,
            jpeg_tables: Vec::new(),
            color_map: Vec::new(),
            icc: Vec::new(),
            make: "",
            has_lengths: true,
            cut: 0,
            fields: Vec::new(),
            others: Vec::new(),
            are_children: false,
            // The largest value of any depth: `pack` cuts it off.
            pixel: Box::new(move |x, y| {
                let at = (u32::from(x >= width / 2) * 48, u32::from(y >= height / 2) * 32);
                let color = quarters(at.0, at.1).0;
                color.map(|level| if level > 0 { u64::MAX } else { 0 }).to_vec()
            }),
        }
    }

    /// Quarters of a picture in floating-point numbers from 0 to 1.
    pub fn float(width: u32, height: u32) -> Self {
        Self { sample_format: Some(3), ..Self::rgb(width, height) }
    }

    /// Quarters of 96 × 64 pixels, of which blocks share chroma.
    pub fn ycbcr(subsampling: [u32; 2]) -> Self {
        let pixel = |x, y| {
            let [red, green, blue] = quarters(x, y).0.map(f64::from);
            let luma = 0.299 * red + 0.587 * green + 0.114 * blue;
            let chroma = |color: f64, weight: f64| (color - luma) / (2.0 - 2.0 * weight) + 128.0;
            [luma, chroma(blue, 0.114), chroma(red, 0.299)]
                .map(|level| level.round().clamp(0.0, 255.0) as u64)
                .to_vec()
        };
        Self {
            photometric: Some(6),
            subsampling: Some(subsampling),
            pixel: Box::new(pixel),
            ..Self::rgb(96, 64)
        }
    }

    pub fn build(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(if self.big_endian { b"MM" } else { b"II" });
        let pointer = self.pointer();
        if self.is_big_tiff {
            out.extend([43, 8, 0].into_iter().flat_map(|number| self.number(number, 2)));
        } else {
            out.extend(self.number(42, 2));
        }
        let first = out.len();
        out.extend(self.number(0, pointer));
        let mut last = first;
        let mut children = Vec::new();
        for other in self.others.iter().filter(|_| self.are_children) {
            let (at, _) = other.write_page(&mut out, &[]);
            children.push(at as u64);
        }
        let mut pages = vec![(self, children)];
        if !self.are_children {
            pages.extend(self.others.iter().map(|other| (other, Vec::new())));
        }
        for (page, children) in pages {
            let (at, next) = page.write_page(&mut out, &children);
            let link = self.number(at as u64, pointer);
            out[last..last + pointer].copy_from_slice(&link);
            last = next;
        }
        out
    }

    fn pointer(&self) -> usize {
        if self.is_big_tiff { 8 } else { 4 }
    }

    fn number(&self, value: u64, size: usize) -> Vec<u8> {
        if self.big_endian {
            value.to_be_bytes()[8 - size..].to_vec()
        } else {
            value.to_le_bytes()[..size].to_vec()
        }
    }

    /// Appends pixels and directory; returns where the directory and its link to the next one are.
    fn write_page(&self, out: &mut Vec<u8>, children: &[u64]) -> (usize, usize) {
        let mut chunks = self.chunks();
        if let Some(last) = chunks.last_mut() {
            last.truncate(last.len() - self.cut);
        }
        let mut offsets = Vec::new();
        let lengths: Vec<u64> = chunks.iter().map(|chunk| chunk.len() as u64).collect();
        for chunk in &chunks {
            offsets.push(out.len() as u64);
            out.extend_from_slice(chunk);
        }
        let mut fields = self.page_fields(offsets, lengths, children);
        for (tag, kind, value) in &self.fields {
            fields.retain(|field| field.0 != *tag);
            let values = if *kind == 3 && *value > 0xFFFF {
                vec![value & 0xFFFF, value >> 16]
            } else {
                vec![*value]
            };
            fields.push((*tag, *kind, values));
        }
        fields.sort();
        let inline = self.pointer();
        let mut entries = self.number(fields.len() as u64, if self.is_big_tiff { 8 } else { 2 });
        for (tag, kind, values) in &fields {
            let size = match kind {
                1 | 2 | 7 | 99 => 1,
                3 => 2,
                16 => 8,
                _ => 4,
            };
            let mut data: Vec<u8> =
                values.iter().flat_map(|value| self.number(*value, size)).collect();
            entries.extend(self.number((*tag).into(), 2));
            entries.extend(self.number((*kind).into(), 2));
            entries.extend(self.number(values.len() as u64, inline));
            if data.len() > inline {
                let at = out.len() as u64;
                out.append(&mut data);
                data = self.number(at, inline);
            }
            data.resize(inline, 0);
            entries.append(&mut data);
        }
        let at = out.len();
        out.append(&mut entries);
        let next = out.len();
        out.extend(self.number(0, inline));
        (at, next)
    }

    fn page_fields(
        &self,
        offsets: Vec<u64>,
        lengths: Vec<u64>,
        children: &[u64],
    ) -> Vec<(u16, u16, Vec<u64>)> {
        let compression = match self.packing {
            Packing::None => 1,
            Packing::Lzw | Packing::OldLzw => 5,
            Packing::Deflate => 8,
            Packing::PackBits => 32773,
            Packing::Group4 => 4,
            Packing::Jpeg { .. } => 7,
        };
        let mut fields = vec![
            (256, 4, vec![self.width.into()]),
            (257, 4, vec![self.height.into()]),
            (258, 3, vec![self.bits.into(); self.samples as usize]),
            (259, 3, vec![compression]),
            (277, 3, vec![self.samples.into()]),
            (284, 3, vec![if self.is_planar { 2 } else { 1 }]),
        ];
        fields.extend(self.photometric.map(|photometric| (262, 3, vec![photometric])));
        let offset_kind = if self.is_big_tiff { 16 } else { 4 };
        let (offset_tag, length_tag) = match self.chunking {
            Chunking::Strips(0) => (273, 279),
            Chunking::Strips(rows) => {
                fields.push((278, 4, vec![rows.into()]));
                (273, 279)
            }
            Chunking::Tiles(width, height) => {
                fields.push((322, 4, vec![width.into()]));
                fields.push((323, 4, vec![height.into()]));
                (324, 325)
            }
        };
        fields.push((offset_tag, offset_kind, offsets));
        if self.has_lengths {
            fields.push((length_tag, 4, lengths));
        }
        let mut optional = |tag, kind, values: Vec<u64>| {
            if !values.is_empty() {
                fields.push((tag, kind, values));
            }
        };
        optional(338, 3, self.extra_samples.clone());
        optional(339, 3, self.sample_format.iter().copied().collect());
        optional(317, 3, if self.predictor > 1 { vec![self.predictor] } else { Vec::new() });
        optional(266, 3, if self.low_bit_first { vec![2] } else { Vec::new() });
        optional(320, 3, self.color_map.clone());
        optional(34675, 7, self.icc.iter().map(|byte| u64::from(*byte)).collect());
        optional(330, 4, children.to_vec());
        optional(271, 2, self.make.bytes().map(u64::from).collect());
        optional(530, 3, self.subsampling.iter().flatten().map(|side| u64::from(*side)).collect());
        optional(347, 7, self.tables().into_iter().map(u64::from).collect());
        fields
    }

    fn tables(&self) -> Vec<u8> {
        if let Packing::Jpeg { separate_tables: true, .. } = self.packing {
            return split_tables(&self.jpeg_chunk(0, 0, self.chunk_size())).0;
        }
        self.jpeg_tables.clone()
    }

    fn chunk_size(&self) -> (u32, u32) {
        match self.chunking {
            Chunking::Strips(0) => (self.width, self.height),
            Chunking::Strips(rows) => (self.width, rows.min(self.height)),
            Chunking::Tiles(width, height) => (width, height),
        }
    }

    fn chunks(&self) -> Vec<Vec<u8>> {
        let (width, height) = self.chunk_size();
        let mut chunks = Vec::new();
        let planes = if self.is_planar { self.samples } else { 1 };
        for plane in 0..planes {
            for top in (0..self.height).step_by(height as usize) {
                for left in (0..self.width).step_by(width as usize) {
                    // Strips end with the page, tiles do not.
                    let rows = match self.chunking {
                        Chunking::Strips(_) => height.min(self.height - top),
                        Chunking::Tiles(..) => height,
                    };
                    chunks.push(self.chunk(plane, left, top, (width, rows)));
                }
            }
        }
        chunks
    }

    fn chunk(&self, plane: u32, left: u32, top: u32, size: (u32, u32)) -> Vec<u8> {
        if let Packing::Jpeg { separate_tables, .. } = self.packing {
            let jpeg = self.jpeg_chunk(left, top, size);
            return if separate_tables { split_tables(&jpeg).1 } else { jpeg };
        }
        let mut raw = match self.subsampling {
            Some([across, down]) => self.blocks(left, top, size, across, down),
            None => (top..top + size.1).flat_map(|y| self.row(plane, left, y, size.0)).collect(),
        };
        raw = self.packing.pack(raw, size.0);
        if self.low_bit_first {
            for byte in &mut raw {
                *byte = byte.reverse_bits();
            }
        }
        raw
    }

    /// The samples of a pixel; beyond the page, of the nearest one on it.
    fn samples_at(&self, x: u32, y: u32) -> Vec<u64> {
        (self.pixel)(x.min(self.width - 1), y.min(self.height - 1))
    }

    fn row(&self, plane: u32, left: u32, y: u32, width: u32) -> Vec<u8> {
        let mut values = Vec::new();
        for x in left..left + width {
            let samples = self.samples_at(x, y);
            if self.is_planar {
                values.push(samples[plane as usize]);
            } else {
                values.extend(samples);
            }
        }
        if self.sample_format == Some(3) {
            for value in &mut values {
                *value = self.float_bits(*value);
            }
        }
        let stride = if self.is_planar { 1 } else { self.samples as usize };
        if self.predictor == 2 {
            for at in (stride..values.len()).rev() {
                values[at] = values[at].wrapping_sub(values[at - stride]);
            }
        }
        if self.predictor == 3 {
            return self.float_predicted(&values, stride);
        }
        self.pack(&values)
    }

    fn float_bits(&self, value: u64) -> u64 {
        let one = match self.bits {
            16 => 0x3C00,
            32 => u64::from(1.0_f32.to_bits()),
            _ => 1.0_f64.to_bits(),
        };
        if value > 0 { one } else { 0 }
    }

    fn float_predicted(&self, values: &[u64], stride: usize) -> Vec<u8> {
        let size = self.bits as usize / 8;
        let byte =
            |place: usize| values.iter().map(move |value| value.to_be_bytes()[8 - size + place]);
        let mut bytes: Vec<u8> = (0..size).flat_map(byte).collect();
        for at in (stride..bytes.len()).rev() {
            bytes[at] = bytes[at].wrapping_sub(bytes[at - stride]);
        }
        bytes
    }

    fn pack(&self, values: &[u64]) -> Vec<u8> {
        if self.bits.is_multiple_of(8) {
            return values
                .iter()
                .flat_map(|value| self.number(*value, self.bits as usize / 8))
                .collect();
        }
        let (mut bytes, mut pending, mut count) = (Vec::new(), 0_u64, 0);
        for value in values {
            pending = pending << self.bits | (value & ((1 << self.bits) - 1));
            count += self.bits;
            while count >= 8 {
                count -= 8;
                bytes.push((pending >> count) as u8);
            }
        }
        if count > 0 {
            bytes.push((pending << (8 - count)) as u8);
        }
        bytes
    }

    fn blocks(&self, left: u32, top: u32, size: (u32, u32), across: u32, down: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for y in (top..top + size.1).step_by(down as usize) {
            for x in (left..left + size.0).step_by(across as usize) {
                for dy in 0..down {
                    bytes.extend((0..across).map(|dx| self.samples_at(x + dx, y + dy)[0] as u8));
                }
                let chroma = self.samples_at(x, y);
                bytes.extend([chroma[1] as u8, chroma[2] as u8]);
            }
        }
        bytes
    }

    fn jpeg_chunk(&self, left: u32, top: u32, (width, height): (u32, u32)) -> Vec<u8> {
        let Packing::Jpeg { is_ycbcr, .. } = self.packing else { unreachable!() };
        let mut pixels = Vec::new();
        for y in top..top + height {
            for x in left..left + width {
                pixels.extend(self.samples_at(x, y).iter().map(|value| (*value).min(255) as u8));
            }
        }
        let mut compressor = turbojpeg::Compressor::new().expect("libjpeg-turbo");
        compressor.set_quality(95).expect("a quality");
        compressor.set_progressive(self.is_progressive).expect("a coding");
        compressor
            .set_subsamp(if is_ycbcr {
                turbojpeg::Subsamp::Sub2x2
            } else {
                turbojpeg::Subsamp::None
            })
            .expect("a sampling");
        if !is_ycbcr {
            compressor.set_colorspace(turbojpeg::Colorspace::RGB).expect("a color space");
        }
        let image = turbojpeg::Image {
            pixels: &pixels[..],
            width: width as usize,
            pitch: width as usize * 3,
            height: height as usize,
            format: turbojpeg::PixelFormat::RGB,
        };
        compressor.compress_to_vec(image).expect("a JPEG")
    }
}
