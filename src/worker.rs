//! `safelight worker`: one process of the working side of a fleet.

use clap::Args;
use safelight_api::ApiOptions;
use safelight_config::Config;
use safelight_domain::{JobKind, Lane};
use safelight_services::Services;
use safelight_workers::{WorkerOptions, backfill, dead_letters, janitor, relay, rescuer, worker};
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
    /// Job kinds to run, separated by commas: write, thumbnail, verify, delete [default: all]
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
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

/// Thumbnail jobs at once: as configured, or one per core.
pub fn slots(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        slots => slots,
    }
}

/// Begins everything that works: the worker, and the relay, rescuer, foreman and janitor beside it.
pub fn start(
    services: &Services,
    options: WorkerOptions,
    shutdown: &CancellationToken,
) -> Background {
    let mut background = Background::default();
    background.add("worker", services, shutdown, move |services, token| {
        worker::run(services, options.clone(), token)
    });
    background.relay(services, shutdown);
    background.add("rescuer", services, shutdown, rescuer::run);
    background.add("foreman", services, shutdown, backfill::run);
    background.add("dead letters", services, shutdown, dead_letters::run);
    background.add("janitor", services, shutdown, janitor::run);
    background
}

/// The background tasks of a process.
#[derive(Default)]
pub struct Background(Vec<JoinHandle<()>>);

impl Background {
    /// Begins to publish what the outbox holds.
    pub fn relay(&mut self, services: &Services, shutdown: &CancellationToken) {
        self.add("relay", services, shutdown, relay::run);
    }

    fn add<F>(
        &mut self,
        name: &'static str,
        services: &Services,
        shutdown: &CancellationToken,
        run: impl Fn(Services, CancellationToken) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let services = services.clone();
        self.0.push(process::supervise(name, shutdown, move |token| run(services.clone(), token)));
    }

    /// Waits until all of them have drained, then lets go of the broker.
    pub async fn finish(self, services: &Services) {
        for task in self.0 {
            // A supervisor neither panics nor is aborted.
            let _ = task.await;
        }
        services.queue.close().await;
        tracing::info!("drained");
    }
}
