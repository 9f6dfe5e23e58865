//! What can be learnt of a picture without decoding it.

use safelight_common::domain::{Failure, ImageFacts, ImageFormat};

use super::{Limits, decodable, decode, metadata::Metadata};

/// Whether a picture's first bytes are likely to hold all that [`inspect`] looks at. The other
/// formats may keep their directory or EXIF behind the pixels.
pub fn head_suffices(head: &[u8]) -> bool {
    matches!(
        ImageFormat::sniff(head),
        Some(ImageFormat::Jpeg | ImageFormat::Gif | ImageFormat::Bmp) | None
    )
}

/// The facts of a picture from its header and metadata; EXIF that cannot be read counts as absent.
/// Given only the first bytes of a picture, it may fail where the whole would not.
pub fn inspect(bytes: &[u8], limits: Limits) -> Result<ImageFacts, Failure> {
    let format = decodable(bytes)?;
    let (width, height) = decode::header(bytes, format, limits)?;
    let Metadata { orientation, taken_at, gps } = Metadata::read(bytes);
    Ok(ImageFacts { format, width, height, orientation, taken_at, gps })
}
