//! `safelight serve`: everything in one process.

use safelight_api::ApiOptions;
use safelight_config::Config;
use safelight_domain::{JobKind, Lane};
use safelight_workers::WorkerOptions;

use crate::{
    api,
    exit::Exit,
    process,
    startup::{self, Role},
    tls, worker,
};

/// Runs until a signal.
pub async fn run(config: Config) -> Result<(), Exit> {
    process::prepare(&config, "serve")?;
    let shutdown = process::shutdown_on_signal()?;
    let metrics = process::metrics(&shutdown)?;
    let tls = tls::load(&config)?;
    let listener = startup::listen(config.listen, "SAFELIGHT_LISTEN").await?;
    let services = startup::open_behind(&listener, tls.as_ref(), config, Role::Alone).await?;
    startup::refuse_open_door(&services.config, &services.store).await?;

    let options = WorkerOptions {
        kinds: JobKind::ALL.to_vec(),
        lanes: Lane::ALL.to_vec(),
        concurrency: worker::slots(services.config.concurrency),
    };
    let work = worker::start(&services, options, &shutdown);
    let options = ApiOptions { uploads: true, delivery: true };
    api::serve(&services, listener, tls, metrics, options, &shutdown).await?;
    work.finish(&services).await;
    Ok(())
}
