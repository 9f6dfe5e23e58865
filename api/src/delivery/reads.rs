//! Reads of originals and renditions, from the request to the response.

use std::{sync::Arc, time::Duration};

use axum::{
    http::{HeaderMap, Method, Request, Uri},
    response::Response,
};
use safelight_blobs::Blobs;
use safelight_config::Config;
use safelight_domain::{Image, ImageId, JobKind, Task};
use safelight_queue::OutboxSignal;
use safelight_shared_cache::SharedCache;
use safelight_store::{Reads, Uploads};
use tokio_util::sync::CancellationToken;

use super::{
    image_view::{ImageView, Representation},
    metadata_cache::{Freshness, Lookup, MetadataCache},
    negotiate,
    on_demand::{self, OnDemand},
    repair::{self, Repairs},
    respond::{self, Asked},
    source::{TierSizes, Tiers},
};
use crate::{
    auth::{Client, Sender, SignedUrls},
    http::{
        extract::{PathId, parse_id},
        problem::{Problem, ProblemCode},
    },
    presets::CurrentPresets,
    watch::WatchHub,
};

/// Serves the bytes of images. Clones share its caches.
#[derive(Clone)]
pub struct Delivery(Arc<Inner>);

struct Inner {
    presets: Arc<CurrentPresets>,
    metadata: MetadataCache,
    tiers: Tiers,
    on_demand: OnDemand,
    repairs: Repairs,
    signed_urls: SignedUrls,
    /// How long a request waits by default for an image that is still being processed.
    default_wait: Duration,
}

/// What delivery uses of other parts.
pub struct DeliveryParts {
    /// Where metadata is read.
    pub reads: Arc<dyn Reads>,
    /// Where renditions are requested.
    pub uploads: Arc<dyn Uploads>,
    /// Where bytes are read.
    pub blobs: Blobs,
    /// The cache that nodes share, if there is one.
    pub shared_cache: Option<SharedCache>,
    /// Announces jobs that are requested.
    pub outbox_signal: OutboxSignal,
    /// The presets as they are configured.
    pub presets: Arc<CurrentPresets>,
    /// Reports changes of tasks.
    pub watch: WatchHub,
    /// Checks who may read private images.
    pub signed_urls: SignedUrls,
}

/// A request for bytes.
pub struct ReadRequest<'a> {
    /// The image.
    pub id: ImageId,
    /// The method.
    pub method: &'a Method,
    /// The URI, as it was sent.
    pub uri: &'a Uri,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// Where it comes from.
    pub client: Option<&'a Client>,
    /// Ends waits when the server shuts down.
    pub draining: &'a CancellationToken,
}

impl Delivery {
    /// With empty caches. A node that does not deliver needs no caches of bytes.
    pub fn new(config: &Config, parts: DeliveryParts, delivers: bool) -> Self {
        let DeliveryParts {
            reads,
            uploads,
            blobs,
            shared_cache,
            outbox_signal,
            presets,
            watch,
            signed_urls,
        } = parts;
        let tiers = if delivers {
            let sizes = TierSizes {
                memory_bytes: config.memory_cache_bytes,
                disk_bytes: config.disk_cache_bytes,
            };
            Tiers::new(&config.data_dir, sizes, &blobs, shared_cache)
        } else {
            Tiers::bare(&config.data_dir, &blobs)
        };
        let good_for = Duration::from_millis(config.metadata_cache_ms);
        let metadata = MetadataCache::new(reads.clone(), presets.clone(), tiers.clone(), good_for);
        let on_demand = OnDemand::new(reads, uploads, watch, outbox_signal, config.max_attempts);
        Self(Arc::new(Inner {
            metadata,
            repairs: Repairs::new(blobs, on_demand.clone()),
            on_demand,
            tiers,
            presets,
            signed_urls,
            default_wait: Duration::from_millis(config.delivery_wait_ms),
        }))
    }

    /// The response to a request for the original.
    pub async fn original(&self, request: ReadRequest<'_>) -> Result<Response, Problem> {
        let is_there = |view: &ImageView| view.original.is_some();
        let lookup = self.look_up(&request, JobKind::Write, is_there).await?;
        let original = lookup.view.as_ref().and_then(|view| view.original.as_ref());
        let shown = original.ok_or_else(|| ImageId::not_found(request.id))?;
        self.respond(&request, shown, lookup.freshness).await
    }

    /// The response to a request for the rendition of a preset.
    pub async fn rendition(
        &self,
        request: ReadRequest<'_>,
        preset: &str,
    ) -> Result<Response, Problem> {
        if !self.0.presets.has(preset) {
            return Err(self.0.presets.not_found(preset));
        }
        let is_there = |view: &ImageView| !view.renditions(preset).is_empty();
        let lookup = self.look_up(&request, JobKind::Thumbnail, is_there).await?;
        let offers = lookup.view.as_ref().map_or(&[][..], |view| view.renditions(preset));
        let shown = negotiate::choose(offers, request.headers);
        let shown = shown.ok_or_else(|| ImageId::not_found(request.id))?;
        match self.respond(&request, shown, lookup.freshness).await {
            Err(problem) if problem.code() == ProblemCode::BlobDamaged => {
                self.respond_repaired(&request, preset, shown, problem).await
            }
            response => response,
        }
    }

    /// The response to a request for a rendition whose bytes are missing or `damaged`: has them made again and waits
    /// for them.
    async fn respond_repaired(
        &self,
        request: &ReadRequest<'_>,
        preset: &str,
        damaged: &Representation,
        problem: Problem,
    ) -> Result<Response, Problem> {
        let Inner { metadata, repairs, on_demand, default_wait, .. } = &*self.0;
        let ReadRequest { id, uri, headers, draining, .. } = *request;
        let is_there =
            |view: &ImageView| view.renditions(preset).iter().any(|one| one.replaces(damaged));
        // This node may know an older record than that of the bytes which are there by now.
        let mut lookup = metadata.read(id).await?;
        if !is_there(lookup.image(id)?) {
            repairs.request(id, damaged, problem).await?;
            let wait = on_demand::wait_limit(*default_wait, uri.query(), headers)?;
            let wanted = (id, JobKind::Thumbnail);
            lookup = on_demand.wait_for(metadata, wanted, wait, draining, is_there).await?;
        }
        self.check_access(request, &lookup).await?;
        let shown = negotiate::choose(lookup.image(id)?.renditions(preset), headers);
        let shown = shown.ok_or_else(|| ImageId::not_found(id))?;
        match self.respond(request, shown, lookup.freshness).await {
            Err(problem) if problem.code() == ProblemCode::BlobDamaged => {
                Err(repair::damaged_again())
            }
            response => response,
        }
    }

    /// The response, if it needs no I/O: the metadata is cached and still good, and the bytes are in memory
    /// or not needed. `None` for every other request.
    pub fn try_cached<B>(&self, request: &Request<B>) -> Option<Response> {
        let (method, headers) = (request.method(), request.headers());
        if !matches!(*method, Method::GET | Method::HEAD) {
            return None;
        }
        if on_demand::names_wait(request.uri().query(), headers) {
            return None;
        }
        let path = request.uri().path().strip_prefix("/images/")?;
        let (id, preset) = path.split_once('/').map_or((path, None), |(id, p)| (id, Some(p)));
        let view = self.0.metadata.try_cached(parse_id(id).ok()?)?;
        if view.private_to.is_some() {
            return None;
        }
        let shown = match preset {
            None => view.original.as_ref()?,
            Some(preset) => negotiate::choose(view.renditions(preset), headers)?,
        };
        let asked = Asked { method, query: request.uri().query(), headers };
        let response = respond::try_cached(&self.0.tiers, shown, asked)?;
        self.0.metadata.count_hit();
        Some(response)
    }

    /// Marks an image as deleted, so that this node answers 410 immediately.
    pub fn mark_deleted(&self, image: &Image) {
        self.0.metadata.mark_deleted(image);
    }

    /// Forgets the metadata of a task's image, which was changed through this node.
    pub fn forget_image_of(&self, task: &Task) {
        if let Some(image) = &task.image {
            self.0.metadata.forget(image.id);
        }
    }

    /// Bytes in memory for delivery.
    pub fn bytes_in_memory(&self) -> u64 {
        self.0.tiers.bytes_in_memory()
    }

    /// The image, once it has what `is_there` looks for.
    async fn look_up(
        &self,
        request: &ReadRequest<'_>,
        kind: JobKind,
        is_there: impl Fn(&ImageView) -> bool,
    ) -> Result<Lookup, Problem> {
        let ReadRequest { id, uri, headers, draining, .. } = *request;
        let Inner { metadata, on_demand, default_wait, .. } = &*self.0;
        // A proxy would cache another spelling as another object, and no purge would reach it.
        if uri.path().contains('%') {
            return Err(ImageId::not_found(uri.path().escape_debug()));
        }
        // Also if there is nothing to wait for: an invalid request is always rejected.
        let wait = on_demand::wait_limit(*default_wait, uri.query(), headers)?;
        let lookup = metadata.look_up(id).await?;
        self.check_access(request, &lookup).await?;
        if is_there(lookup.image(id)?) {
            return Ok(lookup);
        }
        let lookup = on_demand.wait_for(metadata, (id, kind), wait, draining, is_there).await?;
        // Meanwhile a key may have been revoked, or a signature have expired.
        self.check_access(request, &lookup).await?;
        Ok(lookup)
    }

    /// Rejects a request that may not read a private image, and one for an image that does not exist in the
    /// same way: see [`SignedUrls::check`].
    async fn check_access(
        &self,
        request: &ReadRequest<'_>,
        lookup: &Lookup,
    ) -> Result<(), Problem> {
        let owner = match &lookup.view {
            Some(view) if view.private_to.is_none() => return Ok(()),
            Some(view) => view.private_to.as_ref(),
            None => None,
        };
        let ReadRequest { id, uri, headers, client, .. } = *request;
        let sender = Sender::new(uri, headers, client);
        self.0.signed_urls.check(id, owner, uri, sender).await
    }

    /// The response, or the problem that the image was deleted meanwhile, if that is why its bytes are
    /// missing.
    async fn respond(
        &self,
        request: &ReadRequest<'_>,
        shown: &Representation,
        freshness: Freshness,
    ) -> Result<Response, Problem> {
        let Inner { metadata, tiers, .. } = &*self.0;
        let ReadRequest { id, method, uri, headers, .. } = *request;
        let asked = Asked { method, query: uri.query(), headers };
        match respond::respond(tiers, shown, freshness, asked).await {
            Err(problem) if problem.code() == ProblemCode::BlobDamaged => {
                match metadata.read(id).await?.view {
                    Some(view) if view.discarded => Err(Problem::image_gone(view.deleted)),
                    _ => {
                        let path = shown.object.key.path();
                        tracing::error!(image = %id, %path, "stored bytes are missing or damaged");
                        Err(problem)
                    }
                }
            }
            response => response,
        }
    }
}
