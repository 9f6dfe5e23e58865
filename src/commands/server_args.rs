use std::time::Duration;

use clap::Args;
use safelight_client::Client;

use crate::error::CommandError;

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
}

impl ServerArgs {
    /// A client of that server. An upload may take any time.
    pub fn client(&self) -> Result<Client, CommandError> {
        Client::builder(&self.url)
            .key(self.key.clone())
            .on_behalf_of(self.on_behalf.clone())
            .tries(TRIES)
            .timeout(None::<Duration>)
            .build()
            .map_err(|error| {
                CommandError::usage(error).hint(
                    "give the server as http://HOST:PORT with --url or SAFELIGHT_URL, and the key as it \
                     was shown",
                )
            })
    }
}
