//! The `safelight` program: a subcommand for each role and each task of an operator. The work is done by the
//! crates below it; this one reads the configuration, opens what it names, and prints.

mod backup;
mod bootstrap;
mod commands;
mod error;
mod output;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use bootstrap::{privacy::protect_process, runtime::block_on};
use commands::{
    adopt_store, api, backfill, config, decoder, images, keys, migrate, openapi, queues, restore,
    serve, tasks, upload, worker, workers,
};
use error::CommandError;

// Many threads allocating buffers of many sizes fragment the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    /// Tie the configured blob store to the configured database, after one of them was replaced
    AdoptStore(adopt_store::AdoptStoreArgs),
    /// Upload files to a running server
    Upload(upload::UploadArgs),
    /// List, show, retry or cancel tasks of a running server
    Tasks(tasks::TasksArgs),
    /// Delete images of a running server
    Images(images::ImagesArgs),
    /// Process many images: make renditions, import, verify, collect garbage
    Backfill(backfill::BackfillArgs),
    /// List the workers of a running server's fleet
    Workers(workers::WorkersArgs),
    /// List the queues: how many jobs wait, and how fast they arrive and finish
    Queues(queues::QueuesArgs),
    /// Create, list and revoke keys
    Keys(keys::KeysArgs),
    /// Copy the database and the stored bytes to another place, while the server runs
    Backup(commands::backup::BackupArgs),
    /// Restore a backup into an empty database and blob store
    Restore(restore::RestoreArgs),
    /// Print the effective configuration
    Config(config::ConfigArgs),
    /// Print the API's OpenAPI document
    Openapi,
    /// Decode images for a worker, which starts this itself
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

fn run(cli: Cli) -> Result<(), CommandError> {
    if !matches!(cli.command, Some(Command::Decoder(_))) {
        protect_process();
    }
    // Databases, brokers, object stores and HTTP clients share one TLS implementation.
    safelight_client::install_crypto_provider();
    let load = || safelight_config::load(cli.file.path.as_deref()).map_err(CommandError::from);
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => block_on(serve::run(load()?)),
        Command::Api(args) => block_on(api::run(load()?, args)),
        Command::Worker(args) => block_on(worker::run(load()?, args)),
        Command::Migrate => block_on(migrate::run(load()?)),
        Command::AdoptStore(args) => block_on(adopt_store::run(load()?, args)),
        Command::Upload(args) => block_on(upload::run(args)),
        Command::Tasks(args) => block_on(tasks::run(args)),
        Command::Images(args) => block_on(images::run(args)),
        Command::Backfill(args) => block_on(backfill::run(args)),
        Command::Workers(args) => block_on(workers::run(args)),
        Command::Queues(args) => block_on(queues::run(args)),
        Command::Keys(args) => block_on(keys::run(load()?, args)),
        Command::Backup(args) => block_on(commands::backup::run(load()?, args)),
        Command::Restore(args) => block_on(restore::run(load()?, args)),
        Command::Config(args) => config::run(cli.file.path.as_deref(), &args),
        Command::Openapi => openapi::run(),
        Command::Decoder(args) => decoder::run(args),
    }
}
