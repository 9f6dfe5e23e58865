//! Fits a picture into a preset's box.

use safelight_domain::{Fit, Size};

/// A rectangle in a picture, in pixels of its full size. The numbers need not be whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Region {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
}

impl Region {
    /// All of a picture.
    pub fn whole(size: Size) -> Self {
        Self { left: 0.0, top: 0.0, width: size.width.into(), height: size.height.into() }
    }
}

/// The part of a picture that a preset shows, and the size at which it shows it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Viewport {
    /// The visible part of the picture.
    pub region: Region,
    /// The size of the rendition.
    pub size: Size,
}

impl Viewport {
    /// Fits a picture of `full` pixels into a box. Never enlarges, keeps the aspect ratio, and crops around
    /// the center.
    pub fn new(full: Size, wanted: Size, fit: Fit) -> Self {
        match fit {
            Fit::Inside => Self { region: Region::whole(full), size: inside(full, wanted) },
            Fit::Cover => cover(full, wanted),
        }
    }

    /// The number of picture pixels per rendition pixel in the direction with the smaller ratio: at least
    /// about 1.
    pub fn reduction(&self) -> f64 {
        let across = self.region.width / f64::from(self.size.width);
        across.min(self.region.height / f64::from(self.size.height))
    }
}

fn inside(full: Size, wanted: Size) -> Size {
    let (width, height) = (u64::from(full.width), u64::from(full.height));
    let (across, down) = (u64::from(wanted.width), u64::from(wanted.height));
    if width <= across && height <= down {
        return full;
    }
    // The side that exceeds the box by the larger factor decides; the other is scaled by that factor.
    if width * down >= height * across {
        Size { width: wanted.width, height: scale_side(height, across, width) }
    } else {
        Size { width: scale_side(width, down, height), height: wanted.height }
    }
}

/// `side × to ÷ from`, rounded, at least 1.
fn scale_side(side: u64, to: u64, from: u64) -> u32 {
    let rounded = (side * to + from / 2) / from;
    u32::try_from(rounded).unwrap_or(u32::MAX).max(1)
}

fn cover(full: Size, wanted: Size) -> Viewport {
    // Shrinks a box larger than the picture until the picture covers it.
    let size = inside(wanted, full);
    let (width, height) = (f64::from(full.width), f64::from(full.height));
    let (across, down) = (f64::from(size.width), f64::from(size.height));
    let reduction = (width / across).min(height / down);
    let (region_width, region_height) = (across * reduction, down * reduction);
    let region = Region {
        left: (width - region_width) / 2.0,
        top: (height - region_height) / 2.0,
        width: region_width,
        height: region_height,
    };
    Viewport { region, size }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size((width, height): (u32, u32)) -> Size {
        Size { width, height }
    }

    #[test]
    fn inside_keeps_the_aspect_ratio_and_never_enlarges() {
        let cases = [
            ((2725, 2225), (256, 256), (256, 209)),
            ((2225, 2725), (256, 256), (209, 256)),
            ((100, 50), (256, 256), (100, 50)),
            ((256, 256), (256, 256), (256, 256)),
            ((10_000, 1), (100, 100), (100, 1)),
            ((1, 1), (1, 1), (1, 1)),
            ((4000, 3000), (1200, 630), (840, 630)),
            ((4000, 1000), (1200, 630), (1200, 300)),
            ((100, 1000), (200, 500), (50, 500)),
        ];
        for (full, wanted, expected) in cases {
            let viewport = Viewport::new(size(full), size(wanted), Fit::Inside);
            assert_eq!(viewport.size, size(expected), "{full:?} in {wanted:?}");
            assert_eq!(viewport.region, Region::whole(size(full)));
        }
    }

    #[test]
    fn cover_fills_the_box_from_the_center() {
        let viewport = Viewport::new(size((4000, 3000)), size((300, 300)), Fit::Cover);
        assert_eq!(viewport.size, size((300, 300)));
        let middle = Region { left: 500.0, top: 0.0, width: 3000.0, height: 3000.0 };
        assert_eq!(viewport.region, middle);
        assert!((viewport.reduction() - 10.0).abs() < 1e-9);
        // A box that the picture cannot cover keeps its aspect ratio.
        let viewport = Viewport::new(size((400, 300)), size((1200, 600)), Fit::Cover);
        assert_eq!(viewport.size, size((400, 200)));
        let middle = Region { left: 0.0, top: 50.0, width: 400.0, height: 200.0 };
        assert_eq!(viewport.region, middle);
    }
}
