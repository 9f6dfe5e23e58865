//! `make fleet`: runs the topology of `compose.yaml` on this machine until Ctrl-C.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use safelight_testing::{
    fleet::{Engines, Fleet, Plan},
    postgres::Postgres,
    rabbitmq::RabbitMq,
    server::{Server, find_binary},
};
use tokio::signal::unix::{SignalKind, signal};

/// Starts PostgreSQL, RabbitMQ, an S3 store, api nodes, workers and HAProxy on free ports, in
/// temporary folders. Ctrl-C ends everything and removes the folders.
#[derive(Parser)]
struct Options {
    /// The safelight binary (default: the one in the directory of this program)
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Number of api nodes
    #[arg(long, default_value_t = 2)]
    apis: usize,
    /// Number of workers
    #[arg(long, default_value_t = 2)]
    workers: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let binary = find_binary(options.binary.as_deref())?;
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        ended = serve(&binary, options.apis, options.workers) => ended,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
    // The fleet that `serve` owned is dropped by now, which ended it.
}

async fn serve(binary: &Path, apis: usize, workers: usize) -> Result<()> {
    eprintln!("starting PostgreSQL and RabbitMQ …");
    let (postgres, rabbitmq) = tokio::task::spawn_blocking(|| -> Result<_> {
        std::thread::scope(|scope| {
            let postgres = scope.spawn(Postgres::start);
            let rabbitmq = RabbitMq::start()?;
            let postgres = postgres.join().ok().context("PostgreSQL's thread died")??;
            Ok((postgres, rabbitmq))
        })
    })
    .await??;
    postgres.create_database("safelight")?;
    let engines =
        Engines { database_url: postgres.url("safelight"), queue_url: rabbitmq.fresh_vhost()? };
    eprintln!("starting {apis} api, {workers} workers, S3 and HAProxy …");
    let plan = Plan { apis, workers, ..Plan::default() };
    let fleet = Fleet::start(binary, &engines, &plan)?;
    print_summary(&fleet, &engines);
    std::future::pending().await
}

/// Prints what runs where, and a first command.
fn print_summary(fleet: &Fleet, engines: &Engines) {
    let row = |name: &str, address: &str| println!("  {name:<14}{address}");
    println!("\nThe fleet is running; Ctrl-C ends it.\n");
    row("load balancer", &fleet.url());
    fleet.apis.iter().map(Server::url).for_each(|url| row("api", url));
    fleet.workers.iter().for_each(|worker| row("worker", &format!("process {}", worker.id())));
    row("PostgreSQL", &engines.database_url);
    row("RabbitMQ", &engines.queue_url);
    row("S3", &format!("{} in {}", fleet.s3.endpoint(), fleet.s3.bucket_folder().display()));
    println!("\nTry:  curl -i --data-binary @photo.jpg {}/v1/images", fleet.url());
}
