//! What every handler is given.

use std::{collections::BTreeMap, ops::Deref, sync::Arc};

use safelight_common::{
    domain::{Image, ImageFormat, PresetFormat, Presets, Rendition},
    services::Services,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{ApiOptions, backlog::Backlog, probes::Gauges, watch::WatchHub};

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
    /// One permit per upload being received.
    pub uploads: Arc<Semaphore>,
    /// How much work is queued.
    pub backlog: Backlog,
    /// One permit per refused upload being read to its end.
    pub lingering: Arc<Semaphore>,
    /// The configured presets.
    pub presets: CurrentPresets,
    /// The metrics as text.
    pub render_metrics: RenderMetrics,
    /// Gauges that are read from the store.
    pub gauges: Gauges,
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
        Self(Arc::new(Inner {
            watch,
            uploads: Arc::new(Semaphore::new(services.config.max_uploads_in_flight)),
            backlog: Backlog::new(services.config.max_queued_jobs),
            lingering: Arc::new(Semaphore::new(MAX_LINGERING)),
            presets: CurrentPresets::new(&services.config.presets),
            render_metrics,
            gauges: Gauges::default(),
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
pub struct CurrentPresets(BTreeMap<String, (String, PresetFormat)>);

impl CurrentPresets {
    fn new(presets: &Presets) -> Self {
        let current = |(name, preset): (&String, &safelight_common::domain::Preset)| {
            (name.clone(), (preset.fingerprint(), preset.format))
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

    /// The image's rendition of a preset as configured now; the configured format if there are
    /// several.
    pub fn rendition<'a>(&self, image: &'a Image, name: &str) -> Option<&'a Rendition> {
        if image.discarded {
            return None;
        }
        let (fingerprint, format) = self.0.get(name)?;
        let wanted = match format {
            PresetFormat::Auto => None,
            PresetFormat::Jpeg => Some(ImageFormat::Jpeg),
            PresetFormat::Webp => Some(ImageFormat::Webp),
            PresetFormat::Avif => Some(ImageFormat::Avif),
            PresetFormat::Png => Some(ImageFormat::Png),
        };
        image
            .renditions
            .iter()
            .filter(|r| r.preset == name && r.fingerprint == *fingerprint)
            .max_by_key(|r| wanted == Some(r.format))
    }

    /// All current renditions of an image by preset.
    pub fn renditions<'a>(
        &'a self,
        image: &'a Image,
    ) -> impl Iterator<Item = (&'a str, &'a Rendition)> {
        self.names().filter_map(|name| self.rendition(image, name).map(|r| (name, r)))
    }
}
