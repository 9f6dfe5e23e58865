//! Puts the frames of an animation on top of each other, with the rules that GIF and WebP share.

use image::RgbaImage;

/// What happens to a frame's area before the next frame is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disposal {
    Keep,
    /// The area becomes transparent.
    Clear,
    /// The area becomes what it was before the frame.
    Restore,
}

/// A frame and its place. Parts that are not on the canvas are cut off.
pub(super) struct Frame {
    pub left: u32,
    pub top: u32,
    pub pixels: RgbaImage,
    /// Transparent pixels show what is below them; otherwise they make the canvas transparent.
    pub blends: bool,
    pub disposal: Disposal,
}

/// The area of the last frame that is disposed of before the next one.
struct Disposed {
    left: u32,
    top: u32,
    width: u32,
    height: u32,
    /// What was there before; transparent if `None`.
    before: Option<RgbaImage>,
}

/// What is visible; transparent at first.
pub(super) struct AnimationCanvas {
    pixels: RgbaImage,
    disposed: Option<Disposed>,
}

impl AnimationCanvas {
    pub fn new(width: u32, height: u32) -> Self {
        Self { pixels: RgbaImage::new(width, height), disposed: None }
    }

    /// Draws the next frame and returns what is visible then.
    pub fn draw(&mut self, frame: &Frame) -> RgbaImage {
        self.dispose();
        let (canvas_width, canvas_height) = self.pixels.dimensions();
        let Frame { left, top, .. } = *frame;
        let width = frame.pixels.width().min(canvas_width.saturating_sub(left));
        let height = frame.pixels.height().min(canvas_height.saturating_sub(top));
        if width > 0 && height > 0 {
            let before = (frame.disposal == Disposal::Restore).then(|| {
                image::imageops::crop_imm(&self.pixels, left, top, width, height).to_image()
            });
            if frame.disposal != Disposal::Keep {
                self.disposed = Some(Disposed { left, top, width, height, before });
            }
            let frame_rows =
                frame.pixels.as_chunks::<4>().0.chunks_exact(frame.pixels.width() as usize);
            let canvas_rows =
                self.pixels.as_chunks_mut::<4>().0.chunks_exact_mut(canvas_width as usize);
            let visible = left as usize..(left + width) as usize;
            for (over, under) in frame_rows.zip(canvas_rows.skip(top as usize)) {
                let (over, under) = (&over[..width as usize], &mut under[visible.clone()]);
                if frame.blends {
                    under
                        .iter_mut()
                        .zip(over)
                        .for_each(|(under, over)| *under = blended(*over, *under));
                } else {
                    under.copy_from_slice(over);
                }
            }
        }
        self.pixels.clone()
    }

    fn dispose(&mut self) {
        let Some(area) = self.disposed.take() else { return };
        let before = area.before.unwrap_or_else(|| RgbaImage::new(area.width, area.height));
        image::imageops::replace(&mut self.pixels, &before, area.left.into(), area.top.into());
    }
}

/// One color over another, neither of them multiplied by alpha (RFC 9649, section 2.7.1.1).
fn blended(over: [u8; 4], under: [u8; 4]) -> [u8; 4] {
    let (over_alpha, under_alpha) = (u32::from(over[3]), u32::from(under[3]));
    match (over_alpha, under_alpha) {
        (255, _) | (_, 0) => return over,
        (0, _) => return under,
        _ => {}
    }
    // Weights of 255 × 255 are full.
    let below = under_alpha * (255 - over_alpha);
    let total = over_alpha * 255 + below;
    let mix = |at: usize| {
        let sum = u32::from(over[at]) * over_alpha * 255 + u32::from(under[at]) * below;
        u8::try_from((sum + total / 2) / total).unwrap_or(u8::MAX)
    };
    let alpha = u8::try_from((total + 127) / 255).unwrap_or(u8::MAX);
    [mix(0), mix(1), mix(2), alpha]
}

#[cfg(test)]
mod tests {
    use image::Rgba;

    use super::*;

    const RED: [u8; 4] = [255, 0, 0, 255];
    const BLUE: [u8; 4] = [0, 0, 255, 255];

    fn frame(left: u32, side: u32, color: [u8; 4], disposal: Disposal) -> Frame {
        let pixels = RgbaImage::from_pixel(side, side, Rgba(color));
        Frame { left, top: 0, pixels, blends: true, disposal }
    }

    #[test]
    fn frames_are_disposed_of_and_cut_off() {
        let mut canvas = AnimationCanvas::new(2, 1);
        let mut draw = |frame: Frame| {
            let shown = canvas.draw(&frame);
            [shown.get_pixel(0, 0).0, shown.get_pixel(1, 0).0]
        };
        assert_eq!(draw(frame(0, 9, RED, Disposal::Keep)), [RED, RED]);
        assert_eq!(draw(frame(1, 9, BLUE, Disposal::Restore)), [RED, BLUE]);
        assert_eq!(draw(frame(0, 1, BLUE, Disposal::Clear)), [BLUE, RED]);
        assert_eq!(draw(frame(7, 1, BLUE, Disposal::Clear)), [[0; 4], RED]);
        assert_eq!(draw(frame(0, 0, BLUE, Disposal::Clear)), [[0; 4], RED]);
        let hole = Frame { blends: false, ..frame(1, 1, [0; 4], Disposal::Keep) };
        assert_eq!(draw(hole), [[0; 4]; 2]);
    }

    #[test]
    fn half_transparent_colors_mix() {
        assert_eq!(blended([255, 0, 0, 128], [0, 0, 255, 255]), [128, 0, 127, 255]);
        assert_eq!(blended([255, 0, 0, 128], [0; 4]), [255, 0, 0, 128]);
        assert_eq!(blended([0; 4], BLUE), BLUE);
    }
}
