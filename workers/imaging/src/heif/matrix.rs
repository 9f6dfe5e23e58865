//! Luma and chroma to red, green and blue, by the code points of ITU-T H.273.

use super::{
    coding::{Chroma, Cicp, UNSPECIFIED},
    error::HeifError::{self, Corrupt, Unsupported},
    planes::Planes,
};

/// How three samples become red, green and blue.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// One plane: all three are luma.
    Gray,
    /// The planes are green, blue and red.
    Identity,
    /// `YCgCo` (H.273, matrix 8).
    YCgCo,
    /// The shares of Cr in red, of Cb and Cr in green, and of Cb in blue.
    Linear { red: f32, green: [f32; 2], blue: f32 },
}

/// Converts samples to red, green and blue of 0 to 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix {
    kind: Kind,
    /// The sample of black, and the factor after it is subtracted.
    luma: (f32, f32),
    /// The sample of no color, and the factor after it is subtracted.
    chroma: (f32, f32),
}

impl Matrix {
    /// The conversion for samples like those of `planes`.
    pub fn new(planes: &Planes, cicp: Cicp) -> Result<Self, HeifError> {
        let unit = f32::from(1_u16 << (planes.depth - 8));
        let most = planes.most();
        let (luma, chroma_range) = if cicp.full_range {
            ((0.0, 1.0 / most), most)
        } else {
            ((16.0 * unit, 1.0 / (219.0 * unit)), 224.0 * unit)
        };
        let chroma = (128.0 * unit, 1.0 / chroma_range);
        let kind = match (planes.chroma, cicp.matrix) {
            (Chroma::None, _) => Kind::Gray,
            (Chroma::Full, 0) => Kind::Identity,
            (_, 0) => return Err(Corrupt),
            (_, 8) => Kind::YCgCo,
            _ => linear(weights(cicp)?),
        };
        Ok(Self { kind, luma, chroma })
    }

    /// The same for samples of 8 bits; `None` unless they are luma and chroma.
    pub fn in_whole_numbers(&self) -> Option<WholeMatrix> {
        let Kind::Linear { red, green, blue } = self.kind else { return None };
        #[expect(clippy::cast_possible_truncation, reason = "all are below 4 × 8192")]
        let whole = |factor: f32| (factor * 255.0 * 8192.0).round() as i16;
        let chroma = |share: f32| whole(share * self.chroma.1);
        #[expect(clippy::cast_possible_truncation, reason = "0 or 16")]
        let black = self.luma.0 as i16;
        Some(WholeMatrix {
            black,
            luma: whole(self.luma.1),
            red: chroma(red),
            green: green.map(chroma),
            blue: chroma(blue),
        })
    }

    /// Converts a row in place: luma and both chroma samples become red, green and blue.
    pub fn apply(&self, [first, second, third]: [&mut [f32]; 3]) {
        let luma = |sample: f32| (sample - self.luma.0) * self.luma.1;
        let chroma = |sample: f32| (sample - self.chroma.0) * self.chroma.1;
        let pixels = first.iter_mut().zip(second.iter_mut()).zip(third.iter_mut());
        match self.kind {
            Kind::Gray => pixels.for_each(|((a, b), c)| {
                *a = luma(*a);
                (*b, *c) = (*a, *a);
            }),
            Kind::Identity => pixels.for_each(|((a, b), c)| {
                (*a, *b, *c) = (luma(*c), luma(*a), luma(*b));
            }),
            Kind::YCgCo => pixels.for_each(|((a, b), c)| {
                let (y, cg, co) = (luma(*a), chroma(*b), chroma(*c));
                (*a, *b, *c) = (y - cg + co, y + cg, y - cg - co);
            }),
            Kind::Linear { red, green: shares, blue } => {
                pixels.for_each(|((a, b), c)| {
                    let (y, cb, cr) = (luma(*a), chroma(*b), chroma(*c));
                    *a = y + red * cr;
                    *b = y - shares[0] * cb - shares[1] * cr;
                    *c = y + blue * cb;
                });
            }
        }
    }
}

/// The factors of [`Kind::Linear`] for samples of 8 bits, times 8192. They fit: all are below 4.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WholeMatrix {
    /// The sample of black.
    pub black: i16,
    pub luma: i16,
    pub red: i16,
    pub green: [i16; 2],
    pub blue: i16,
}

/// The shares of red and blue in luma (H.273, table 4).
fn weights(cicp: Cicp) -> Result<(f32, f32), HeifError> {
    Ok(match (cicp.matrix, cicp.primaries) {
        (1, _) | (12, 1) => (0.2126, 0.0722),
        (4, _) => (0.3, 0.11),
        (7, _) => (0.212, 0.087),
        (9, _) | (12, 9) => (0.2627, 0.0593),
        // Derived from the primaries of P3 and a white of D65.
        (12, 12) => (0.228_97, 0.079_29),
        // MIAF: BT.601 is the default.
        (5 | 6 | UNSPECIFIED, _) | (12, 5 | 6) => (0.299, 0.114),
        _ => return Err(Unsupported("matrix coefficients")),
    })
}

fn linear((red, blue): (f32, f32)) -> Kind {
    let green = 1.0 - red - blue;
    let (cr, cb) = (2.0 * (1.0 - red), 2.0 * (1.0 - blue));
    Kind::Linear { red: cr, green: [cb * blue / green, cr * red / green], blue: cb }
}
