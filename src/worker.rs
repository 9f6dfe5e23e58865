//! `safelight worker`: one process of the working side of a fleet.

use clap::Args;
use safelight_api::ApiOptions;
use safelight_config::Config;
use safelight_domain::{JobKind, Lane};
use safelight_services::Services;
use safelight_workers::{
    Service, ServiceStatuses, WorkerOptions, WorkerParts, consumer, jobs, run_service,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    api,
    exit::Exit,
    process,
    say::tell,
    startup::{self, Role},
};

/// What a worker answers over HTTP.
const PROBES_ONLY: ApiOptions = ApiOptions { uploads: false, delivery: false };

/// Options of `safelight worker`.
#[derive(Args)]
pub struct WorkerArgs {
    #[arg(long, value_delimiter = ',', value_name = "KIND", help = kinds_help())]
    kinds: Vec<JobKind>,
    /// Lanes to serve, separated by commas: interactive, bulk [default: all]
    #[arg(long, value_delimiter = ',', value_name = "LANE")]
    lanes: Vec<Lane>,
    /// Thumbnail jobs at once [default: the configured `concurrency`, else one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: Option<u16>,
}

/// Runs until a signal.
pub async fn run(config: Config, args: WorkerArgs) -> Result<(), Exit> {
    process::prepare(&config, "worker")?;
    let shutdown = process::shutdown_on_signal()?;
    let probes = match config.worker_listen {
        Some(address) => {
            let listener = startup::listen(address, "SAFELIGHT_WORKER_LISTEN").await?;
            Some((listener, process::metrics(&shutdown)?))
        }
        None => None,
    };
    let role = Role::Fleet { command: "worker", queue: true };
    let services = match &probes {
        Some((listener, _)) => startup::open_behind(listener, None, config, role).await?,
        None => startup::open(config, role).await?,
    };
    let all_if_empty =
        |kinds: Vec<JobKind>| if kinds.is_empty() { JobKind::ALL.to_vec() } else { kinds };
    let options = WorkerOptions {
        kinds: all_if_empty(args.kinds),
        lanes: if args.lanes.is_empty() { Lane::ALL.to_vec() } else { args.lanes },
        concurrency: args
            .concurrency
            .map_or_else(|| slots(services.config.concurrency), usize::from),
    };
    tell!("working with {} slots", options.concurrency);
    let work = start(&services, options, &shutdown);
    let served = if let Some((listener, metrics)) = probes {
        // Without TLS: it is not for clients.
        api::serve(&services, listener, None, metrics, PROBES_ONLY, &shutdown).await
    } else {
        shutdown.cancelled().await;
        Ok(())
    };
    // Also when serving failed: what runs is finished or handed back.
    shutdown.cancel();
    work.finish(&services).await;
    served
}

fn kinds_help() -> String {
    format!("Job kinds to run, separated by commas: {} [default: all]", jobs::kind_names())
}

/// Thumbnail jobs at once: as configured, or one per core.
pub fn slots(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        slots => slots,
    }
}

/// Starts everything that works: the worker, and the background services beside it.
pub fn start(
    services: &Services,
    options: WorkerOptions,
    shutdown: &CancellationToken,
) -> Background {
    let parts = worker_parts(services);
    let mut background = Background::default();
    for service in safelight_workers::services(&parts) {
        background.add(service, shutdown);
    }
    let statuses = background.statuses.clone();
    background.tasks.push(process::supervise("worker", shutdown, move |token| {
        let (parts, options, statuses) = (parts.clone(), options.clone(), statuses.clone());
        async move { consumer::run(&parts, options, statuses, token).await }
    }));
    background
}

fn worker_parts(services: &Services) -> WorkerParts {
    WorkerParts {
        config: services.config.clone(),
        store: services.store.clone(),
        queue: services.queue.clone(),
        blobs: services.blobs.clone(),
        shared_cache: services.shared_cache.clone(),
        outbox_signal: services.outbox_signal.clone(),
    }
}

/// The background tasks of a process.
#[derive(Default)]
pub struct Background {
    tasks: Vec<JoinHandle<()>>,
    statuses: ServiceStatuses,
}

impl Background {
    /// Publishes what the outbox holds.
    pub fn relay(&mut self, services: &Services, shutdown: &CancellationToken) {
        self.add(safelight_workers::outbox_relay(&worker_parts(services)), shutdown);
    }

    fn add(&mut self, service: Box<dyn Service>, shutdown: &CancellationToken) {
        let running = run_service(service, self.statuses.clone(), shutdown.clone());
        self.tasks.push(tokio::spawn(running));
    }

    /// Waits until all of them have drained, then lets go of the broker.
    pub async fn finish(self, services: &Services) {
        for task in self.tasks {
            // A supervisor neither panics nor is aborted.
            let _ = task.await;
        }
        services.queue.close().await;
        tracing::info!("drained");
    }
}
