//! Configuration: one TOML file, each key overridable by environment, parsed once into types.
//!
//! The defaults and their documentation live in one place, [`DEFAULTS`]. The key `max_pixels` is
//! the variable `SAFELIGHT_MAX_PIXELS`; what holds for one holds for all.

pub mod import_roots;
mod load;
mod owners;
mod urls;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use safelight_domain::{Presets, Visibility};
use serde::{Deserialize, Deserializer, de::Error};

pub use load::{ConfigError, effective, load, load_from};
pub use owners::{OwnerLimits, OwnerOverrides, Owners};
pub use urls::{BlobUrl, CorsOrigin, DatabaseUrl, HttpUrl, InvalidUrl, QueueUrl, SharedCacheUrl};

/// Every key with its default and its meaning, as TOML.
pub const DEFAULTS: &str = include_str!("defaults.toml");

/// The configuration of one process. [`DEFAULTS`] says what each key means.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // documented, with units, in `defaults.toml`
#[allow(clippy::struct_excessive_bools)] // switches that have nothing to do with each other
pub struct Config {
    pub listen: SocketAddr,
    #[serde(deserialize_with = "address_or_none")]
    pub worker_listen: Option<SocketAddr>,
    #[serde(deserialize_with = "path_or_none")]
    pub tls_certificate: Option<PathBuf>,
    #[serde(deserialize_with = "path_or_none")]
    pub tls_key: Option<PathBuf>,
    pub behind_tls: bool,
    pub max_connections: usize,
    pub cors_origins: Vec<CorsOrigin>,
    pub data_dir: PathBuf,
    pub database_url: DatabaseUrl,
    pub queue_url: QueueUrl,
    pub blob_url: BlobUrl,
    pub database_connections: u32,

    pub max_upload_bytes: u64,
    pub max_uploads_in_flight: usize,
    pub max_uploads_in_flight_per_owner: usize,
    pub max_queued_jobs: u64,
    pub upload_idle_timeout_ms: u64,
    pub upload_min_bytes_per_second: u64,
    pub idempotency_hold_ms: u64,
    pub idempotency_keep_hours: u64,

    pub quota_images: u64,
    pub quota_bytes: u64,
    pub requests_per_minute: u32,
    pub uploads_per_minute: u32,
    pub default_visibility: Visibility,
    pub owners: Owners,

    pub client_idle_timeout_ms: u64,
    pub delivery_wait_ms: u64,
    pub memory_cache_bytes: u64,
    pub disk_cache_bytes: u64,
    pub shared_cache_url: SharedCacheUrl,
    pub metadata_cache_ms: u64,
    pub purge_urls: Vec<HttpUrl>,

    pub concurrency: usize,
    pub interactive_reserve: u32,
    pub max_attempts: u32,
    pub lease_ms: u64,
    pub heartbeat_ms: u64,
    pub backoff_base_ms: u64,
    pub backoff_cap_ms: u64,
    pub drain_timeout_ms: u64,
    pub staged_grace_ms: u64,
    pub relay_poll_ms: u64,
    pub publish_ahead: u32,
    pub republish_after_ms: u64,

    pub task_keep_days: u64,

    pub backfill_window: u32,
    pub import_roots: Vec<String>,

    pub max_pixels: u64,
    pub max_side: u32,
    pub max_frames: u32,
    pub max_animation_pixels: u64,
    pub isolate_decoding: bool,
    pub sandbox_decoding: bool,
    pub decode_cpu_seconds: u64,
    pub decode_memory_bytes: u64,
    pub keep_gps: bool,
    pub keep_copyright: bool,
    pub presets: Presets,

    pub log: String,
    pub log_format: LogFormat,

    #[serde(deserialize_with = "url_or_none")]
    pub otlp_endpoint: Option<HttpUrl>,
    pub trace_sample_ratio: f64,
}

/// How much longer than nodes remember an image it is taken that they do, for their clocks.
const MARGIN: Duration = Duration::from_secs(1);

impl Config {
    /// How long after an image is gone in the database no delivery node serves it out of its memory any
    /// more, as long as it reaches the database.
    pub fn unknown_after(&self) -> Duration {
        Duration::from_millis(self.metadata_cache_ms) + MARGIN
    }
}

/// An address, or nothing for an empty string: TOML has no null.
fn address_or_none<'de, D: Deserializer<'de>>(text: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(text)?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(D::Error::custom) }
}

/// A file, or nothing for an empty string.
fn path_or_none<'de, D: Deserializer<'de>>(text: D) -> Result<Option<PathBuf>, D::Error> {
    let text = String::deserialize(text)?;
    Ok((!text.is_empty()).then(|| text.into()))
}

/// The address of an HTTP server, or nothing for an empty string.
fn url_or_none<'de, D: Deserializer<'de>>(text: D) -> Result<Option<HttpUrl>, D::Error> {
    let text = String::deserialize(text)?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(D::Error::custom) }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}
