//! What every handler is given.

use std::{collections::BTreeMap, ops::Deref, sync::Arc, time::Duration};

use safelight_domain::{Formats, Image, ImageFormat, Presets, Rendition};
use safelight_services::Services;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    ApiOptions,
    access::{Door, KeyUses, Rights},
    backlog::Backlog,
    delivery::Delivery,
    limits::Rates,
    probes::Gauges,
    queues::Sampler,
    uploads::permits::Places,
    watch::WatchHub,
};

/// Gives the process's metrics as Prometheus text.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// Refused uploads whose remaining bytes are read and thrown away at once (see
/// [`crate::uploads::body`]).
const MAX_LINGERING: usize = 64;

/// Shared by all handlers; clones are cheap.
#[derive(Clone)]
pub struct ApiState(Arc<Inner>);

/// The fields of [`ApiState`].
pub struct Inner {
    /// The parts that the configuration chose.
    pub services: Services,
    /// Who waits for which task.
    pub watch: WatchHub,
    /// One place per upload being received.
    pub uploads: Places,
    /// How much work is queued.
    pub backlog: Backlog,
    /// One permit per refused upload being read to its end.
    pub lingering: Arc<Semaphore>,
    /// The configured presets.
    pub presets: Arc<CurrentPresets>,
    /// What is kept to deliver bytes.
    pub delivery: Delivery,
    /// The metrics as text.
    pub render_metrics: RenderMetrics,
    /// Gauges that are read from the store.
    pub gauges: Gauges,
    /// How fast the queues go.
    pub sampler: Sampler,
    /// Whether one may come in without a key.
    pub door: Door,
    /// When keys were used.
    pub key_uses: KeyUses,
    /// Whether those who wait may still.
    pub rights: Rights,
    /// How often owners have asked.
    pub rates: Rates,
    options: ApiOptions,
}

impl ApiState {
    /// State over `services`.
    pub fn new(services: Services, render_metrics: RenderMetrics, options: ApiOptions) -> Self {
        let store = services.store.clone();
        let watch = WatchHub::new(move |ids| {
            let store = store.clone();
            async move { store.task_versions(&ids).await }
        });
        let presets = Arc::new(CurrentPresets::new(&services.config.presets));
        Self(Arc::new(Inner {
            watch,
            delivery: Delivery::new(&services, &presets, options.delivery),
            uploads: Places::new(services.config.max_uploads_in_flight),
            backlog: Backlog::new(services.config.max_queued_jobs),
            lingering: Arc::new(Semaphore::new(MAX_LINGERING)),
            presets,
            render_metrics,
            gauges: Gauges::default(),
            sampler: Sampler::new(Duration::from_millis(services.config.heartbeat_ms)),
            door: Door::new(services.config.is_for_this_machine()),
            key_uses: KeyUses::default(),
            rights: Rights::default(),
            rates: Rates::new(services.shared_cache.clone()),
            options,
            services,
        }))
    }

    /// What this node serves.
    pub fn options(&self) -> ApiOptions {
        self.0.options
    }
}

impl Deref for ApiState {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// Put into every request by the server: cancelled once it wants to end, so that answers which
/// are held back go out at once.
#[derive(Clone, Default)]
pub struct Draining(pub CancellationToken);

/// The configured presets by what distinguishes a current rendition from an old one.
pub struct CurrentPresets(BTreeMap<String, (String, Formats)>);

impl CurrentPresets {
    fn new(presets: &Presets) -> Self {
        let current = |(name, preset): (&String, &safelight_domain::Preset)| {
            (name.clone(), (preset.fingerprint(), preset.formats.clone()))
        };
        Self(presets.iter().map(current).collect())
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether there is a preset of this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The image's rendition of a preset as configured now: that of the first of its formats that
    /// is there.
    pub fn rendition<'a>(&self, image: &'a Image, name: &str) -> Option<&'a Rendition> {
        if image.discarded {
            return None;
        }
        let (fingerprint, formats) = self.0.get(name)?;
        let made = image.renditions.iter();
        let made: Vec<&Rendition> =
            made.filter(|r| r.preset == name && r.fingerprint == *fingerprint).collect();
        let stored: Vec<ImageFormat> = made.iter().map(|r| r.format).collect();
        let base = formats.iter().find_map(|format| formats.outcome(*format, &stored))?;
        made.into_iter().find(|r| r.format == base)
    }

    /// The image's renditions of a preset as configured now, the base first.
    pub fn variants<'a>(
        &'a self,
        image: &'a Image,
        name: &'a str,
    ) -> impl Iterator<Item = &'a Rendition> {
        let base = self.rendition(image, name);
        let others = image.renditions.iter().filter(move |made| {
            base.is_some_and(|base| {
                made.preset == name
                    && made.fingerprint == base.fingerprint
                    && made.format != base.format
            })
        });
        base.into_iter().chain(others)
    }

    /// Whether clients choose among several formats of a preset.
    pub fn varies(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|(_, formats)| formats.len() > 1)
    }

    /// All current renditions of an image by preset.
    pub fn renditions<'a>(
        &'a self,
        image: &'a Image,
    ) -> impl Iterator<Item = (&'a str, &'a Rendition)> {
        self.names().filter_map(|name| self.rendition(image, name).map(|r| (name, r)))
    }
}
