//! The bytes: originals and renditions.
//!
//! ```text
//! request ─▶ catalog    what is known of the image: cached, one look-up for all who ask
//!              ├─ it is not (yet) there ─▶ absent    hold, queue once, or explain
//!              ▼
//!            entry ─▶ negotiate ─▶ respond ─▶ 304, or headers and
//!                                     └─▶ source    memory ─ disk ─ shared ─ store
//! ```
//!
//! Nothing here decodes a picture or needs the queue, and no node has what another lacks: everything
//! that is kept can be dropped at any time. `docs/delivery.md` has the whole way, proxies included.

pub mod fast_path;
mod image_view;
mod metadata_cache;
mod negotiate;
mod on_demand;
mod ranges;
mod respond;
mod source;

use image_view as entry;
use metadata_cache as catalog;
use on_demand as absent;

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, Method, Uri},
    response::Response,
};
use safelight_domain::{Image, ImageId, JobKind, Task};
use safelight_services::Services;
use safelight_store::StoreError;

use crate::{
    access::signed,
    extract::{Id, PathId, parse_id},
    images::gone,
    openapi::{DeliveryProblems, Picture},
    problem::{Problem, ProblemCode},
    state::{ApiState, CurrentPresets, Draining},
};
use absent::Makings;
use catalog::{Answer, Catalog, Freshness};
use entry::{Entry, Representation};
use source::Tiers;

/// What delivery keeps in memory.
pub struct Delivery {
    /// What is known of images.
    catalog: Catalog,
    /// Their bytes.
    tiers: Tiers,
    /// Jobs being looked for.
    makings: Makings,
}

impl Delivery {
    /// Nothing is known yet. A node that does not deliver needs no caches.
    pub fn new(services: &Services, presets: &Arc<CurrentPresets>, delivers: bool) -> Self {
        let good_for = Duration::from_millis(services.config.metadata_cache_ms);
        let tiers = if delivers {
            Tiers::new(&services.config, &services.blobs, services.shared_cache.clone())
        } else {
            Tiers::bare(&services.config, &services.blobs)
        };
        Self {
            catalog: Catalog::new(services.store.clone(), presets.clone(), tiers.clone(), good_for),
            tiers,
            makings: Makings::default(),
        }
    }

    /// Notes that an image was deleted, so that this node answers so at once.
    pub fn bury(&self, image: &Image) {
        self.catalog.bury(image);
    }

    /// Forgets what is known of a task's image: it was changed through this node.
    pub fn forget_image_of(&self, task: &Task) {
        if let Some(image) = &task.image {
            self.catalog.forget(image.id);
        }
    }

    /// The answer for which nothing has to be waited: what is known of the image is still good, and
    /// its bytes are in memory or not called for. `None` for every other request.
    pub fn at_hand<B>(&self, request: &axum::http::Request<B>) -> Option<Response> {
        let (method, headers) = (request.method(), request.headers());
        if !matches!(*method, Method::GET | Method::HEAD) {
            return None;
        }
        if absent::says_how_long(request.uri().query(), headers) {
            return None;
        }
        let path = request.uri().path().strip_prefix("/images/")?;
        let (id, preset) = path.split_once('/').map_or((path, None), |(id, p)| (id, Some(p)));
        let entry = self.catalog.at_hand(parse_id(id).ok()?)?;
        if entry.private_to.is_some() {
            return None;
        }
        let shown = match preset {
            None => entry.original.as_ref()?,
            Some(preset) => negotiate::choose(entry.renditions(preset), headers)?,
        };
        let response = respond::at_hand(&self.tiers, shown, method, headers)?;
        self.catalog.count_hit();
        Some(response)
    }

    /// Bytes in memory for delivery.
    pub fn bytes_in_memory(&self) -> u64 {
        self.tiers.bytes_in_memory()
    }
}

/// The original, as it was uploaded.
///
/// HEAD is answered as well. A request for an original that is not stored yet is held for a while.
#[utoipa::path(
    get, path = "/images/{id}", operation_id = "get_original", tag = "delivery",
    params(
        ("id" = ImageId, Path, description = "The image's id"),
        ("wait" = Option<u32>, Query, description = "Seconds to hold the request while the image is being processed", minimum = 0, maximum = 60),
        ("prefer" = Option<String>, Header, description = "`wait=` and seconds: the same as the parameter, which counts for more", example = "wait=10"),
        ("if-match" = Option<String>, Header, description = "The `ETag` of the bytes without which the client wants none"),
        ("if-unmodified-since" = Option<String>, Header, description = "The same by `Last-Modified`"),
        ("expires" = Option<i64>, Query, description = "Of a signed URL: until when it is good, in Unix seconds"),
        ("key_id" = Option<String>, Query, description = "Of a signed URL: the key it was signed with"),
        ("signature" = Option<String>, Query, description = "Of a signed URL: its signature"),
        ("if-none-match" = Option<String>, Header, description = "The `ETag` of the bytes that the client has"),
        ("if-modified-since" = Option<String>, Header, description = "The `Last-Modified` of the bytes that the client has"),
        ("range" = Option<String>, Header, description = "The parts that the client wants", example = "bytes=0-1023"),
        ("if-range" = Option<String>, Header, description = "The `ETag` or `Last-Modified` of what the client has a part of"),
    ),
    responses(
        (status = 200, description = "The bytes", content((Picture = "image/*")), headers(
            ("ETag" = String, description = "The SHA-256 of the bytes"),
            ("Last-Modified" = String, description = "When they were stored"),
            ("Cache-Control" = String, description = "The bytes never change"),
            ("Cache-Status" = String, description = "Where the bytes came from (RFC 9211)"),
            ("Content-Disposition" = String, description = "`inline`, with the file name if one is known"),
        )),
        (status = 206, description = "The parts asked for; several of them as `multipart/byteranges`", content((Picture = "image/*"))),
        (status = 304, description = "The client has the bytes"),
        DeliveryProblems,
    ),
)]
pub async fn original(
    State(state): State<ApiState>,
    draining: Option<Extension<Draining>>,
    Id(id): Id<ImageId>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let is_there = |entry: &Entry| entry.original.is_some();
    let request = Request { state: &state, id, draining, uri: &uri, headers: &headers };
    let answer = request.image(JobKind::Write, is_there).await?;
    let original = answer.entry.as_ref().and_then(|entry| entry.original.as_ref());
    let shown = original.ok_or_else(|| ImageId::not_found(id))?;
    request.respond(shown, answer.freshness, &method).await
}

/// A rendition.
///
/// HEAD is answered as well. A request for a rendition that is still in the making is held for a
/// while; of a preset that was never made of the image, the making is begun.
#[utoipa::path(
    get, path = "/images/{id}/{preset}", operation_id = "get_rendition", tag = "delivery",
    params(
        ("id" = ImageId, Path, description = "The image's id"),
        ("preset" = String, Path, description = "The preset's name", example = "small"),
        ("wait" = Option<u32>, Query, description = "Seconds to hold the request while the image is being processed", minimum = 0, maximum = 60),
        ("expires" = Option<i64>, Query, description = "Of a signed URL: until when it is good, in Unix seconds"),
        ("key_id" = Option<String>, Query, description = "Of a signed URL: the key it was signed with"),
        ("signature" = Option<String>, Query, description = "Of a signed URL: its signature"),
        ("accept" = Option<String>, Header, description = "Chooses among the formats of a preset that has several", example = "image/avif,image/webp,*/*"),
        ("prefer" = Option<String>, Header, description = "`wait=` and seconds: the same as the parameter, which counts for more", example = "wait=10"),
        ("if-match" = Option<String>, Header, description = "The `ETag` of the bytes without which the client wants none"),
        ("if-unmodified-since" = Option<String>, Header, description = "The same by `Last-Modified`"),
        ("if-none-match" = Option<String>, Header, description = "The `ETag` of the bytes that the client has"),
        ("if-modified-since" = Option<String>, Header, description = "The `Last-Modified` of the bytes that the client has"),
        ("range" = Option<String>, Header, description = "The parts that the client wants", example = "bytes=0-1023"),
        ("if-range" = Option<String>, Header, description = "The `ETag` or `Last-Modified` of what the client has a part of"),
    ),
    responses(
        (status = 200, description = "The bytes", content((Picture = "image/*")), headers(
            ("ETag" = String, description = "The SHA-256 of the bytes"),
            ("Last-Modified" = String, description = "When they were made"),
            ("Cache-Control" = String, description = "The bytes never change"),
            ("Cache-Status" = String, description = "Where the bytes came from (RFC 9211)"),
            ("Content-Disposition" = String, description = "`inline`, with the file name if one is known"),
            ("Vary" = String, description = "`accept`, if the preset has several formats"),
        )),
        (status = 206, description = "The parts asked for; several of them as `multipart/byteranges`", content((Picture = "image/*"))),
        (status = 304, description = "The client has the bytes"),
        DeliveryProblems,
    ),
)]
pub async fn rendition(
    State(state): State<ApiState>,
    draining: Option<Extension<Draining>>,
    path: Result<Path<(String, String)>, PathRejection>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path((id, preset)) = path.map_err(|_| ImageId::not_found("(unreadable)"))?;
    let id = parse_id::<ImageId>(&id)?;
    if !state.presets.has(&preset) {
        return Err(no_such_preset(&state, &preset));
    }
    let is_there = |entry: &Entry| !entry.renditions(&preset).is_empty();
    let request = Request { state: &state, id, draining, uri: &uri, headers: &headers };
    let answer = request.image(JobKind::Thumbnail, is_there).await?;
    let offers = answer.entry.as_ref().map_or(&[][..], |entry| entry.renditions(&preset));
    let shown = negotiate::choose(offers, &headers).ok_or_else(|| ImageId::not_found(id))?;
    request.respond(shown, answer.freshness, &method).await
}

/// What both calls have in common.
struct Request<'a> {
    state: &'a ApiState,
    id: ImageId,
    draining: Option<Extension<Draining>>,
    uri: &'a Uri,
    headers: &'a HeaderMap,
}

impl Request<'_> {
    /// The image, once it has what `is_there` looks for.
    async fn image(
        &self,
        kind: JobKind,
        is_there: impl Fn(&Entry) -> bool,
    ) -> Result<Answer, Problem> {
        let Self { state, id, draining, uri, headers } = self;
        // A cache in front would take another spelling for another picture, and no purge would reach it.
        if uri.path().contains('%') {
            return Err(ImageId::not_found(uri.path().escape_debug()));
        }
        // Also where there is nothing to wait for: what is wrong does not come and go.
        let wait = absent::patience(state, uri.query(), headers)?;
        let answer = state.delivery.catalog.look_up(*id).await?;
        self.check(&answer).await?;
        if is_there(answer.image(*id)?) {
            return Ok(answer);
        }
        let draining = draining.as_ref().map(|draining| draining.0.0.clone()).unwrap_or_default();
        let answer = absent::wait_for(state, *id, kind, wait, &draining, is_there).await?;
        // Meanwhile a key may have been revoked, or a signature have expired.
        self.check(&answer).await?;
        Ok(answer)
    }

    /// Refuses whoever may not read an image that is private.
    async fn check(&self, answer: &Answer) -> Result<(), Problem> {
        let private_to = answer.entry.as_ref().and_then(|entry| entry.private_to.as_ref());
        let Some(owner) = private_to else { return Ok(()) };
        signed::check(self.state, self.id, owner, self.uri, self.headers).await
    }

    /// The answer, unless the bytes are missing because the image has gone meanwhile.
    async fn respond(
        &self,
        shown: &Representation,
        freshness: Freshness,
        method: &Method,
    ) -> Result<Response, Problem> {
        let Delivery { catalog, tiers, .. } = &self.state.delivery;
        match respond::respond(tiers, shown, freshness, method, self.headers).await {
            Err(problem) if problem.code() == ProblemCode::BlobDamaged => {
                let now = catalog.read(self.id).await?;
                match now.entry {
                    Some(entry) if entry.discarded => Err(gone(entry.deleted)),
                    _ => Err(problem),
                }
            }
            response => response,
        }
    }
}

pub fn no_such_preset(state: &ApiState, preset: &str) -> Problem {
    let names: Vec<_> = state.presets.names().collect();
    let preset = preset.escape_debug();
    Problem::new(ProblemCode::PresetNotFound, format!("There is no preset `{preset}`."))
        .hint(format!("the presets are: {}", names.join(", ")))
        .with("presets", names)
}

impl From<Arc<StoreError>> for Problem {
    fn from(error: Arc<StoreError>) -> Self {
        Self::from(&*error)
    }
}
