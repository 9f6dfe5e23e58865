//! `safelight images`: have images deleted for good.

use clap::{Args, Subcommand};
use safelight_domain::ImageId;

use crate::{
    client::{CallError, SafelightClient, Server},
    exit::Exit,
    tasks,
};

/// Options of `safelight images`.
#[derive(Args)]
pub struct ImagesArgs {
    #[command(subcommand)]
    command: ImagesCommand,
}

#[derive(Subcommand)]
enum ImagesCommand {
    /// Delete images for good: they are gone at once, and a task each removes what was stored of them
    Delete {
        /// Ids of images
        #[arg(required = true)]
        ids: Vec<ImageId>,
        /// Wait until everything is removed, also from caches
        #[arg(long)]
        wait: bool,
        /// Print one task as JSON per image: the receipt, once everything is removed
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: Server,
    },
}

/// Runs the subcommand.
pub async fn run(args: ImagesArgs) -> Result<(), Exit> {
    let ImagesCommand::Delete { ids, wait, json, server } = args.command;
    let client = SafelightClient::new(server)?;
    tasks::each(&ids, "images were deleted", json, async |id| {
        let task = client.delete(&format!("/v1/images/{id}")).await?;
        let Some(id) = task["id"].as_str().filter(|_| wait) else { return Ok(task) };
        let task = client.finished(id).await?;
        match task["status"].as_str() {
            Some("succeeded") => Ok(task),
            _ => Err(CallError::new(format!("task {id} failed: {}", task["error"]["message"]))),
        }
    })
    .await
}
