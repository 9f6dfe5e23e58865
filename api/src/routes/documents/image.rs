//! The document of an image.

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, Utc};
use safelight_domain::{
    Image, ImageFacts, ImageFormat, ImageId, Owner, Placeholder, Rendition, Visibility,
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::presets::CurrentPresets;

/// An image.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Image)]
pub struct ImageDocument {
    /// Its id.
    pub id: ImageId,
    /// The owner.
    #[schema(value_type = String)]
    pub owner: Owner,
    /// Who may read its bytes.
    pub visibility: Visibility,
    /// The URL of the original.
    #[schema(example = "/images/0193c2a4-7d1e-7c3a-9d52-3f1f5a3c9b10")]
    pub url: String,
    /// The width of the upright image, in pixels: `orientation` is already applied, as in the renditions.
    /// Null until the write job is done.
    pub width: Option<u32>,
    /// The height of the upright image, in pixels: `orientation` is already applied, as in the renditions.
    /// Null until the write job is done.
    pub height: Option<u32>,
    /// The width of the original as stored, in pixels, before `orientation` is applied. Null until the write
    /// job is done.
    pub stored_width: Option<u32>,
    /// The height of the original as stored, in pixels, before `orientation` is applied. Null until the write
    /// job is done.
    pub stored_height: Option<u32>,
    /// The format. Until the write job is done, it is the one that the first bytes indicate.
    pub format: ImageFormat,
    /// The size of the original, in bytes.
    pub bytes: u64,
    /// The SHA-256 of the original, in hex; null if the image is deleted.
    pub sha256: Option<String>,
    /// The client's title.
    pub title: Option<String>,
    /// The client's tags.
    pub tags: Vec<String>,
    /// The file name that the client gave.
    pub filename: Option<String>,
    /// How the original as stored is turned to be upright: an EXIF orientation, 1–8, from the EXIF data or, for
    /// AVIF and HEIC, from the container. Null until the write job is done.
    pub orientation: Option<u8>,
    /// When the photo was taken, by the camera's clock.
    pub taken_at: Option<DateTime<Utc>>,
    /// Where the photo was taken; present only if the server is configured to keep positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gps: Option<GpsDocument>,
    /// When the upload was accepted.
    pub created_at: DateTime<Utc>,
    /// The renditions, by preset.
    pub renditions: BTreeMap<String, RenditionDocument>,
    /// What to show while the image is loading; null until the thumbnail job is done.
    pub placeholder: Option<PlaceholderDocument>,
}

/// A place on Earth, in degrees (WGS 84).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Gps)]
pub struct GpsDocument {
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
}

/// A resized version of an image.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Rendition)]
pub struct RenditionDocument {
    /// The URL of exactly these bytes, which caches may keep for ever. Without `v`, it is the URL of the
    /// rendition as the preset is configured at the time.
    #[schema(example = "/images/0193c2a4-7d1e-7c3a-9d52-3f1f5a3c9b10/small?v=1f0c9a7b3e5d2846")]
    pub url: String,
    /// The width, in pixels.
    pub width: u32,
    /// The height, in pixels.
    pub height: u32,
    /// Its format.
    pub format: ImageFormat,
    /// Its size in bytes.
    pub bytes: u64,
}

/// A placeholder to show while an image is loading. Identical uploads have the same placeholder.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Placeholder)]
pub struct PlaceholderDocument {
    /// A very blurred version of the upright image: a `ThumbHash` (github.com/evanw/thumbhash) in base64.
    #[schema(example = "1QcSHQRnh493V4dIh4eXh1h4kJUI", content_encoding = "base64")]
    pub thumbhash: String,
    /// The dominant color, as a CSS color (sRGB).
    #[schema(example = "#6a7d5f", pattern = "^#[0-9a-f]{6}$")]
    pub dominant_color: String,
}

impl ImageDocument {
    /// What a client sees of `image`.
    pub fn new(image: &Image, presets: &CurrentPresets) -> Self {
        let facts = image.facts.as_ref();
        let upright = facts.map(ImageFacts::upright_size);
        let renditions = presets.renditions(image);
        let placeholder = image.placeholder.as_ref().filter(|_| !image.deleted);
        Self {
            id: image.id,
            owner: image.owner.clone(),
            visibility: image.visibility(),
            url: format!("/images/{}", image.id),
            width: upright.map(|size| size.width),
            height: upright.map(|size| size.height),
            stored_width: facts.map(|facts| facts.width),
            stored_height: facts.map(|facts| facts.height),
            format: facts.map_or(image.format, |facts| facts.format),
            bytes: image.bytes,
            sha256: (!image.deleted).then(|| image.sha256.to_string()),
            title: image.labels.title.clone(),
            tags: image.labels.tags.clone(),
            filename: image.labels.filename.clone(),
            orientation: facts.map(|facts| facts.orientation),
            taken_at: facts.and_then(|facts| facts.taken_at).map(|time| time.and_utc()),
            gps: facts
                .and_then(|facts| facts.gps)
                .map(|gps| GpsDocument { latitude: gps.latitude, longitude: gps.longitude }),
            created_at: image.created_at,
            renditions: renditions
                .map(|(preset, made)| {
                    let url = presets.url(image, preset);
                    (preset.to_owned(), RenditionDocument::new(url, made))
                })
                .collect(),
            placeholder: placeholder.map(PlaceholderDocument::new),
        }
    }
}

impl PlaceholderDocument {
    fn new(placeholder: &Placeholder) -> Self {
        Self {
            thumbhash: BASE64_STANDARD.encode(&placeholder.thumbhash),
            dominant_color: placeholder.css_color(),
        }
    }
}

impl RenditionDocument {
    fn new(url: String, rendition: &Rendition) -> Self {
        Self {
            url,
            width: rendition.width,
            height: rendition.height,
            format: rendition.format,
            bytes: rendition.bytes,
        }
    }
}
