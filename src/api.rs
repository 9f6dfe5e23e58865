//! `safelight api`: one node of the HTTP side of a fleet.

use std::sync::Arc;

use clap::{Args, ValueEnum};
use safelight_api::{Api, ApiOptions, ApiParts, Tls};
use safelight_config::Config;
use safelight_services::Services;
use safelight_telemetry::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    exit::Exit,
    process,
    say::tell,
    startup::{self, Role},
    tls,
    worker::Background,
};

/// Options of `safelight api`.
#[derive(Args)]
pub struct ApiArgs {
    /// Answer only this half: uploads, tasks and metadata; or the delivery of bytes
    #[arg(long, value_name = "HALF")]
    only: Option<Half>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Half {
    Uploads,
    Delivery,
}

/// Runs until a signal.
pub async fn run(config: Config, args: ApiArgs) -> Result<(), Exit> {
    process::prepare(&config, "api")?;
    let shutdown = process::shutdown_on_signal()?;
    let metrics = process::metrics(&shutdown)?;
    let tls = tls::load(&config)?;
    let listener = startup::listen(config.listen, "SAFELIGHT_LISTEN").await?;
    let options = ApiOptions {
        uploads: args.only != Some(Half::Delivery),
        delivery: args.only != Some(Half::Uploads),
    };
    let role = Role::Fleet { command: "api", queue: options.uploads };
    let services = startup::open_behind(&listener, tls.as_ref(), config, role).await?;
    startup::refuse_open_door(&services.config, &services.store).await?;

    let mut background = Background::default();
    let answered = CancellationToken::new();
    if options.uploads {
        // To the last upload's answer, so that its jobs wait for nobody else.
        background.relay(&services, &answered);
    }
    serve(&services, listener, tls, metrics, options, &shutdown).await?;
    answered.cancel();
    background.finish(&services).await;
    Ok(())
}

/// Answers HTTP until `shutdown`, then finishes the requests in flight.
pub async fn serve(
    services: &Services,
    listener: TcpListener,
    tls: Option<Tls>,
    metrics: PrometheusHandle,
    options: ApiOptions,
    shutdown: &CancellationToken,
) -> Result<(), Exit> {
    let address = listener.local_addr().map_err(Exit::failed)?;
    let parts = ApiParts {
        config: services.config.clone(),
        store: services.store.clone(),
        blobs: services.blobs.clone(),
        queue: services.queue.clone(),
        shared_cache: services.shared_cache.clone(),
        outbox_signal: services.outbox_signal.clone(),
    };
    let api = Api::new(parts, Arc::new(move || metrics.render()), options);
    let scheme = if tls.is_some() { "https" } else { "http" };
    if let Some(tls) = &tls {
        tls::keep_current(tls, shutdown)?;
    }
    tell!("listening on {scheme}://{address}");
    if options.uploads {
        tell!("try: curl --data-binary @photo.jpg {scheme}://{address}/v1/images");
    }
    safelight_api::serve(listener, api, tls, &services.config, shutdown.clone())
        .await
        .map_err(|error| Exit::failed(format!("the HTTP server failed: {error}")))
}
