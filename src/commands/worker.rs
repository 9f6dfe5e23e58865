//! `safelight worker`: a node of a fleet that runs jobs.

use clap::Args;
use safelight_api::ApiOptions;
use safelight_config::Config;
use safelight_domain::{JobKind, Lane};
use safelight_workers::WorkerOptions;

use crate::{
    bootstrap::{
        background::{BackgroundTasks, concurrency},
        listen, runtime,
        services::{self, Role},
    },
    error::CommandError,
    output::status,
};

/// Probes and metrics are all that a worker answers over HTTP.
const PROBES_ONLY: ApiOptions = ApiOptions { uploads: false, delivery: false };

/// Options of `safelight worker`.
#[derive(Args)]
pub struct WorkerArgs {
    #[arg(long, value_delimiter = ',', value_name = "KIND", help = kinds_help())]
    kinds: Vec<JobKind>,
    /// Lanes to serve, separated by commas: interactive, bulk [default: all]
    #[arg(long, value_delimiter = ',', value_name = "LANE")]
    lanes: Vec<Lane>,
    /// Concurrent thumbnail jobs [default: the configured `concurrency`, else one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: Option<u16>,
}

fn kinds_help() -> String {
    let kinds: Vec<_> = JobKind::ALL.iter().map(|kind| kind.as_str()).collect();
    format!("Job kinds to run, separated by commas: {} [default: all]", kinds.join(", "))
}

/// Runs until a signal.
pub async fn run(config: Config, args: WorkerArgs) -> Result<(), CommandError> {
    runtime::init(&config, "worker")?;
    let shutdown = runtime::shutdown_on_signal()?;
    let probes = match config.worker_listen {
        Some(address) => {
            let listener = listen::bind(address, "SAFELIGHT_WORKER_LISTEN")?;
            Some((listener, runtime::init_metrics(&shutdown)?))
        }
        None => None,
    };
    let role = Role::Fleet { command: "worker", queue: true };
    let services = match &probes {
        Some((listener, _)) => services::open_behind(listener, None, config, role).await?,
        None => services::open(config, role).await?,
    };
    let all_if_empty =
        |kinds: Vec<JobKind>| if kinds.is_empty() { JobKind::ALL.to_vec() } else { kinds };
    let options = WorkerOptions {
        kinds: all_if_empty(args.kinds),
        lanes: if args.lanes.is_empty() { Lane::ALL.to_vec() } else { args.lanes },
        concurrency: args
            .concurrency
            .map_or_else(|| concurrency(services.config.concurrency), usize::from),
    };
    status!("working with {} slots", options.concurrency);
    let work = BackgroundTasks::worker(&services, options, &shutdown);
    let served = if let Some((listener, metrics)) = probes {
        // Without TLS: probes and metrics are not for clients.
        listen::serve(&services, listener, None, metrics, PROBES_ONLY, &shutdown).await
    } else {
        shutdown.cancelled().await;
        Ok(())
    };
    // Also when the server failed: running jobs are finished or released.
    shutdown.cancel();
    work.finish(&services).await;
    served
}
