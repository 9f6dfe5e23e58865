//! A worker whose jobs only wait: everything of Safelight except image processing.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, anyhow};
use clap::Args;
use futures::FutureExt;
use safelight_blobs::Blobs;
use safelight_config::Config;
use safelight_domain::{JobKind, Lane};
use safelight_queue::OutboxSignal;
use safelight_store::{DynStore, Outcome};
use safelight_workers::{
    ServiceStatuses, WorkerOptions, WorkerParts, consumer, outbox_relay, run_service,
};
use tokio_util::sync::CancellationToken;

/// The options of the worker.
#[derive(Args)]
pub struct NoopWorkerArgs {
    /// Milliseconds that each job waits
    #[arg(long, default_value_t = 0)]
    pad_ms: u64,
    /// Concurrent jobs
    #[arg(long, default_value_t = 1)]
    concurrency: usize,
}

/// Runs until it is killed. The environment configures it.
pub async fn run(args: &NoopWorkerArgs) -> Result<()> {
    let config = safelight_config::load(None).map_err(|error| anyhow!("{error}"))?;
    let parts = parts(config).await?;
    // `Server::start` waits for this line.
    eprintln!("listening on http://127.0.0.1:0");
    let shutdown = CancellationToken::new();
    tokio::join!(
        relay(&parts, shutdown.clone()),
        work(&parts, args.concurrency, Duration::from_millis(args.pad_ms), shutdown),
    );
    Ok(())
}

/// Opens the parts that a configuration names.
pub async fn parts(config: Config) -> Result<WorkerParts> {
    let store: DynStore =
        safelight_testing::open::store(&config.database_url, config.database_connections).await?;
    store.migrate().await?;
    let blobs = Blobs::open(
        &safelight_testing::open::blob_location(&config.blob_url),
        &config.data_dir.join("spool"),
    )?;
    let queue = safelight_testing::open::queue(&config.queue_url);
    Ok(WorkerParts {
        config: Arc::new(config),
        store,
        queue,
        blobs,
        shared_cache: None,
        outbox_signal: OutboxSignal::default(),
    })
}

/// Runs the outbox relay.
pub async fn relay(parts: &WorkerParts, shutdown: CancellationToken) {
    run_service(outbox_relay(parts), ServiceStatuses::default(), shutdown).await;
}

/// Runs thumbnail jobs that only wait.
pub async fn work(
    parts: &WorkerParts,
    concurrency: usize,
    pad: Duration,
    shutdown: CancellationToken,
) {
    let (kinds, lanes) = (vec![JobKind::Thumbnail], vec![Lane::Interactive]);
    let options = WorkerOptions { kinds, lanes, concurrency };
    let job = move |_| {
        async move {
            if !pad.is_zero() {
                tokio::time::sleep(pad).await;
            }
            Ok(Outcome::Succeeded(Vec::new()))
        }
        .boxed()
    };
    consumer::run_with(parts, options, job, shutdown).await;
}
