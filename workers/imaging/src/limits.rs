//! Limits on a picture, checked from its header before anything is allocated.

use safelight_domain::{ErrorCode, Failure};
use serde::{Deserialize, Serialize};

/// Limits on a picture. The maxima are inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Maximum of width × height, in pixels.
    pub max_pixels: u64,
    /// Maximum of the longer side, in pixels.
    pub max_side: u32,
    /// Maximum number of frames of an animation.
    pub max_frames: u32,
    /// Maximum of width × height × frames of an animation, and of the sum of its frames, in pixels.
    pub max_animation_pixels: u64,
    /// Maximum memory for decoding, in bytes.
    pub max_memory: u64,
    /// Whether HEVC is decoded.
    pub heic: bool,
}

impl Limits {
    /// Checks the size that a header announces.
    pub(super) fn check_size(self, width: u32, height: u32) -> Result<(), Failure> {
        let (pixels, longest) = (area(width, height), width.max(height));
        if pixels == 0 {
            return Err(Failure::new(ErrorCode::CorruptImage, "the picture has no pixels"));
        }
        if longest > self.max_side {
            return Err(Failure::new(
                ErrorCode::SideTooLong,
                format!(
                    "{width} × {height} has a side of more pixels than the limit of {}",
                    self.max_side
                ),
            ));
        }
        if pixels > self.max_pixels {
            return Err(Failure::new(
                ErrorCode::TooManyPixels,
                format!(
                    "{width} × {height} is {pixels} pixels, more than the limit of {}",
                    self.max_pixels
                ),
            ));
        }
        Ok(())
    }

    /// Checks the number of frames, and their total size in an animation.
    pub(super) fn check_frames(self, frames: u32, width: u32, height: u32) -> Result<(), Failure> {
        if frames > self.max_frames {
            return Err(Failure::new(
                ErrorCode::TooManyFrames,
                format!("{frames} frames are more than the limit of {}", self.max_frames),
            ));
        }
        self.check_animation(frames, area(width, height).saturating_mul(frames.into()))
    }

    /// Checks the number of pixels of all frames together.
    pub(super) fn check_animation(self, frames: u32, pixels: u64) -> Result<(), Failure> {
        if frames > 1 && pixels > self.max_animation_pixels {
            return Err(Failure::new(
                ErrorCode::TooManyFrames,
                format!(
                    "{frames} frames are {pixels} pixels, more than the limit of {} for an animation",
                    self.max_animation_pixels
                ),
            ));
        }
        Ok(())
    }

    /// Checks the estimated memory for decoding.
    pub(super) fn check_memory(self, bytes: u64) -> Result<(), Failure> {
        if bytes <= self.max_memory {
            return Ok(());
        }
        Err(Failure::new(
            ErrorCode::TooMuchMemory,
            format!(
                "decoding would take about {} MiB of memory, more than the limit of {} MiB",
                bytes >> 20,
                self.max_memory >> 20
            ),
        ))
    }
}

/// Width × height, in pixels.
pub(super) fn area(width: u32, height: u32) -> u64 {
    u64::from(width) * u64::from(height)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        max_pixels: 60_000,
        max_side: 1000,
        max_frames: 10,
        max_animation_pixels: 100_000,
        max_memory: 5 << 20,
        heic: true,
    };

    #[test]
    fn each_limit_reports_its_code_and_value() {
        let cases = [
            (LIMITS.check_size(300, 201), ErrorCode::TooManyPixels, "60000"),
            (LIMITS.check_size(1001, 1), ErrorCode::SideTooLong, "1000"),
            (LIMITS.check_frames(11, 1, 1), ErrorCode::TooManyFrames, "10"),
            (LIMITS.check_frames(2, 300, 200), ErrorCode::TooManyFrames, "100000"),
            (LIMITS.check_memory(6 << 20), ErrorCode::TooMuchMemory, "5 MiB"),
            (LIMITS.check_size(0, 7), ErrorCode::CorruptImage, "no pixels"),
        ];
        for (checked, code, value) in cases {
            let failure = checked.expect_err("over the limit");
            assert_eq!(failure.code, code);
            assert!(failure.message.contains(value), "{failure}");
        }
        for fine in [
            LIMITS.check_size(300, 200),
            LIMITS.check_frames(1, 300, 200),
            LIMITS.check_frames(10, 100, 100),
            LIMITS.check_memory(5 << 20),
        ] {
            fine.expect("at the limit");
        }
    }
}
