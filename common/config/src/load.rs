//! Reading the configuration: defaults, then the file, then the environment.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{BlobUrl, Config, DEFAULTS, DatabaseUrl};

/// Variables that begin like configuration keys and are none: they belong to the command line.
const OTHER_VARIABLES: &[&str] = &[
    "SAFELIGHT_CONFIG",
    "SAFELIGHT_URL",
    "SAFELIGHT_KEY",
    "SAFELIGHT_OWNER",
    // A program without fail points does not know their variable, and refuses it.
    #[cfg(feature = "fail-points")]
    "SAFELIGHT_FAIL_POINTS",
];

/// Ends a variable that names a file with the value, as secrets come into containers.
const FROM_FILE: &str = "_file";

/// A configuration that cannot be used, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file that a variable names cannot be read.
    #[error("cannot read the file that {variable} names: {source}")]
    UnreadableVariable {
        /// The variable.
        variable: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("{} is not valid TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A key that there is not.
    #[error("unknown configuration key `{key}` in {origin}")]
    UnknownKey {
        /// The key, or the variable.
        key: String,
        /// Where it stands.
        origin: String,
        /// The nearest key that there is.
        nearest: Option<String>,
    },
    /// A value that its key cannot have.
    #[error("{0}")]
    Invalid(String),
}

impl ConfigError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::UnknownKey { nearest: Some(nearest), .. } => format!("did you mean `{nearest}`?"),
            _ => "`safelight config --defaults` prints every key with its meaning".to_owned(),
        }
    }
}

/// Reads the configuration of this process: `file`, or `SAFELIGHT_CONFIG`, or none; then the
/// environment.
pub fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
    load_from(named(file).as_deref(), environment())
}

/// Reads the configuration from `file` and from `environment` alone.
pub fn load_from(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    parse(merged(file, environment)?)
}

/// The configuration of this process as TOML, checked, with passwords masked.
pub fn effective(file: Option<&Path>) -> Result<String, ConfigError> {
    let mut table = merged(named(file).as_deref(), environment())?;
    let config = parse(table.clone())?;
    for (key, shown) in [
        ("data_dir", config.data_dir.display().to_string()),
        ("database_url", config.database_url.to_string()),
        ("queue_url", config.queue_url.to_string()),
        ("blob_url", config.blob_url.to_string()),
        ("shared_cache_url", config.shared_cache_url.to_string()),
    ] {
        table.insert(key.to_owned(), Value::String(shown));
    }
    let collector = config.otlp_endpoint.map_or_else(String::new, |url| url.to_string());
    table.insert("otlp_endpoint".to_owned(), Value::String(collector));
    let purged = config.purge_urls.iter().map(|url| Value::String(url.to_string())).collect();
    table.insert("purge_urls".to_owned(), Value::Array(purged));
    toml::to_string(&table).map_err(|error| ConfigError::Invalid(error.to_string()))
}

/// The file to read: the one given, else the one that the environment names.
fn named(file: Option<&Path>) -> Option<PathBuf> {
    let by_environment = || std::env::var_os("SAFELIGHT_CONFIG").filter(|name| !name.is_empty());
    file.map(Path::to_owned).or_else(|| by_environment().map(PathBuf::from))
}

/// This process's variables. (`std::env::vars` panics at one that is no Unicode, even a stranger's.)
fn environment() -> impl Iterator<Item = (String, String)> {
    let readable = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (readable(name), readable(value)))
}

/// The defaults, overlaid by the file, overlaid by the environment.
fn merged(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Table, ConfigError> {
    let mut table: Table =
        toml::from_str(DEFAULTS).map_err(|error| ConfigError::Invalid(error.to_string()))?;
    let known: Vec<String> = table.keys().cloned().collect();
    if let Some(path) = file {
        for (key, value) in read(path)? {
            if !table.contains_key(&key) {
                return Err(unknown(&key, path.display().to_string(), &known));
            }
            table.insert(key, value);
        }
    }
    // Sorted, so that of two mistakes the same one is always reported.
    let environment: BTreeMap<_, _> = environment.into_iter().collect();
    for (variable, text) in &environment {
        let Some(suffix) = variable.strip_prefix("SAFELIGHT_") else { continue };
        if OTHER_VARIABLES.contains(&variable.as_str()) {
            continue;
        }
        let key = suffix.to_ascii_lowercase();
        if let Some(key) = key.strip_suffix(FROM_FILE).filter(|key| table.contains_key(*key)) {
            if environment.contains_key(&format!("SAFELIGHT_{}", key.to_ascii_uppercase())) {
                return Err(ConfigError::Invalid(format!(
                    "{variable} and the variable without _FILE are both set: which one counts?"
                )));
            }
            let content = std::fs::read_to_string(text).map_err(|source| {
                ConfigError::UnreadableVariable { variable: variable.clone(), source }
            })?;
            let value = parse_variable(variable, content.trim_end(), &table[key])?;
            table.insert(key.to_owned(), value);
            continue;
        }
        let Some(default) = table.get(&key) else {
            let variables: Vec<_> =
                known.iter().map(|key| format!("SAFELIGHT_{}", key.to_ascii_uppercase())).collect();
            return Err(unknown(variable, "the environment".to_owned(), &variables));
        };
        let value = parse_variable(variable, text, default)?;
        table.insert(key, value);
    }
    Ok(table)
}

/// Types, then [`checked`].
fn parse(table: Table) -> Result<Config, ConfigError> {
    let config: Config = serde_path_to_error::deserialize(table).map_err(|error| {
        let key = error.path().to_string();
        ConfigError::Invalid(format!("{key}: {}", one_line(error.into_inner().message())))
    })?;
    checked(config)
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
        ConfigError::Syntax {
            path: path.to_owned(),
            message: format!("line {line}: {}", one_line(error.message())),
        }
    })
}

/// Reads a variable as the type that its key's default has.
fn parse_variable(variable: &str, text: &str, default: &Value) -> Result<Value, ConfigError> {
    if default.is_str() {
        return Ok(Value::String(text.to_owned()));
    }
    let parsed = toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .map(|value| as_float(value, default))
        .filter(|value| value.same_type(default));
    parsed.ok_or_else(|| {
        // Lists hold URLs, and these passwords.
        let shown =
            if default.is_array() { "set to something".to_owned() } else { format!("`{text}`") };
        ConfigError::Invalid(format!("{variable} is {shown}, which is no {}", default.type_str()))
    })
}

/// A whole number where a fraction may stand is one: `1` for `1.0`.
fn as_float(value: Value, default: &Value) -> Value {
    match value {
        #[allow(clippy::cast_precision_loss)] // no such key has numbers that large
        Value::Integer(whole) if default.is_float() => Value::Float(whole as f64),
        other => other,
    }
}

fn unknown(key: &str, origin: String, known: &[String]) -> ConfigError {
    let nearest = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(key, candidate), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= candidate.len() / 3)
        .map(|(_, candidate)| candidate.clone());
    ConfigError::UnknownKey { key: key.to_owned(), origin, nearest }
}

/// Refuses values that parse and cannot work; fills in what depends on other keys.
fn checked(mut config: Config) -> Result<Config, ConfigError> {
    let bounds = [
        ("max_attempts", u64::from(config.max_attempts), 1, 100),
        ("database_connections", u64::from(config.database_connections), 2, 1_000),
        ("max_upload_bytes", config.max_upload_bytes, 1, 1 << 40),
        ("max_uploads_in_flight", config.max_uploads_in_flight as u64, 1, 1_000_000),
        (
            "max_uploads_in_flight_per_owner",
            config.max_uploads_in_flight_per_owner as u64,
            0,
            1_000_000,
        ),
        ("max_queued_jobs", config.max_queued_jobs, 1, 1_000_000_000),
        ("idempotency_hold_ms", config.idempotency_hold_ms, 100, 3_600_000),
        ("max_connections", config.max_connections as u64, 1, 10_000_000),
        ("upload_min_bytes_per_second", config.upload_min_bytes_per_second, 0, 1 << 30),
        ("upload_idle_timeout_ms", config.upload_idle_timeout_ms, 10, 3_600_000),
        ("client_idle_timeout_ms", config.client_idle_timeout_ms, 10, 3_600_000),
        ("quota_images", config.quota_images, 0, 1 << 50),
        ("quota_bytes", config.quota_bytes, 0, 1 << 60),
        ("delivery_wait_ms", config.delivery_wait_ms, 0, 60_000),
        ("memory_cache_bytes", config.memory_cache_bytes, 0, 1 << 44),
        ("disk_cache_bytes", config.disk_cache_bytes, 0, 1 << 50),
        ("metadata_cache_ms", config.metadata_cache_ms, 0, 3_600_000),
        ("concurrency", config.concurrency as u64, 0, 1_024),
        ("lease_ms", config.lease_ms, 100, 1_200_000),
        ("heartbeat_ms", config.heartbeat_ms, 50, 120_000),
        ("backoff_base_ms", config.backoff_base_ms, 1, 3_600_000),
        ("backoff_cap_ms", config.backoff_cap_ms, config.backoff_base_ms, 86_400_000),
        ("relay_poll_ms", config.relay_poll_ms, 1, 60_000),
        ("publish_ahead", config.publish_ahead.into(), 1, 100_000),
        ("interactive_reserve", config.interactive_reserve.into(), 0, 100),
        ("backfill_window", config.backfill_window.into(), 1, 100_000),
        ("task_keep_days", config.task_keep_days, 1, 36_500),
        ("staged_grace_ms", config.staged_grace_ms, 1_000, 1 << 40),
        ("max_pixels", config.max_pixels, 1, 1 << 40),
        ("max_side", config.max_side.into(), 1, 1 << 31),
        ("max_frames", config.max_frames.into(), 1, 1 << 31),
        ("max_animation_pixels", config.max_animation_pixels, 1, 1 << 40),
        ("decode_cpu_seconds", config.decode_cpu_seconds, 1, 120),
        ("decode_memory_bytes", config.decode_memory_bytes, 64 << 20, 1 << 44),
    ];
    for (key, value, low, high) in bounds {
        if !(low..=high).contains(&value) {
            return Err(ConfigError::Invalid(format!("{key} is {value}, must be {low} to {high}")));
        }
    }
    if !(0.0..=1.0).contains(&config.trace_sample_ratio) {
        return Err(ConfigError::Invalid(format!(
            "trace_sample_ratio is {}, must be 0 to 1",
            config.trace_sample_ratio
        )));
    }
    if config.tls_certificate.is_some() != config.tls_key.is_some() {
        return Err(ConfigError::Invalid(
            "tls_certificate and tls_key belong together: set both, or neither".to_owned(),
        ));
    }
    for (name, preset) in &config.presets {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 32 || !name.chars().all(plain) {
            return Err(ConfigError::Invalid(format!(
                "preset name `{name}` must be 1 to 32 of a-z, 0-9, - and _"
            )));
        }
        if let Some(problem) = preset.problem() {
            return Err(ConfigError::Invalid(format!("preset `{name}`: {problem}")));
        }
    }
    for preset in config.presets.values_mut() {
        preset.keep_copyright |= config.keep_copyright;
    }
    let data_dir = std::path::absolute(&config.data_dir)
        .map_err(|error| ConfigError::Invalid(format!("data_dir: {error}")))?;
    let under_data_dir = |path: &Path, name: &str| {
        data_dir.join(if path.as_os_str().is_empty() { Path::new(name) } else { path })
    };
    if let DatabaseUrl::Sqlite(path) = &mut config.database_url {
        *path = under_data_dir(path, "safelight.db");
    }
    if let BlobUrl::File(path) = &mut config.blob_url {
        *path = under_data_dir(path, "blobs");
    }
    config.data_dir = data_dir;
    Ok(config)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use safelight_domain::Size;

    use super::*;
    use crate::QueueUrl;

    fn env(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        load_from(None, pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn defaults_are_complete_and_paths_follow_the_data_folder() {
        let config =
            env(&[("SAFELIGHT_DATA_DIR", "/srv/safelight"), ("HOME", "/root")]).expect("defaults");
        assert_eq!(config.queue_url, QueueUrl::Embedded);
        assert_eq!(config.database_url, DatabaseUrl::Sqlite("/srv/safelight/safelight.db".into()));
        assert_eq!(config.blob_url, BlobUrl::File("/srv/safelight/blobs".into()));
        assert_eq!(config.presets["small"].size, Size::square(256));
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let file = tempfile::NamedTempFile::new().expect("temp file");
        std::fs::write(file.path(), "max_attempts = 3\nlease_ms = 5000\n").expect("write");
        let set = [("SAFELIGHT_LEASE_MS".to_owned(), "7000".to_owned())];
        let config = load_from(Some(file.path()), set).expect("config");
        assert_eq!((config.max_attempts, config.lease_ms), (3, 7000));
    }

    #[test]
    fn a_value_can_come_from_a_file_and_stays_out_of_every_message() {
        let file = tempfile::NamedTempFile::new().expect("temp file");
        std::fs::write(file.path(), "postgres://me:hidden@db/safelight\n").expect("write");
        let path = file.path().to_string_lossy();
        let config = env(&[("SAFELIGHT_DATABASE_URL_FILE", &path)]).expect("config");
        let DatabaseUrl::Postgres(url) = config.database_url else { panic!("not read") };
        assert_eq!(url, "postgres://me:hidden@db/safelight");
        let both = [("SAFELIGHT_DATABASE_URL_FILE", &*path), ("SAFELIGHT_DATABASE_URL", "sqlite:")];
        assert!(env(&both).expect_err("both").to_string().contains("both set"));
        let error = env(&[("SAFELIGHT_QUEUE_URL_FILE", "/nowhere")]).expect_err("no such file");
        assert!(error.to_string().contains("SAFELIGHT_QUEUE_URL_FILE"), "{error}");
        let error = env(&[("SAFELIGHT_QUEUE_URL_FILE", &path)]).expect_err("no queue");
        assert!(!error.to_string().contains("hidden"), "{error}");
        let error = env(&[("SAFELIGHT_NOTHING_FILE", &path)]).expect_err("no such key");
        assert!(error.to_string().contains("unknown configuration key"), "{error}");
        let error = env(&[("SAFELIGHT_PURGE_URLS", "http://a:hidden@b")]).expect_err("no list");
        assert!(!error.to_string().contains("hidden"), "{error}");
    }

    #[test]
    fn mistakes_are_one_line_with_a_hint() {
        let cases = [
            (("SAFELIGHT_LISTN", "x"), "unknown configuration key `SAFELIGHT_LISTN`"),
            (("SAFELIGHT_LISTEN", "nowhere"), "listen: invalid socket address"),
            (
                ("SAFELIGHT_MAX_ATTEMPTS", "many"),
                "SAFELIGHT_MAX_ATTEMPTS is `many`, which is no integer",
            ),
            (("SAFELIGHT_MAX_ATTEMPTS", "0"), "max_attempts is 0, must be 1 to 100"),
            (("SAFELIGHT_PRESETS", "{ a = { size = 0 } }"), "preset `a`: size must be 1 to 16384"),
            (("SAFELIGHT_PRESETS", "{ \"../x\" = { size = 9 } }"), "preset name `../x`"),
            (("SAFELIGHT_PRESETS", "{ a = { size = [9] } }"), "presets.a.size: expected a number"),
            (("SAFELIGHT_PRESETS", "{ a = { size = 9, fit = \"fill\" } }"), "presets.a.fit"),
            (
                ("SAFELIGHT_PRESETS", "{ a = { size = 9, focus = \"attention\" } }"),
                "fit = \"cover\"",
            ),
            (("SAFELIGHT_MAX_PIXELS", "-1"), "max_pixels: invalid value"),
            (("SAFELIGHT_PRESETS", "{ a = { size = 9, qualty = 3 } }"), "presets.a"),
            (("SAFELIGHT_DATABASE_URL", "mysql://x"), "database_url: expected sqlite:PATH"),
            (("SAFELIGHT_DATABASE_URL", "sqlite::memory:"), "database_url: expected sqlite:PATH"),
            (("SAFELIGHT_BLOB_URL", "file://a/b"), "blob_url: expected file:///FOLDER"),
            (("SAFELIGHT_SHARED_CACHE_URL", "memcached://x"), "shared_cache_url: expected redis:"),
            (("SAFELIGHT_SHARED_CACHE_URL", "redis://a,b"), "shared_cache_url: expected redis:"),
            (("SAFELIGHT_PURGE_URLS", "[\"varnish:80/x\"]"), "purge_urls"),
            (("SAFELIGHT_PURGE_URLS", "http://varnish"), "which is no array"),
            (("SAFELIGHT_OTLP_ENDPOINT", "collector:4318"), "otlp_endpoint: expected http://"),
            (("SAFELIGHT_TRACE_SAMPLE_RATIO", "2"), "trace_sample_ratio is 2, must be 0 to 1"),
            (("SAFELIGHT_TRACE_SAMPLE_RATIO", "nan"), "trace_sample_ratio is NaN, must be 0 to 1"),
            (("SAFELIGHT_TRACE_SAMPLE_RATIO", "all"), "which is no float"),
            (("SAFELIGHT_TLS_KEY", "/key.pem"), "tls_certificate and tls_key belong together"),
            (("SAFELIGHT_MAX_CONNECTIONS", "0"), "max_connections is 0, must be 1 to"),
            (("SAFELIGHT_CORS_ORIGINS", "[\"a.org\"]"), "expected https://HOST, or * for all"),
            (("SAFELIGHT_DELIVERY_WAIT_MS", "60001"), "delivery_wait_ms is 60001, must be 0 to"),
        ];
        for (pair, expected) in cases {
            let error = env(&[pair]).expect_err(expected);
            assert!(error.to_string().contains(expected), "{error} should contain {expected}");
            assert!(!error.to_string().contains('\n'));
        }
        let hint = env(&[("SAFELIGHT_LISTN", "x")]).expect_err("typo").hint();
        assert_eq!(hint, "did you mean `SAFELIGHT_LISTEN`?");
    }

    #[test]
    fn tracing_is_off_unless_it_has_an_endpoint() {
        let config = env(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")]).expect("config");
        assert_eq!(config.otlp_endpoint, None);
        let set =
            [("SAFELIGHT_OTLP_ENDPOINT", "http://c:4318"), ("SAFELIGHT_TRACE_SAMPLE_RATIO", "1")];
        let config = env(&set).expect("config");
        assert_eq!(config.otlp_endpoint.expect("an endpoint").as_str(), "http://c:4318");
        assert!((config.trace_sample_ratio - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_preset_may_leave_out_what_has_a_default() {
        let config = env(&[("SAFELIGHT_PRESETS", "{ tiny = { size = 64 } }")]).expect("presets");
        assert_eq!(config.presets.len(), 1);
        assert_eq!(config.presets["tiny"].quality, 80);
    }

    #[test]
    fn the_switch_for_copyright_holds_for_every_preset() {
        let config = env(&[("SAFELIGHT_KEEP_COPYRIGHT", "true")]).expect("config");
        assert!(config.presets.values().all(|preset| preset.keep_copyright));
    }
}
