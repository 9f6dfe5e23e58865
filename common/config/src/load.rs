//! Reading the configuration: defaults, then the file, then the environment.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{BlobUrl, Config, DEFAULTS, DatabaseUrl, MAX_BACKOFF_CAP_MS, check_bounds};

/// Variables of the command line, which are not configuration keys.
const OTHER_VARIABLES: &[&str] = &[
    "SAFELIGHT_CONFIG",
    "SAFELIGHT_URL",
    "SAFELIGHT_KEY",
    "SAFELIGHT_OWNER",
    // A program without fail points rejects their variable as unknown.
    #[cfg(feature = "fail-points")]
    "SAFELIGHT_FAIL_POINTS",
];

/// The variables for the store of `safelight backup` and `safelight restore`, without `SAFELIGHT_`, start with this.
const BACKUP_STORE: &str = "BACKUP_AWS_";

/// The suffix of a variable that names a file with the value, for secrets that are mounted into containers.
const FROM_FILE: &str = "_file";

/// An invalid configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read.
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
    /// The file is not valid TOML.
    #[error("{} is not valid TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line and the error.
        message: String,
    },
    /// A key that does not exist.
    #[error("unknown configuration key `{key}` in {origin}")]
    UnknownKey {
        /// The key, or the variable.
        key: String,
        /// The file, or the environment.
        origin: String,
        /// The most similar existing key.
        nearest: Option<String>,
    },
    /// A value that is not allowed for its key.
    #[error("{0}")]
    Invalid(String),
}

impl ConfigError {
    /// How to fix it.
    pub fn hint(&self) -> String {
        match self {
            Self::UnknownKey { nearest: Some(nearest), .. } => format!("did you mean `{nearest}`?"),
            _ => "`safelight config --defaults` prints and documents every key".to_owned(),
        }
    }
}

/// Reads the configuration of this process from `file` (or else the file that `SAFELIGHT_CONFIG` names, if any)
/// and from the environment.
pub fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
    load_from(config_file(file).as_deref(), environment())
}

/// Reads the configuration only from `file` and from `environment`.
pub fn load_from(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    parse(merged(file, environment)?)
}

/// The validated configuration of this process as TOML, with passwords masked.
pub fn effective(file: Option<&Path>) -> Result<String, ConfigError> {
    let mut table = merged(config_file(file).as_deref(), environment())?;
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

/// The file to read: the given one, or else the one that the environment names.
fn config_file(file: Option<&Path>) -> Option<PathBuf> {
    let by_environment = || std::env::var_os("SAFELIGHT_CONFIG").filter(|name| !name.is_empty());
    file.map(Path::to_owned).or_else(|| by_environment().map(PathBuf::from))
}

/// The environment of this process. (`std::env::vars` panics if any variable is not Unicode.)
fn environment() -> impl Iterator<Item = (String, String)> {
    let readable = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (readable(name), readable(value)))
}

/// The defaults, overridden by the file, overridden by the environment.
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
    // Sorted, so that always the same one of two mistakes is reported.
    let environment: BTreeMap<_, _> = environment.into_iter().collect();
    for (variable, text) in &environment {
        let Some(suffix) = variable.strip_prefix("SAFELIGHT_") else { continue };
        if OTHER_VARIABLES.contains(&variable.as_str()) || suffix.starts_with(BACKUP_STORE) {
            continue;
        }
        let key = suffix.to_ascii_lowercase();
        if let Some(key) = key.strip_suffix(FROM_FILE).filter(|key| table.contains_key(*key)) {
            if environment.contains_key(&format!("SAFELIGHT_{}", key.to_ascii_uppercase())) {
                return Err(ConfigError::Invalid(format!(
                    "{variable} and the same variable without _FILE are both set: set only one of them"
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

/// Converts to types and validates.
fn parse(table: Table) -> Result<Config, ConfigError> {
    let config: Config = serde_path_to_error::deserialize(table).map_err(|error| {
        let key = error.path().to_string();
        ConfigError::Invalid(format!("{key}: {}", one_line(error.into_inner().message())))
    })?;
    validate(config)
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

/// Parses a variable as the type of its key's default.
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
        // Lists can contain URLs with passwords.
        let shown = if default.is_array() { String::new() } else { format!(" `{text}`") };
        let (article, kind) = match default.type_str() {
            kind if kind.starts_with(['a', 'i']) => ("an", kind),
            kind => ("a", kind),
        };
        ConfigError::Invalid(format!("{variable}: the value{shown} is not {article} {kind}"))
    })
}

/// Accepts an integer for a float: `1` for `1.0`.
fn as_float(value: Value, default: &Value) -> Value {
    match value {
        #[allow(clippy::cast_precision_loss)] // no such key has values that large
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

/// Rejects values that parse but cannot work, and fills in what depends on other keys.
fn validate(mut config: Config) -> Result<Config, ConfigError> {
    config.check_bounds()?;
    check_bounds(
        "backoff_cap_ms",
        config.backoff_cap_ms,
        &(config.backoff_base_ms..=MAX_BACKOFF_CAP_MS),
    )?;
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
    fn environment_overrides_the_file() {
        let file = tempfile::NamedTempFile::new().expect("temp file");
        std::fs::write(file.path(), "max_attempts = 3\nlease_ms = 5000\n").expect("write");
        let set = [("SAFELIGHT_LEASE_MS".to_owned(), "7000".to_owned())];
        let config = load_from(Some(file.path()), set).expect("config");
        assert_eq!((config.max_attempts, config.lease_ms), (3, 7000));
    }

    #[test]
    fn value_from_a_file_appears_in_no_message() {
        let file = tempfile::NamedTempFile::new().expect("temp file");
        std::fs::write(file.path(), "postgres://me:hidden@db/safelight\n").expect("write");
        let path = file.path().to_string_lossy();
        let config = env(&[("SAFELIGHT_DATABASE_URL_FILE", &path)]).expect("config");
        let DatabaseUrl::Postgres(url) = config.database_url else { panic!("not read") };
        assert_eq!(url, ["postgres://me:hidden@db/safelight"]);
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
    fn configuration_errors_are_one_line_with_a_hint() {
        let cases = [
            (("SAFELIGHT_LISTN", "x"), "unknown configuration key `SAFELIGHT_LISTN`"),
            (("SAFELIGHT_LISTEN", "nowhere"), "listen: invalid socket address"),
            (
                ("SAFELIGHT_MAX_ATTEMPTS", "many"),
                "SAFELIGHT_MAX_ATTEMPTS: the value `many` is not an integer",
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
            (("SAFELIGHT_PURGE_URLS", "http://varnish"), "the value is not an array"),
            (("SAFELIGHT_OTLP_ENDPOINT", "collector:4318"), "otlp_endpoint: expected http://"),
            (("SAFELIGHT_TRACE_SAMPLE_RATIO", "2"), "trace_sample_ratio is 2, must be 0 to 1"),
            (("SAFELIGHT_TRACE_SAMPLE_RATIO", "nan"), "trace_sample_ratio is NaN, must be 0 to 1"),
            (("SAFELIGHT_TRACE_SAMPLE_RATIO", "all"), "the value `all` is not a float"),
            (("SAFELIGHT_BACKOFF_CAP_MS", "10"), "backoff_cap_ms is 10, must be 1000 to"),
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
    fn tracing_is_off_without_an_endpoint() {
        let config = env(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")]).expect("config");
        assert_eq!(config.otlp_endpoint, None);
        let set =
            [("SAFELIGHT_OTLP_ENDPOINT", "http://c:4318"), ("SAFELIGHT_TRACE_SAMPLE_RATIO", "1")];
        let config = env(&set).expect("config");
        assert_eq!(config.otlp_endpoint.expect("an endpoint").as_str(), "http://c:4318");
        assert!((config.trace_sample_ratio - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn preset_may_omit_values_with_defaults() {
        let config = env(&[("SAFELIGHT_PRESETS", "{ tiny = { size = 64 } }")]).expect("presets");
        assert_eq!(config.presets.len(), 1);
        assert_eq!(config.presets["tiny"].quality, 80);
    }

    #[test]
    fn keep_copyright_applies_to_every_preset() {
        let config = env(&[("SAFELIGHT_KEEP_COPYRIGHT", "true")]).expect("config");
        assert!(config.presets.values().all(|preset| preset.keep_copyright));
    }
}
