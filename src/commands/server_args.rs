use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::Args;
use safelight_api::is_own_listener;
use safelight_client::{Client, ClientError};
use serde_json::Value;

use crate::{bootstrap::local_key, error::CommandError};

/// How often a call is tried whose failure may be temporary, the first try included.
const TRIES: u32 = 6;

/// The server that a command calls, and the caller.
#[derive(Args, Clone)]
pub struct ServerArgs {
    /// Base URL of the server
    #[arg(long, env = "SAFELIGHT_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Access key
    #[arg(long, env = "SAFELIGHT_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Act for this owner, or for all with `*`; needs a key with the scope admin
    #[arg(long, env = "SAFELIGHT_OWNER", value_name = "NAME")]
    on_behalf: Option<String>,
    /// The configuration file, which names the data directory.
    #[arg(from_global)]
    path: Option<PathBuf>,
}

impl ServerArgs {
    /// A client of that server, with the local key if that server needs it. An upload may take any time.
    pub async fn client(&self) -> Result<Client, CommandError> {
        let client = self.with_key(self.key.clone()).map_err(|error| {
            CommandError::usage(error).hint(
                "give the server as http://HOST:PORT with --url or SAFELIGHT_URL, and the key as it was shown",
            )
        })?;
        match self.local_key() {
            Some(key) if asks_for_local_key(&client).await => {
                self.with_key(Some(key)).map_err(CommandError::usage)
            }
            _ => Ok(client),
        }
    }

    fn with_key(&self, key: Option<String>) -> Result<Client, ClientError> {
        Client::builder(&self.url)
            .key(key)
            .on_behalf_of(self.on_behalf.clone())
            .tries(TRIES)
            .timeout(None::<Duration>)
            .build()
    }

    /// The local key of a server of this user on this machine, if no other key was given. Another user's program at
    /// that address would only collect it.
    fn local_key(&self) -> Option<String> {
        if self.key.is_some() || !local_port(&self.url).is_some_and(is_own_listener) {
            return None;
        }
        let config = safelight_config::load(self.path.as_deref()).ok()?;
        Some(local_key::read(&local_key::path(&config))?.reveal().to_owned())
    }
}

/// Whether the server has no keys, and does not recognize this program as one of its user.
async fn asks_for_local_key(client: &Client) -> bool {
    let Ok(answer) = client.get("/v1/limits").await else { return false };
    let problem: Value = answer.json().await.unwrap_or_default();
    problem["local_key"] == true
}

/// The port of a URL that names this machine.
fn local_port(url: &str) -> Option<u16> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (authority, if scheme.eq_ignore_ascii_case("https") { 443 } else { 80 }),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_local = host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    is_local.then_some(port)
}

#[cfg(test)]
mod tests {
    use super::local_port;

    #[test]
    fn only_loopback_urls_name_this_machine() {
        for (url, port) in [
            ("http://127.0.0.1:8080", 8080),
            ("http://localhost/", 80),
            ("https://[::1]:1", 1),
            ("http://[::1]", 80),
            ("https://localhost", 443),
        ] {
            assert_eq!(local_port(url), Some(port), "{url}");
        }
        for url in ["http://example.org", "http://localhost@example.org", "http://10.0.0.1:80", ""]
        {
            assert_eq!(local_port(url), None, "{url}");
        }
    }
}
