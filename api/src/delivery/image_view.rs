//! What can be served of one image, prepared so that a request has little left to do.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, header};
use chrono::{DateTime, Utc};
use safelight_blobs::BlobKey;
use safelight_domain::{CacheKey, Image, ImageFormat, Owner, Visibility};
use safelight_store::DamagedRendition;

use super::{download_name, lifetime::Lifetime, source::StoredObject};
use crate::{
    http::{
        conditional::{ETag, Validators},
        digest,
        security_headers::of_an_image,
    },
    presets::CurrentPresets,
};

/// What delivery needs to know of one image.
#[derive(Debug)]
pub struct ImageView {
    /// Its upload was cancelled, or it was deleted.
    pub discarded: bool,
    /// It was deleted.
    pub deleted: bool,
    /// Its owner.
    pub owner: Owner,
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
    /// When they were recorded; `None` for an original.
    pub made_at: Option<DateTime<Utc>>,
    /// Show a client whether its copy is current.
    pub validators: Validators,
    /// How long caches may keep it.
    pub lifetime: Lifetime,
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
        let is_private = image.visibility() == Visibility::Private;
        let original = image.stored_at.filter(|_| !image.discarded).map(|stored| {
            let key = BlobKey::Blob(image.sha256);
            let object = StoredObject::new(&image.owner, key, image.sha256, image.bytes);
            let lifetime = if is_private { Lifetime::Private } else { Lifetime::Unlimited };
            let name = download_name::of(image.labels.filename.as_deref(), format);
            Arc::new(Representation::new(object, format, stored, name.as_deref(), false, lifetime))
        });
        let renditions = presets.names().filter_map(|preset| {
            let varies = presets.varies(preset);
            let lifetime = match presets.version(image, preset) {
                Some(version) if !is_private => Lifetime::OfVersion(version.into()),
                _ => Lifetime::Private,
            };
            let made: Vec<_> = presets
                .variants(image, preset)
                .map(|made| {
                    let key = BlobKey::rendition(image.sha256, made);
                    let object = StoredObject::new(&image.owner, key, made.sha256, made.bytes);
                    // An equal image of another owner may have been there before.
                    let at = made.made_at.map_or(image.created_at, |at| at.max(image.created_at));
                    let (format, lifetime) = (made.format, lifetime.clone());
                    let name = download_name::of(image.labels.filename.as_deref(), format);
                    let name = name.as_deref();
                    let shown = Representation::new(object, format, at, name, varies, lifetime);
                    Arc::new(Representation { made_at: made.made_at, ..shown })
                })
                .collect();
            (!made.is_empty()).then(|| (preset.into(), made))
        });
        Self {
            discarded: image.discarded,
            deleted: image.deleted,
            owner: image.owner.clone(),
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
            owner: image.owner.clone(),
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
        lifetime: Lifetime,
    ) -> Self {
        let validators = Validators { tag: ETag::of(object.sha256), modified };
        let mut known = HeaderMap::with_capacity(16);
        known.extend(validators.tag.value().map(|tag| (header::ETAG, tag)));
        known.insert(header::LAST_MODIFIED, validators.last_modified());
        // Each response overwrites it.
        known.insert(header::CACHE_CONTROL, lifetime.cache_control(None));
        known.extend(digest::of(object.sha256).map(|value| (digest::REPR_DIGEST, value)));
        of_an_image(&mut known);
        // Each response overwrites it. With the slot reserved, no clone has to grow.
        known.insert(header::CACHE_STATUS, HeaderValue::from_static("safelight"));
        if varies {
            known.insert(header::VARY, HeaderValue::from_static("accept"));
        }
        let mut whole = known.clone();
        whole.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        whole.extend(
            download_name::inline(filename).map(|value| (header::CONTENT_DISPOSITION, value)),
        );
        whole.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
        whole.insert(header::CONTENT_LENGTH, HeaderValue::from(object.bytes));
        Self { object, format, made_at: None, validators, lifetime, known, whole }
    }

    /// The record of a rendition whose bytes are not what it says; `None` for an original.
    pub fn as_damaged(&self) -> Option<DamagedRendition> {
        let BlobKey::Rendition { of, preset, fingerprint, format } = self.object.key.clone() else {
            return None;
        };
        let (sha256, made_at) = (self.object.sha256, self.made_at?);
        Some(DamagedRendition { of, preset, fingerprint, format, sha256, made_at })
    }

    /// Whether this is another record of the same rendition as `before`.
    pub fn replaces(&self, before: &Self) -> bool {
        self.object.key == before.object.key && self.made_at != before.made_at
    }
}

/// The owner of an image, if it is private.
fn private_to(image: &Image) -> Option<Owner> {
    (image.visibility() == Visibility::Private).then(|| image.owner.clone())
}
