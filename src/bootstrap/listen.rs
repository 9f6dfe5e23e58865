//! HTTP: from an address to a server that runs until the process ends.

use std::{net::SocketAddr, sync::Arc};

use safelight_api::{Api, ApiOptions, Tls};
use safelight_telemetry::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{services::Services, tls};
use crate::{error::CommandError, output::status};

/// Binds an HTTP address; `variable` is where it can be changed.
pub async fn bind(address: SocketAddr, variable: &str) -> Result<TcpListener, CommandError> {
    TcpListener::bind(address).await.map_err(|error| {
        CommandError::failed(format!("cannot listen on {address}: {error}"))
            .hint(format!("choose another address with {variable} (port 0 takes a free one)"))
    })
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
    let api = Api::new(services.for_api(), Arc::new(move || metrics.render()), options);
    let scheme = if tls.is_some() { "https" } else { "http" };
    if let Some(tls) = &tls {
        tls::reload_on_change(tls, shutdown)?;
    }
    status!("listening on {scheme}://{address}");
    if options.uploads {
        status!("try: curl --data-binary @photo.jpg {scheme}://{address}/v1/images");
    }
    safelight_api::serve(listener, api, tls, &services.config, shutdown.clone())
        .await
        .map_err(|error| CommandError::failed(format!("the HTTP server failed: {error}")))
}
