//! `safelight serve`: everything in one process.

use safelight_api::ApiOptions;
use safelight_config::Config;
use safelight_domain::{JobKind, Lane};
use safelight_workers::WorkerOptions;

use crate::{
    bootstrap::{
        background::{BackgroundTasks, concurrency},
        checks, listen, runtime,
        services::{self, Role},
        tls,
    },
    error::CommandError,
};

/// Runs until a signal.
pub async fn run(config: Config) -> Result<(), CommandError> {
    runtime::init(&config, "serve")?;
    let shutdown = runtime::shutdown_on_signal()?;
    let metrics = runtime::init_metrics(&shutdown)?;
    let tls = tls::load(&config)?;
    let listener = listen::bind(config.listen, "SAFELIGHT_LISTEN")?;
    let services = services::open_behind(&listener, tls.as_ref(), config, Role::Standalone).await?;
    let safe = checks::require_key_for_remote_clients(&services.config, &services.store).await;
    if safe.is_err() {
        services.close().await;
        return safe;
    }

    let options = WorkerOptions {
        kinds: JobKind::ALL.to_vec(),
        lanes: Lane::ALL.to_vec(),
        concurrency: concurrency(services.config.concurrency),
    };
    let work = BackgroundTasks::worker(&services, options, &shutdown);
    let options = ApiOptions { uploads: true, delivery: true };
    let served = listen::serve(&services, listener, tls, metrics, options, &shutdown).await;
    // Also when the server failed: running jobs are finished or released.
    shutdown.cancel();
    work.finish(&services).await;
    served
}
