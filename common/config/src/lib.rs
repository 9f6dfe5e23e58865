//! The configuration: one TOML file, every key overridable by environment, parsed once into types.
//!
//! [`DEFAULTS`] contains the defaults and their documentation. The key `max_pixels` is the variable
//! `SAFELIGHT_MAX_PIXELS`, and so on.

pub mod import_roots;
mod load;
mod owners;
mod urls;

use std::{fmt::Display, net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use safelight_domain::{Presets, Visibility};
use serde::{Deserialize, Deserializer, de::Error};

pub use load::{ConfigError, effective, load, load_from};
pub use owners::{OwnerLimits, OwnerOverrides, Owners};
pub use urls::{BlobUrl, CorsOrigin, DatabaseUrl, HttpUrl, InvalidUrl, QueueUrl, SharedCacheUrl};

/// Every key with its default and its documentation, as TOML.
pub const DEFAULTS: &str = include_str!("defaults.toml");

const MAX_BACKOFF_CAP_MS: u64 = 86_400_000;

/// Declares [`Config`] from its keys. A number has its bounds beside it: `key: type => lowest..=highest`.
macro_rules! config {
    ($( $(#[$attribute:meta])* $key:ident: $type:ty $(=> $bounds:expr)?, )+) => {
        /// The configuration of one process. [`DEFAULTS`] documents each key.
        #[derive(Debug, Clone, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(missing_docs)] // documented, with units, in `defaults.toml`
        #[allow(clippy::struct_excessive_bools)] // independent switches
        pub struct Config { $( $(#[$attribute])* pub $key: $type, )+ }

        impl Config {
            /// Rejects numbers outside of their bounds.
            fn check_bounds(&self) -> Result<(), ConfigError> {
                $( $( check_bounds(stringify!($key), self.$key, &$bounds)?; )? )+
                Ok(())
            }
        }
    };
}

// A new key needs two more places: its default and meaning in `defaults.toml`, and its use.
config! {
    // Connections and storage.
    listen: SocketAddr,
    #[serde(deserialize_with = "address_or_none")]
    worker_listen: Option<SocketAddr>,
    #[serde(deserialize_with = "path_or_none")]
    tls_certificate: Option<PathBuf>,
    #[serde(deserialize_with = "path_or_none")]
    tls_key: Option<PathBuf>,
    behind_tls: bool,
    max_connections: usize => 1..=10_000_000,
    cors_origins: Vec<CorsOrigin>,
    data_dir: PathBuf,
    database_url: DatabaseUrl,
    queue_url: QueueUrl,
    blob_url: BlobUrl,
    database_connections: u32 => 2..=1_000,

    // Uploads.
    max_upload_bytes: u64 => 1..=1 << 40,
    max_uploads_in_flight: usize => 1..=1_000_000,
    max_uploads_in_flight_per_owner: usize => 0..=1_000_000,
    max_queued_jobs: u64 => 1..=1_000_000_000,
    min_free_bytes: u64 => 0..=1 << 50,
    upload_idle_timeout_ms: u64 => 10..=3_600_000,
    upload_min_bytes_per_second: u64 => 0..=1 << 30,
    idempotency_hold_ms: u64 => 100..=3_600_000,
    idempotency_keep_hours: u64,

    // Owners.
    quota_images: u64 => 0..=1 << 50,
    quota_bytes: u64 => 0..=1 << 60,
    requests_per_minute: u32,
    uploads_per_minute: u32,
    default_visibility: Visibility,
    owners: Owners,

    // Delivery.
    client_idle_timeout_ms: u64 => 10..=3_600_000,
    delivery_wait_ms: u64 => 0..=60_000,
    memory_cache_bytes: u64 => 0..=1 << 44,
    disk_cache_bytes: u64 => 0..=1 << 50,
    shared_cache_url: SharedCacheUrl,
    max_waiting: usize => 1..=1_000_000,
    max_waiting_per_owner: usize => 0..=1_000_000,
    metadata_cache_ms: u64 => 0..=3_600_000,
    purge_urls: Vec<HttpUrl>,

    // Work.
    concurrency: usize => 0..=1_024,
    interactive_reserve: u32 => 0..=100,
    max_attempts: u32 => 1..=100,
    lease_ms: u64 => 100..=1_200_000,
    heartbeat_ms: u64 => 50..=120_000,
    backoff_base_ms: u64 => 1..=3_600_000,
    // At least `backoff_base_ms`.
    backoff_cap_ms: u64 => 1..=MAX_BACKOFF_CAP_MS,
    drain_timeout_ms: u64,
    staged_grace_ms: u64 => 1_000..=1 << 40,
    recovery_grace_ms: u64 => 0..=1 << 40,
    quarantine_ms: u64 => 0..=1 << 40,
    relay_poll_ms: u64 => 1..=60_000,
    publish_ahead: u32 => 1..=100_000,
    republish_after_ms: u64,
    task_keep_days: u64 => 1..=36_500,

    // Backfills.
    backfill_window: u32 => 1..=100_000,
    import_roots: Vec<String>,

    // Logs.
    log: String,
    log_format: LogFormat,

    // Traces.
    #[serde(deserialize_with = "url_or_none")]
    otlp_endpoint: Option<HttpUrl>,
    trace_sample_ratio: f64 => 0.0..=1.0,

    // Pictures.
    max_pixels: u64 => 1..=1 << 40,
    max_side: u32 => 1..=1 << 31,
    max_frames: u32 => 1..=1 << 31,
    max_animation_pixels: u64 => 1..=1 << 40,
    isolate_decoding: bool,
    sandbox_decoding: bool,
    decode_cpu_seconds: u64 => 1..=120,
    decode_memory_bytes: u64 => 64 << 20..=1 << 44,
    heic: bool,
    keep_gps: bool,
    keep_copyright: bool,
    presets: Presets,
}

fn check_bounds<T: PartialOrd + Display + Copy>(
    key: &str,
    value: T,
    bounds: &RangeInclusive<T>,
) -> Result<(), ConfigError> {
    if bounds.contains(&value) {
        return Ok(());
    }
    let (low, high) = (bounds.start(), bounds.end());
    Err(ConfigError::Invalid(format!("{key} is {value}, must be {low} to {high}")))
}

/// Added to the time for which nodes cache metadata, for differences between their clocks.
const CLOCK_MARGIN: Duration = Duration::from_secs(1);

impl Config {
    /// The time after the deletion of an image in the database from which no delivery node that reaches the
    /// database serves it from its cache.
    pub fn unknown_after(&self) -> Duration {
        Duration::from_millis(self.metadata_cache_ms) + CLOCK_MARGIN
    }
}

/// An address, or none for an empty string, because TOML has no null.
fn address_or_none<'de, D: Deserializer<'de>>(text: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(text)?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(D::Error::custom) }
}

/// A path, or none for an empty string.
fn path_or_none<'de, D: Deserializer<'de>>(text: D) -> Result<Option<PathBuf>, D::Error> {
    let text = String::deserialize(text)?;
    Ok((!text.is_empty()).then(|| text.into()))
}

/// The address of an HTTP server, or none for an empty string.
fn url_or_none<'de, D: Deserializer<'de>>(text: D) -> Result<Option<HttpUrl>, D::Error> {
    let text = String::deserialize(text)?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(D::Error::custom) }
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}
