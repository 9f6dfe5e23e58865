//! AVIF: AV1 still pictures. `heif` reads the container; here are the codec's two directions.
//!
//! The AV1 decoder's C-like functions turn a panic into an abort, which no caller can catch: one more reason
//! to decode in a separate process.

mod bitstream;
mod encode;

pub(super) use bitstream::decode;
pub(super) use encode::encode;
