//! Sizes in pixels.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// A size in pixels. Presets write it as one number for a square, or as `[width, height]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

impl Size {
    /// The longest side of a preset. JPEG and AVIF support it, WebP nearly.
    pub const LONGEST: u32 = 16_384;

    /// A square.
    pub const fn square(side: u32) -> Self {
        Self { width: side, height: side }
    }

    /// The number of pixels.
    #[expect(clippy::len_without_is_empty)] // a size is never empty
    pub const fn len(self) -> usize {
        self.width as usize * self.height as usize
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// Both notations, for serde.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum SizeSpelling {
    Square(u32),
    Box([u32; 2]),
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let spelling = if self.width == self.height {
            SizeSpelling::Square(self.width)
        } else {
            SizeSpelling::Box([self.width, self.height])
        };
        spelling.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match SizeSpelling::deserialize(deserializer) {
            Ok(SizeSpelling::Square(side)) => Ok(Self::square(side)),
            Ok(SizeSpelling::Box([width, height])) => Ok(Self { width, height }),
            Err(_) => Err(D::Error::custom("expected a number of pixels or [width, height]")),
        }
    }
}
