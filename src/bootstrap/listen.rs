//! HTTP: from an address to a server that runs until the process ends.

use std::{io, net::SocketAddr, sync::Arc};

use safelight_api::{Api, ApiOptions, ApiParts, Tls};
use safelight_config::Config;
use safelight_telemetry::PrometheusHandle;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

use super::{local_key, services::Services, tls};
use crate::{error::CommandError, output::status};

/// Connections that the system holds until they are accepted, if its own limit allows (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;

/// Binds an HTTP address; `variable` is where it can be changed.
pub fn bind(address: SocketAddr, variable: &str) -> Result<TcpListener, CommandError> {
    listen(address).map_err(|error| {
        CommandError::failed(format!("cannot listen on {address}: {error}"))
            .hint(format!("choose another address with {variable} (port 0 takes a free one)"))
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Connections of the process before are still closing.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers HTTP until `shutdown`, then finishes the requests in flight.
pub async fn serve(
    services: &Services,
    listener: TcpListener,
    tls: Option<Tls>,
    metrics: PrometheusHandle,
    options: ApiOptions,
    shutdown: &CancellationToken,
) -> Result<(), CommandError> {
    let address = listener.local_addr().map_err(CommandError::failed)?;
    let local_key = local_key::of_server(&services.config, &services.store, address).await;
    let access = local_key.as_ref().map(Option::is_some);
    let local_key = local_key.flatten();
    let parts = ApiParts { local_key, ..services.for_api() };
    let api = Api::new(parts, Arc::new(move || metrics.render()), options);
    let scheme = if tls.is_some() { "https" } else { "http" };
    if let Some(tls) = &tls {
        tls::reload_on_change(tls, shutdown)?;
    }
    status!("listening on {scheme}://{address}");
    if options.uploads || options.delivery {
        announce_access(&services.config, access);
    }
    if options.uploads {
        let key =
            if access.is_none() { "-H \"Authorization: Bearer $SAFELIGHT_KEY\" " } else { "" };
        status!("try: curl {key}--data-binary @photo.jpg {scheme}://{address}/v1/images");
    }
    safelight_api::serve(listener, api, tls, &services.config, shutdown.clone())
        .await
        .map_err(|error| CommandError::failed(format!("the HTTP server failed: {error}")))
}

/// Says who may do what. `keyless` is whether there is a local key, if requests of this machine need no other one.
fn announce_access(config: &Config, keyless: Option<bool>) {
    let Some(has_local_key) = keyless else {
        return status!("requests need a key, except for public images, probes and /docs");
    };
    let user = rustix::process::geteuid().as_raw();
    let path = local_key::path(config);
    tracing::warn!(user, "no key exists yet; `safelight keys create` ends access without one");
    let others = if has_local_key {
        format!("all others need the key in {}", path.display())
    } else {
        "nobody else may do anything".to_owned()
    };
    status!(
        "no key exists yet: your own programs on this machine (uid {user}) may do everything; {others}"
    );
}
