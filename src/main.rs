//! `safelight`: the command line. One file per subcommand; the work is done by the `api`,
//! `workers` and `common` crates.

mod api;
mod backfill;
mod client;
mod config;
mod decoder;
mod exit;
mod images;
mod keys;
mod migrate;
mod openapi;
mod process;
mod queues;
mod say;
mod serve;
mod startup;
mod table;
mod tasks;
mod tls;
mod upload;
mod worker;
mod workers;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use exit::Exit;

// Many threads allocating buffers of many sizes fragment the system's allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// An image-hosting backend whose uploads never get lost.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    file: ConfigFile,
}

#[derive(Args)]
struct ConfigFile {
    /// Configuration file; `safelight config --defaults` prints a whole one [env: `SAFELIGHT_CONFIG`]
    #[arg(long = "config", value_name = "FILE", global = true)]
    path: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything in one process: API, workers, relay (this is the default)
    Serve,
    /// Run an API node of a fleet
    Api(api::ApiArgs),
    /// Run a worker of a fleet
    Worker(worker::WorkerArgs),
    /// Bring the database's schema up to this version
    Migrate,
    /// Upload files to a running server
    Upload(upload::UploadArgs),
    /// List, show, try again or cancel tasks of a running server
    Tasks(tasks::TasksArgs),
    /// Delete images of a running server
    Images(images::ImagesArgs),
    /// Work on many images: make renditions, import, verify, collect garbage
    Backfill(backfill::BackfillArgs),
    /// List the workers of a running server's fleet
    Workers(workers::WorkersArgs),
    /// List what waits, and how fast it comes and goes
    Queues(queues::QueuesArgs),
    /// Make, list and revoke keys
    Keys(keys::KeysArgs),
    /// Print the configuration in force
    Config(config::ConfigArgs),
    /// Print the API's OpenAPI document
    Openapi,
    /// Decode pictures for a worker, which starts this by itself
    #[command(hide = true)]
    Decoder(decoder::DecoderArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => exit.report(),
    }
}

fn run(cli: Cli) -> Result<(), Exit> {
    // One TLS implementation for the database, the broker and the object store. It fails only if
    // one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let load = || safelight_config::load(cli.file.path.as_deref()).map_err(Exit::from);
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => process::block_on(serve::run(load()?)),
        Command::Api(args) => process::block_on(api::run(load()?, args)),
        Command::Worker(args) => process::block_on(worker::run(load()?, args)),
        Command::Migrate => process::block_on(migrate::run(load()?)),
        Command::Upload(args) => process::block_on(upload::run(args)),
        Command::Tasks(args) => process::block_on(tasks::run(args)),
        Command::Images(args) => process::block_on(images::run(args)),
        Command::Backfill(args) => process::block_on(backfill::run(args)),
        Command::Workers(args) => process::block_on(workers::run(args)),
        Command::Queues(args) => process::block_on(queues::run(args)),
        Command::Keys(args) => process::block_on(keys::run(load()?, args)),
        Command::Config(args) => config::run(cli.file.path.as_deref(), &args),
        Command::Openapi => openapi::run(),
        Command::Decoder(args) => decoder::run(args),
    }
}
