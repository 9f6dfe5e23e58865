//! `safelight api`: a node of a fleet that answers HTTP.

use clap::{Args, ValueEnum};
use safelight_api::ApiOptions;
use safelight_config::Config;
use tokio_util::sync::CancellationToken;

use crate::{
    bootstrap::{
        background::BackgroundTasks,
        checks, listen, runtime,
        services::{self, Role},
        tls,
    },
    error::CommandError,
};

/// Options of `safelight api`.
#[derive(Args)]
pub struct ApiArgs {
    /// Serve only this half: uploads, tasks and metadata, or the delivery of bytes
    #[arg(long, value_name = "HALF")]
    only: Option<Half>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Half {
    Uploads,
    Delivery,
}

/// Runs until a signal.
pub async fn run(config: Config, args: ApiArgs) -> Result<(), CommandError> {
    runtime::init(&config, "api")?;
    let shutdown = runtime::shutdown_on_signal()?;
    let metrics = runtime::init_metrics(&shutdown)?;
    let tls = tls::load(&config)?;
    let listener = listen::bind(config.listen, "SAFELIGHT_LISTEN")?;
    let options = ApiOptions {
        uploads: args.only != Some(Half::Delivery),
        delivery: args.only != Some(Half::Uploads),
    };
    let role = Role::Fleet { command: "api", queue: options.uploads };
    let services = services::open_behind(&listener, tls.as_ref(), config, role).await?;
    let safe = checks::require_key_for_remote_clients(&services.config, &services.store).await;
    if safe.is_err() {
        services.close().await;
        return safe;
    }

    let mut background = BackgroundTasks::default();
    let all_answered = CancellationToken::new();
    if options.uploads {
        // Until the last upload was answered: its jobs need not wait for the relay of another node.
        background.start_relay(&services, &all_answered);
    }
    let served = listen::serve(&services, listener, tls, metrics, options, &shutdown).await;
    all_answered.cancel();
    background.finish(&services).await;
    served
}
