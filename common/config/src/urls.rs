//! The URLs that select the database, the queue, the blob store and the shared cache.

use std::{path::PathBuf, str::FromStr};

use serde::Deserialize;

/// Replaces a password.
const MASK: &str = "***";

/// A URL with an unsupported scheme or an invalid form.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidUrl(String);

/// Selects the database.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum DatabaseUrl {
    /// A file. Empty for the default until [`load()`](super::load()) fills it in.
    Sqlite(PathBuf),
    /// `postgres://` URLs as sqlx reads them: a server, or a primary and its standbys. Never empty.
    Postgres(Vec<String>),
}

/// Selects the job queue.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum QueueUrl {
    /// Inside this process.
    Embedded,
    /// `amqp://` or `amqps://` URLs as lapin reads them: a broker, or the nodes of a cluster. Never empty.
    Amqp(Vec<String>),
}

/// Selects the cache that delivery nodes share.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum SharedCacheUrl {
    /// No shared cache.
    Off,
    /// One Redis or Valkey server, as a `redis://` or `rediss://` URL.
    Single(String),
    /// A cluster, by the URLs of some of its nodes.
    Cluster(Vec<String>),
}

/// The address of an HTTP server, without a path.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HttpUrl(String);

impl HttpUrl {
    /// The address, without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An origin whose pages may use the API from a script: `https://HOST:PORT`, or `*` for all.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct CorsOrigin(String);

impl CorsOrigin {
    /// All origins.
    pub const ANY: &str = "*";

    /// As browsers send it in `Origin`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Selects the blob store.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum BlobUrl {
    /// A folder. Empty for the default until [`load()`](super::load()) fills it in.
    File(PathBuf),
    /// A bucket. The `AWS_*` variables configure the access.
    S3 {
        /// The bucket.
        bucket: String,
        /// The prefix of all keys; may be empty.
        prefix: String,
    },
}

impl QueueUrl {
    /// The name of the system in traces (`messaging.system`).
    pub const fn system(&self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Amqp(_) => "rabbitmq",
        }
    }
}

impl FromStr for DatabaseUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        // A database in memory would lose accepted uploads.
        let is_file = |path: &&str| *path != ":memory:" && !path.contains("://");
        if let Some(path) = text.strip_prefix("sqlite:").and_then(path).filter(is_file) {
            return Ok(Self::Sqlite(path.into()));
        }
        let expected =
            "sqlite:PATH, or postgres://USER@HOST/DATABASE for each server with commas between";
        list(text, &["postgres", "postgresql"], expected).map(Self::Postgres)
    }
}

impl FromStr for QueueUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        match text {
            "embedded:" | "embedded" => Ok(Self::Embedded),
            _ => {
                let expected = "embedded:, or amqp://USER:PASSWORD@HOST/VHOST for each node with commas between";
                list(text, &["amqp", "amqps"], expected).map(Self::Amqp)
            }
        }
    }
}

impl FromStr for SharedCacheUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let (scheme, rest) = text.split_once("://").unwrap_or((text, ""));
        let server = match scheme {
            "" => return Ok(Self::Off),
            "redis" | "redis-cluster" => "redis",
            "rediss" | "rediss-cluster" => "rediss",
            _ => "",
        };
        let nodes: Vec<String> = rest.split(',').map(|node| format!("{server}://{node}")).collect();
        let known = nodes.iter().all(|node| {
            url::Url::parse(node).is_ok_and(|url| !server.is_empty() && url.has_host())
        });
        match nodes.as_slice() {
            _ if !known => {}
            _ if scheme.ends_with("-cluster") => return Ok(Self::Cluster(nodes)),
            [one] => return Ok(Self::Single(one.clone())),
            _ => {}
        }
        Err(InvalidUrl(
            "expected redis://HOST:PORT, redis-cluster://HOST:PORT,HOST:PORT,… or nothing"
                .to_owned(),
        ))
    }
}

impl FromStr for HttpUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let known = url::Url::parse(text).is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.path() == "/"
                && url.query().is_none()
                && url.fragment().is_none()
        });
        if known {
            Ok(Self(text.trim_end_matches('/').to_owned()))
        } else {
            Err(InvalidUrl("expected http://HOST:PORT".to_owned()))
        }
    }
}

impl TryFrom<String> for CorsOrigin {
    type Error = InvalidUrl;

    fn try_from(text: String) -> Result<Self, InvalidUrl> {
        if text == Self::ANY {
            return Ok(Self(text));
        }
        let url = url::Url::parse(&text).ok().filter(|url| {
            url.has_host()
                && matches!(url.path(), "" | "/")
                && url.query().is_none()
                && url.fragment().is_none()
                && url.username().is_empty()
        });
        let url =
            url.ok_or_else(|| InvalidUrl("expected https://HOST, or * for all".to_owned()))?;
        Ok(Self(match url.origin() {
            // Like browsers: without the scheme's default port.
            origin @ url::Origin::Tuple(..) => origin.ascii_serialization(),
            // Schemes of applications with built-in pages: app://localhost.
            url::Origin::Opaque(_) => url.as_str().trim_end_matches('/').to_owned(),
        }))
    }
}

impl FromStr for BlobUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        if let Some(path) = text.strip_prefix("file:").and_then(path) {
            return Ok(Self::File(path.into()));
        }
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if !bucket.is_empty() {
                return Ok(Self::S3 {
                    bucket: bucket.to_owned(),
                    prefix: prefix.trim_matches('/').to_owned(),
                });
            }
        }
        Err(InvalidUrl("expected file:///FOLDER or s3://BUCKET/PREFIX".to_owned()))
    }
}

/// URLs with commas between. A comma within one is `%2C`.
fn list(text: &str, schemes: &[&str], expected: &str) -> Result<Vec<String>, InvalidUrl> {
    let is_known =
        |url: &&str| url.split_once("://").is_some_and(|(scheme, _)| schemes.contains(&scheme));
    let urls: Vec<&str> = text.split(',').map(str::trim).collect();
    match urls.iter().position(|url| !is_known(url)) {
        None => Ok(urls.into_iter().map(str::to_owned).collect()),
        // Not the URL itself, which may contain a password.
        Some(at) if urls.len() > 1 => Err(InvalidUrl(format!(
            "URL {} of the list: expected {expected}; a comma within a URL is written %2C",
            at + 1
        ))),
        Some(_) => Err(InvalidUrl(format!("expected {expected}"))),
    }
}

/// The path of a URL without a host; after `//` it must be absolute (RFC 8089).
fn path(rest: &str) -> Option<&str> {
    match rest.strip_prefix("//") {
        Some(absolute) => absolute.starts_with('/').then_some(absolute),
        None => Some(rest),
    }
}

macro_rules! from_string {
    ($($url:ident),+) => {$(
        impl TryFrom<String> for $url {
            type Error = InvalidUrl;

            fn try_from(text: String) -> Result<Self, InvalidUrl> {
                text.parse()
            }
        }

        /// Shows the URL with its password masked.
        impl std::fmt::Debug for $url {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }
    )+};
}

from_string!(DatabaseUrl, QueueUrl, SharedCacheUrl, HttpUrl, BlobUrl);

impl std::fmt::Display for SharedCacheUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => Ok(()),
            Self::Single(url) => f.write_str(&masked(url)),
            Self::Cluster(nodes) => {
                for (at, node) in nodes.iter().enumerate() {
                    let node = masked(node);
                    let (scheme, address) = node.split_once("://").unwrap_or(("", &node));
                    if at == 0 {
                        write!(f, "{scheme}-cluster://{address}")?;
                    } else {
                        write!(f, ",{address}")?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl std::fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&masked(&self.0))
    }
}

impl std::fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(urls) => f.write_str(&all_masked(urls)),
        }
    }
}

impl std::fmt::Display for QueueUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded:"),
            Self::Amqp(urls) => f.write_str(&all_masked(urls)),
        }
    }
}

impl std::fmt::Display for BlobUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "file://{}", path.display()),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

fn all_masked(urls: &[String]) -> String {
    urls.iter().map(|url| masked(url)).collect::<Vec<_>>().join(",")
}

/// The URL with passwords masked, also those in its query.
fn masked(url: &str) -> String {
    const SECRET: [&str; 4] = ["pass", "secret", "token", "key"];
    let Ok(mut url) = url::Url::parse(url) else { return "(unreadable URL)".to_owned() };
    if url.password().is_some() {
        // Fails only for URLs that cannot have a password.
        let _ = url.set_password(Some(MASK));
    }
    let is_secret = |name: &str| SECRET.iter().any(|word| name.to_lowercase().contains(word));
    if url.query_pairs().any(|(name, _)| is_secret(&name)) {
        let shown = url.clone();
        let pairs = shown.query_pairs();
        let pairs = pairs.map(|(name, value)| {
            let value = if is_secret(&name) { MASK.into() } else { value };
            (name, value)
        });
        url.query_pairs_mut().clear().extend_pairs(pairs);
    }
    url.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed_and_hide_their_passwords() {
        let url: QueueUrl = "amqp://guest:secret@localhost/v".parse().expect("amqp");
        assert_eq!(url.to_string(), "amqp://guest:***@localhost/v");
        let url: DatabaseUrl =
            "postgres://db/safelight?user=me&password=secret&sslmode=require".parse().expect("url");
        assert_eq!(url.to_string(), "postgres://db/safelight?user=me&password=***&sslmode=require");
        assert!(!format!("{url:?}").contains("secret"));
        let url: SharedCacheUrl =
            "redis-cluster://:secret@a:1,:secret@b:2".parse().expect("a cluster");
        assert_eq!(url.to_string(), "redis-cluster://:***@a:1,:***@b:2");
        let url: DatabaseUrl = "sqlite:///tmp/a.db".parse().expect("sqlite");
        assert_eq!(url, DatabaseUrl::Sqlite("/tmp/a.db".into()));
        let url: BlobUrl = "s3://bucket/a/b/".parse().expect("s3");
        assert_eq!(url, BlobUrl::S3 { bucket: "bucket".into(), prefix: "a/b".into() });
        assert!("mysql://localhost".parse::<DatabaseUrl>().is_err());
        assert!("s3:///prefix".parse::<BlobUrl>().is_err());
    }

    #[test]
    fn lists_of_urls_name_servers_of_one_kind() {
        let url: DatabaseUrl =
            "postgres://u:secret@a/x, postgres://u:se%2Ccret@b:5433/x".parse().expect("a list");
        assert_eq!(url.to_string(), "postgres://u:***@a/x,postgres://u:***@b:5433/x");
        let DatabaseUrl::Postgres(urls) = url else { panic!("not PostgreSQL") };
        assert_eq!(urls[1], "postgres://u:se%2Ccret@b:5433/x");
        let url: QueueUrl = "amqp://a,amqps://u:secret@b/v".parse().expect("a list");
        assert_eq!(url.to_string(), "amqp://a,amqps://u:***@b/v");
        for mixed in [
            "postgres://a/x,sqlite:y",
            "sqlite:y,postgres://a/x",
            "postgres://a/x,",
            "postgres://a,b/x",
            "postgres://u:p,secret@a/x",
        ] {
            let error = mixed.parse::<DatabaseUrl>().expect_err(mixed);
            assert!(error.to_string().contains("postgres://USER@HOST/DATABASE"), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        for mixed in ["embedded:,amqp://a", "amqp://a,embedded:", "amqp://a,http://b"] {
            let error = mixed.parse::<QueueUrl>().expect_err(mixed);
            assert!(error.to_string().contains("amqp://USER:PASSWORD@HOST/VHOST"), "{error}");
        }
    }

    #[test]
    fn origins_are_normalized_as_browsers_send_them() {
        for (text, origin) in [
            ("https://App.example.org", Some("https://app.example.org")),
            ("https://app.example.org:443/", Some("https://app.example.org")),
            ("http://localhost:5173", Some("http://localhost:5173")),
            ("capacitor://localhost", Some("capacitor://localhost")),
            ("*", Some("*")),
            ("app.example.org", None),
            ("https://app.example.org/path", None),
            ("https://user@app.example.org", None),
            ("null", None),
            ("", None),
        ] {
            let parsed = CorsOrigin::try_from(text.to_owned()).ok();
            assert_eq!(parsed.as_ref().map(CorsOrigin::as_str), origin, "{text}");
        }
    }
}
