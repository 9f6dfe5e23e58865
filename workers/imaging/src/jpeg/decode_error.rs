//! What the messages of libjpeg-turbo mean for a picture without oddities (see [`tidy`](super::tidy)): that pixels
//! are missing or wrong, with one exception.
//!
//! "Extraneous bytes" after a scan are entropy-coded data that was not used. Either the decoder lost its way in
//! damaged data and needed less of it, or the encoder wrote padding. Padding is zeros, and it begins where the data
//! ends. (Fill bytes, `FF` before a marker, cause no message.)

use safelight_domain::{ErrorCode, Failure};

use super::padding::{is_padding, zeros_before};
use crate::failure::{damaged, unsupported_variant};

/// The words in which libjpeg-turbo reports a variant that it cannot decode.
const UNSUPPORTED: [&str; 4] =
    ["Unsupported JPEG", "Unsupported color", "not implemented", "not supported"];

/// What a message means.
#[derive(Debug)]
pub(super) enum DecodeError {
    /// The picture was decoded; zeros before its end marker were not needed.
    Padding,
    /// This many bytes before another marker were not needed. There may be more of them, and other messages that
    /// were not reported.
    InnerPadding(usize),
    /// It was not decoded, or not correctly.
    Failed(Failure),
}

impl DecodeError {
    /// What to tell the client about a picture that was not decoded.
    pub fn into_failure(self) -> Failure {
        match self {
            Self::Padding | Self::InnerPadding(_) => damaged(),
            Self::Failed(failure) => failure,
        }
    }
}

impl From<Failure> for DecodeError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Classifies the first message about `jpeg`, which ends with EOI.
pub(super) fn classify(error: &turbojpeg::Error, jpeg: &[u8]) -> DecodeError {
    let turbojpeg::Error::TurboJpegError(why) = error else {
        return DecodeError::Failed(damaged());
    };
    match unused_bytes(why) {
        Some((count, "0xd9")) => {
            let fill = jpeg.strip_suffix(&[0xD9]).unwrap_or(jpeg);
            let fill = fill.iter().rev().take_while(|&&byte| byte == 0xFF).count();
            let zeros = zeros_before(&jpeg[..jpeg.len().saturating_sub(1 + fill)]);
            if is_padding(zeros, count) {
                return DecodeError::Padding;
            }
        }
        Some((count, _)) => return DecodeError::InnerPadding(count),
        None => {}
    }
    tracing::debug!(%why, "libjpeg-turbo rejected a picture");
    DecodeError::Failed(if why.contains("nsufficient memory") {
        Failure::new(ErrorCode::DecoderOutOfMemory, "decoding would take too much memory")
    } else if UNSUPPORTED.iter().any(|words| why.contains(words)) {
        unsupported_variant()
    } else {
        damaged()
    })
}

/// The number of bytes that were not used, and the marker that follows them.
fn unused_bytes(why: &str) -> Option<(usize, &str)> {
    let (count, marker) = why.split_once(" extraneous bytes before marker ")?;
    Some((count.rsplit(' ').next()?.parse().ok()?, marker))
}
