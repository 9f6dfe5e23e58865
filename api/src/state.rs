//! The parts of the API together, as handlers get them.

use std::{ops::Deref, sync::Arc, time::Duration};

use safelight_blobs::Blobs;
use safelight_config::Config;
use safelight_domain::secrets::ApiSecret;
use safelight_queue::{DynJobQueue, OutboxSignal};
use safelight_shared_cache::SharedCache;
use safelight_store::DynStore;

use crate::{
    auth::{AuditLog, Authenticator, SessionGuards, SignedUrls},
    delivery::{Delivery, DeliveryParts},
    fleet::{Gauges, QueueSampler},
    http::body::BodyPolicy,
    limits::Limits,
    presets::CurrentPresets,
    readiness::Readiness,
    uploads::{Uploads, UploadsParts},
    watch::{WaitLimits, WatchHub},
};

/// Gives the process's metrics as Prometheus text.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// Which parts of the API a node serves. Probes and the API's description are served everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiOptions {
    /// Uploads, tasks and the metadata of images.
    pub uploads: bool,
    /// The bytes of images and renditions.
    pub delivery: bool,
}

impl Default for ApiOptions {
    /// Everything.
    fn default() -> Self {
        Self { uploads: true, delivery: true }
    }
}

/// What the API needs of its process. Clones share it.
#[derive(Clone)]
pub struct ApiParts {
    /// The configuration.
    pub config: Arc<Config>,
    /// Tasks, images, keys: everything that is not bytes.
    pub store: DynStore,
    /// The bytes.
    pub blobs: Blobs,
    /// The queue, whose broker the readiness probe checks.
    pub queue: DynJobQueue,
    /// The cache that nodes share, if there is one.
    pub shared_cache: Option<SharedCache>,
    /// Notifies the outbox relay of this process of new jobs.
    pub outbox_signal: OutboxSignal,
    /// What programs of this machine may send before there are any keys, if there is such a key.
    pub local_key: Option<ApiSecret>,
}

/// Shared by all handlers; clones are cheap.
#[derive(Clone)]
pub struct ApiState(Arc<Inner>);

/// The fields of [`ApiState`].
pub struct Inner {
    /// The configuration.
    pub config: Arc<Config>,
    /// What this node serves.
    pub options: ApiOptions,
    /// For handlers that only read or write rows.
    pub store: DynStore,
    /// The bytes, to measure the space that is left.
    pub blobs: Blobs,
    /// Announces jobs that handlers create.
    pub outbox_signal: OutboxSignal,
    /// The presets as they are configured.
    pub presets: Arc<CurrentPresets>,
    /// Who sends a request.
    pub authenticator: Authenticator,
    /// What admins changed.
    pub audit_log: AuditLog,
    /// Whether the keys of long responses are still valid.
    pub session_guards: SessionGuards,
    /// Access to private images.
    pub signed_urls: SignedUrls,
    /// What owners may store and send.
    pub limits: Limits,
    /// Who waits for which task.
    pub watch: WatchHub,
    /// Uploads being received.
    pub uploads: Uploads,
    /// The bytes of images.
    pub delivery: Delivery,
    /// How fast the queues move.
    pub queues: QueueSampler,
    /// Gauges that are read from the store.
    pub gauges: Gauges,
    /// The metrics as text.
    pub render_metrics: RenderMetrics,
    /// Whether dependencies answer.
    pub readiness: Readiness,
}

impl ApiState {
    /// The parts of the API over what its process has opened.
    pub fn new(parts: ApiParts, render_metrics: RenderMetrics, options: ApiOptions) -> Self {
        let ApiParts { config, store, blobs, queue, shared_cache, outbox_signal, local_key } =
            parts;
        let presets = Arc::new(CurrentPresets::new(&config.presets));
        let watch = WatchHub::over(store.clone(), wait_limits(&config));
        let authenticator =
            Authenticator::new(store.clone(), config.is_for_this_machine(), local_key);
        let signed_urls = SignedUrls::new(store.clone(), authenticator.clone());
        let limits = Limits::new(config.clone(), store.clone(), shared_cache.clone());
        let body_policy = BodyPolicy::new(
            Duration::from_millis(config.upload_idle_timeout_ms),
            config.upload_min_bytes_per_second,
        );
        let uploads = UploadsParts {
            store: store.clone(),
            blobs: blobs.clone(),
            outbox_signal: outbox_signal.clone(),
            limits: limits.clone(),
            body_policy,
        };
        let delivery = DeliveryParts {
            reads: store.clone(),
            uploads: store.clone(),
            blobs: blobs.clone(),
            shared_cache,
            outbox_signal: outbox_signal.clone(),
            presets: presets.clone(),
            watch: watch.clone(),
            signed_urls: signed_urls.clone(),
        };
        Self(Arc::new(Inner {
            uploads: Uploads::new(&config, uploads),
            delivery: Delivery::new(&config, delivery, options.delivery),
            audit_log: AuditLog::new(store.clone()),
            session_guards: SessionGuards::new(store.clone()),
            queues: QueueSampler::new(
                store.clone(),
                store.clone(),
                Duration::from_millis(config.heartbeat_ms),
            ),
            gauges: Gauges::new(store.clone()),
            readiness: Readiness::new(
                store.clone(),
                blobs.clone(),
                options.uploads.then_some(queue),
            ),
            config,
            options,
            store,
            blobs,
            outbox_signal,
            presets,
            authenticator,
            signed_urls,
            limits,
            watch,
            render_metrics,
        }))
    }
}

fn wait_limits(config: &Config) -> WaitLimits {
    WaitLimits { all: config.max_waiting, per_owner: config.waiting_per_owner() }
}

impl Deref for ApiState {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}
