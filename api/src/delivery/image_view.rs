//! What can be served of one image, prepared so that a request has little left to do.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, header};
use chrono::{DateTime, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use safelight_blobs::BlobKey;
use safelight_domain::{CacheKey, Image, ImageFormat, Owner, Visibility};

use super::source::StoredObject;
use crate::{
    http::{
        conditional::{ETag, Validators},
        security_headers::of_an_image,
    },
    presets::CurrentPresets,
};

/// The bytes under a path never change: no id is used twice, and a changed preset makes new renditions.
pub const IMMUTABLE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// Private bytes: only the client itself may keep them, and it must ask again before it shows them, since a
/// key may be revoked and a signature expire.
const PRIVATE: HeaderValue = HeaderValue::from_static("private, no-cache");

/// Characters that stand for themselves in an RFC 8187 value.
const ATTR_CHAR: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What delivery needs to know of one image.
#[derive(Debug)]
pub struct ImageView {
    /// Its upload was cancelled, or it was deleted.
    pub discarded: bool,
    /// It was deleted.
    pub deleted: bool,
    /// Its owner, if it is private.
    pub private_to: Option<Owner>,
    /// The original; `None` until it is stored.
    pub original: Option<Arc<Representation>>,
    /// The renditions of the presets as they are configured now, grouped by preset, its base first.
    renditions: Vec<(Box<str>, Vec<Arc<Representation>>)>,
}

/// Bytes that can be served, with all their headers.
#[derive(Debug)]
pub struct Representation {
    /// Where they are.
    pub object: StoredObject,
    /// Their format.
    pub format: ImageFormat,
    /// Show a client whether its copy is current.
    pub validators: Validators,
    /// The headers of a 304: what a cache needs to know that what it has is still good (RFC 9110,
    /// section 15.4.5).
    pub known: HeaderMap,
    /// The headers of a 200: the same, and those that describe the whole.
    pub whole: HeaderMap,
}

impl ImageView {
    /// What can be served of `image`.
    pub fn new(image: &Image, presets: &CurrentPresets) -> Self {
        let format = image.facts.as_ref().map_or(image.format, |facts| facts.format);
        let private = image.visibility() == Visibility::Private;
        let original = image.stored_at.filter(|_| !image.discarded).map(|stored| {
            let key = BlobKey::Blob(image.sha256);
            let object = StoredObject::new(&image.owner, key, image.sha256, image.bytes);
            let name = image.labels.filename.clone();
            Arc::new(Representation::new(object, format, stored, name.as_deref(), false, private))
        });
        let renditions = presets.names().filter_map(|preset| {
            let varies = presets.varies(preset);
            let made: Vec<_> = presets
                .variants(image, preset)
                .map(|made| {
                    let key = BlobKey::rendition(image.sha256, made);
                    let object = StoredObject::new(&image.owner, key, made.sha256, made.bytes);
                    // An equal image of another owner may have been there before.
                    let at = made.made_at.map_or(image.created_at, |at| at.max(image.created_at));
                    let name =
                        image.labels.filename.as_deref().map(|name| renamed(name, made.format));
                    let name = name.as_deref();
                    Arc::new(Representation::new(object, made.format, at, name, varies, private))
                })
                .collect();
            (!made.is_empty()).then(|| (preset.into(), made))
        });
        Self {
            discarded: image.discarded,
            deleted: image.deleted,
            private_to: private_to(image),
            original,
            renditions: renditions.collect(),
        }
    }

    /// A deleted image.
    pub fn deleted(image: &Image) -> Self {
        Self {
            discarded: true,
            deleted: true,
            private_to: private_to(image),
            original: None,
            renditions: Vec::new(),
        }
    }

    /// The representations of a preset, its base first; none if there is none.
    pub fn renditions(&self, preset: &str) -> &[Arc<Representation>] {
        self.renditions.iter().find(|(name, _)| **name == *preset).map_or(&[], |(_, made)| made)
    }

    /// The names of its objects in the caches.
    pub fn objects(&self) -> Vec<CacheKey> {
        let renditions = self.renditions.iter().flat_map(|(_, made)| made);
        renditions.chain(&self.original).map(|one| one.object.cached).collect()
    }

    /// Its approximate size in memory, in bytes.
    pub fn weight(&self) -> u32 {
        const REPRESENTATION: usize = 2560;
        let count = 1 + self.renditions.iter().map(|(_, made)| made.len()).sum::<usize>();
        u32::try_from(count * REPRESENTATION).unwrap_or(u32::MAX)
    }
}

impl Representation {
    fn new(
        object: StoredObject,
        format: ImageFormat,
        modified: DateTime<Utc>,
        filename: Option<&str>,
        varies: bool,
        private: bool,
    ) -> Self {
        let validators = Validators { tag: ETag::of(object.sha256), modified };
        let mut known = HeaderMap::with_capacity(8);
        known.extend(validators.tag.value().map(|tag| (header::ETAG, tag)));
        known.insert(header::LAST_MODIFIED, validators.last_modified());
        known.insert(header::CACHE_CONTROL, if private { PRIVATE } else { IMMUTABLE });
        of_an_image(&mut known);
        // Each response overwrites it. With the slot reserved, no clone has to grow.
        known.insert(header::CACHE_STATUS, HeaderValue::from_static("safelight"));
        if varies {
            known.insert(header::VARY, HeaderValue::from_static("accept"));
        }
        let mut whole = known.clone();
        whole.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        whole.extend(inline(filename).map(|value| (header::CONTENT_DISPOSITION, value)));
        whole.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
        whole.insert(header::CONTENT_LENGTH, HeaderValue::from(object.bytes));
        Self { object, format, validators, known, whole }
    }
}

/// The owner of an image, if it is private.
fn private_to(image: &Image) -> Option<Owner> {
    (image.visibility() == Visibility::Private).then(|| image.owner.clone())
}

/// The name with the extension of another format.
fn renamed(name: &str, format: ImageFormat) -> String {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    format!("{}.{}", if stem.is_empty() { "image" } else { stem }, format.extension())
}

/// `inline`, with the name to save under: for old clients in ASCII, for others as RFC 8187 says.
fn inline(filename: Option<&str>) -> Option<HeaderValue> {
    let Some(name) = filename else { return Some(HeaderValue::from_static("inline")) };
    let plain = |c: char| if matches!(c, ' '..='~') && !"\"\\%".contains(c) { c } else { '_' };
    let ascii: String = name.chars().map(plain).collect();
    let encoded = utf8_percent_encode(name, ATTR_CHAR);
    HeaderValue::from_str(&format!("inline; filename=\"{ascii}\"; filename*=UTF-8''{encoded}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_cannot_break_out_of_their_header() {
        let value = inline(Some("a\"; x=\\\u{e9}.jpg")).expect("a header value");
        assert_eq!(
            value,
            "inline; filename=\"a_; x=__.jpg\"; filename*=UTF-8''a%22%3B%20x%3D%5C%C3%A9.jpg"
        );
        assert_eq!(inline(None).expect("inline"), "inline");
    }

    #[test]
    fn rendition_is_named_after_its_own_format() {
        for (name, renamed_to) in [
            ("cat.tiff", "cat.webp"),
            ("cat", "cat.webp"),
            ("a.b.gif", "a.b.webp"),
            (".x", "image.webp"),
        ] {
            assert_eq!(renamed(name, ImageFormat::Webp), renamed_to);
        }
    }
}
