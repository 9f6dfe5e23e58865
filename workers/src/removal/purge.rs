//! Purges deleted images from caching proxies.

use std::{collections::BTreeSet, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use metrics::counter;
use reqwest::{Client, Method, StatusCode, redirect::Policy};
use safelight_config::HttpUrl;
use safelight_domain::{ImageId, Presets};

/// How long a proxy has to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Requests for one image at once.
const AT_ONCE: usize = 16;

/// A proxy that may still serve a deleted image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PurgeError {
    #[error("the proxy {0} does not answer a purge")]
    NoAnswer(HttpUrl, #[source] reqwest::Error),
    #[error("the proxy {0} answered a purge with {1}")]
    Refused(HttpUrl, StatusCode),
    #[error("cannot make an HTTP client")]
    NoClient(#[source] reqwest::Error),
}

/// Purges images from every caching proxy.
pub(crate) struct Purger {
    proxies: Vec<HttpUrl>,
    /// The names of the configured presets.
    presets: Vec<String>,
    unknown_after: Duration,
}

impl Purger {
    /// `presets` are those that are configured. `unknown_after`: see [`Purger::min_age`].
    pub fn new(proxies: &[HttpUrl], presets: &Presets, unknown_after: Duration) -> Self {
        Self {
            proxies: proxies.to_vec(),
            presets: presets.keys().cloned().collect(),
            unknown_after,
        }
    }

    /// How many proxies have to confirm a purge.
    pub fn proxies(&self) -> u32 {
        u32::try_from(self.proxies.len()).unwrap_or(u32::MAX)
    }

    /// How long an image must have been discarded before it is purged. A delivery node may still serve it
    /// from its metadata cache, and a proxy that asks within that time would cache it again, after the purge.
    /// Zero without proxies.
    pub fn min_age(&self) -> Duration {
        if self.proxies.is_empty() { Duration::ZERO } else { self.unknown_after }
    }

    /// Purges an image and all its renditions, of `presets` and of those that are configured, from every
    /// proxy: `PURGE /images/…`, a method that Varnish and others know. A proxy that does not have it may
    /// answer 404.
    pub async fn purge<'a>(
        &'a self,
        image: ImageId,
        presets: impl Iterator<Item = &'a str>,
    ) -> Result<(), PurgeError> {
        if self.proxies.is_empty() {
            return Ok(());
        }
        let client = client()?;
        let paths = self.paths(image, presets);
        let mut requests = Vec::new();
        for proxy in &self.proxies {
            requests
                .extend(paths.iter().map(|path| send(client.clone(), proxy.clone(), path.clone())));
        }
        stream::iter(requests).buffer_unordered(AT_ONCE).try_collect().await
    }

    /// All known paths of the image, present and past.
    fn paths<'a>(&'a self, image: ImageId, presets: impl Iterator<Item = &'a str>) -> Vec<String> {
        let configured = self.presets.iter().map(String::as_str);
        let presets: BTreeSet<&str> = configured.chain(presets).collect();
        let original = format!("/images/{image}");
        let renditions = presets.iter().map(|preset| format!("{original}/{preset}"));
        renditions.chain([original.clone()]).collect()
    }
}

/// A client for the proxies.
fn client() -> Result<Client, PurgeError> {
    let client = Client::builder().timeout(TIMEOUT).redirect(Policy::none()).build();
    client.map_err(PurgeError::NoClient)
}

async fn send(client: Client, proxy: HttpUrl, path: String) -> Result<(), PurgeError> {
    let purge = Method::from_bytes(b"PURGE").unwrap_or(Method::DELETE);
    let answer = client.request(purge, format!("{}{path}", proxy.as_str())).send().await;
    let purged = match answer {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) if answer.status() == StatusCode::NOT_FOUND => Ok(()),
        Ok(answer) => Err(PurgeError::Refused(proxy, answer.status())),
        Err(error) => Err(PurgeError::NoAnswer(proxy, error.without_url())),
    };
    let result = if purged.is_ok() { "succeeded" } else { "failed" };
    counter!("safelight_purges_total", "result" => result).increment(1);
    purged
}
