//! `safelight api`: one node of the HTTP side of a fleet.

use std::{sync::Arc, time::Duration};

use clap::{Args, ValueEnum};
use safelight_api::{Api, ApiOptions};
use safelight_common::{config::Config, services::Services, telemetry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    exit::Exit,
    process,
    startup::{self, Role},
    worker::Background,
};

/// How often recorded samples are folded up.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

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
    let listener = startup::listen(config.listen, "SAFELIGHT_LISTEN").await?;
    let options = ApiOptions {
        uploads: args.only != Some(Half::Delivery),
        delivery: args.only != Some(Half::Uploads),
    };
    let role = Role::Fleet { command: "api", queue: options.uploads };
    let services = startup::open(config, role).await?;

    let mut background = Background::default();
    if options.uploads {
        background.relay(&services, &shutdown);
    }
    serve(&services, listener, options, &shutdown).await?;
    background.finish(&services).await;
    Ok(())
}

/// Folds recorded samples into their histograms, which otherwise grow until somebody scrapes.
async fn keep_up(metrics: telemetry::PrometheusHandle, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(METRICS_UPKEEP);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        metrics.run_upkeep();
    }
}

/// Answers HTTP until `shutdown`, then finishes the requests in flight.
pub async fn serve(
    services: &Services,
    listener: TcpListener,
    options: ApiOptions,
    shutdown: &CancellationToken,
) -> Result<(), Exit> {
    let metrics = telemetry::init_metrics().map_err(Exit::failed)?;
    let upkeep = metrics.clone();
    process::supervise("metrics upkeep", shutdown, move |token| keep_up(upkeep.clone(), token));
    let address = listener.local_addr().map_err(Exit::failed)?;
    let api = Api::new(services.clone(), Arc::new(move || metrics.render()), options);
    eprintln!("listening on http://{address}");
    if options.uploads {
        eprintln!("try: curl --data-binary @photo.jpg http://{address}/v1/images");
    }
    safelight_api::serve(listener, api, &services.config, shutdown.clone())
        .await
        .map_err(|error| Exit::failed(format!("the HTTP server failed: {error}")))
}
