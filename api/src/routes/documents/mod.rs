//! The documents that several resources answer with, made from what the store knows.

mod backfill;
mod image;
mod task;

pub use image::ImageDocument;
pub use task::TaskDocument;
