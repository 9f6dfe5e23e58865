//! `safelight images`: delete images.

use clap::{Args, Subcommand};
use safelight_client::ClientError;
use safelight_domain::ImageId;

use super::{server_args::ServerArgs, tasks};
use crate::error::CommandError;

/// Options of `safelight images`.
#[derive(Args)]
pub struct ImagesArgs {
    #[command(subcommand)]
    command: ImagesCommand,
}

#[derive(Subcommand)]
enum ImagesCommand {
    /// Delete images permanently: they become unavailable, and a task for each removes its stored bytes
    Delete {
        /// Ids of images
        #[arg(required = true)]
        ids: Vec<ImageId>,
        /// Wait until everything is removed, also from caches
        #[arg(long)]
        wait: bool,
        /// Print one task as JSON per image, with its receipt once everything is removed
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
}

/// Runs the subcommand.
pub async fn run(args: ImagesArgs) -> Result<(), CommandError> {
    let ImagesCommand::Delete { ids, wait, json, server } = args.command;
    let client = server.client().await?;
    tasks::each(&ids, "images were deleted", json, async |id| {
        let task = client.delete_image(id).await?;
        let Some(id) = task["id"].as_str().filter(|_| wait) else { return Ok(task) };
        let task = client.wait_for_task(id).await?;
        match task["status"].as_str() {
            Some("succeeded") => Ok(task),
            _ => Err(ClientError::new(format!("task {id} failed: {}", task["error"]["message"]))),
        }
    })
    .await
}
