//! Power losses of the machine of a single process.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use serde_json::{Map, Value};
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::{
    outcome::{Outcome, Setting},
    site::{self, CLIENTS, ENV},
};
use crate::{
    audit::{Audit, Database, Ledger},
    client::{Client, TestClient as _},
    load::Load,
    server::{Server, owned},
    volume::Volume,
};

/// The power fails as often as this, each time in another moment.
const LOSSES: usize = 5;

/// The kernel writes what nobody has synced after 5 s: a copy that takes longer proves nothing.
const SOON: Duration = Duration::from_secs(4);

/// A busy machine may copy too slowly as often as this.
const LATE_COPIES: usize = 10;

/// What had reached the disk when the power failed, and the uploads that were accepted until then.
struct Loss {
    volume: Volume,
    accepted: Ledger,
}

/// Serves from a disk, takes what has reached the disk while uploads arrive, and starts a server on each copy. Every
/// upload that was answered with 202 before must be there, and end; renditions that the disk lacks come with the first
/// read.
pub(super) async fn power_loss(setting: Setting) -> Result<Outcome> {
    let losses = losses(&setting).await?;
    let checks = losses.iter().zip(1..).map(async |(loss, number)| {
        check(loss, &setting).await.with_context(|| format!("loss {number}"))
    });
    let mut outcome = Outcome::default();
    for checked in try_join_all(checks).await? {
        outcome.merge(checked);
    }
    Ok(outcome)
}

/// Uploads, and freezes the server again and again to copy its disk.
async fn losses(setting: &Setting) -> Result<Vec<Loss>> {
    let volume = block_in_place(Volume::new)?;
    let server = serve(&volume, setting)?;
    let load = Load::start(CLIENTS, &[server.url()])?;
    let mut losses = Vec::new();
    let mut late = 0;
    while losses.len() < LOSSES {
        load.wait_for_more(losses.len() + 1).await?;
        server.signal("STOP")?;
        let frozen = Instant::now();
        let copy = block_in_place(|| volume.after_power_loss());
        let took = frozen.elapsed();
        // Nothing is accepted while the server is frozen.
        let accepted = load.accepted_so_far();
        server.signal("CONT")?;
        if took < SOON {
            losses.push(Loss { volume: copy?, accepted });
        } else {
            late += 1;
            ensure!(late < LATE_COPIES, "copies take too long, the last one {took:?}");
        }
    }
    load.stop().await?;
    Ok(losses)
}

fn serve(volume: &Volume, setting: &Setting) -> Result<Server> {
    let data = volume.mount_point();
    let mut env = owned(ENV);
    env.extend(owned(&[
        ("SAFELIGHT_DATA_DIR", &data.to_string_lossy()),
        ("SAFELIGHT_LISTEN", "127.0.0.1:0"),
        // Pictures of the load have the same renditions. Each file is to be read, and repaired.
        ("SAFELIGHT_MEMORY_CACHE_BYTES", "0"),
    ]));
    block_in_place(|| volume.serve(&setting.binary, &env))
}

/// Starts a server after the loss, and compares what it has with the uploads that were accepted before.
async fn check(loss: &Loss, setting: &Setting) -> Result<Outcome> {
    let Loss { volume, accepted } = loss;
    let mut outcome = Outcome::default();
    let server = match serve(volume, setting) {
        Ok(server) => server,
        Err(error) => {
            outcome.lost.push(format!("everything: it does not start: {error:#}"));
            return Ok(outcome);
        }
    };
    let client = Client::new(server.url())?;
    for upload in accepted.uploads() {
        let task = serde_json::json!({ "id": upload.task.parse::<uuid::Uuid>()? });
        // Tasks that are missing or failed are in the audit.
        if let Ok(ended) = client.finished(&task).await {
            read_renditions(&client, &ended, &mut outcome).await;
        }
    }
    site::audit_copies(accepted, &mut outcome, || {
        let copy = TempDir::new()?;
        let folder = copy.path().join("data");
        block_in_place(|| volume.copy_files(&server, &folder))?;
        let database = Database::Sqlite(folder.join("safelight.db"));
        Ok((copy, Audit { database, blobs: folder.join("blobs"), broker: None }))
    })
    .await?;
    Ok(outcome)
}

/// Reads all renditions of an upload, for the first time after the loss. What their files then are, the audit sees.
async fn read_renditions(client: &Client, task: &Value, outcome: &mut Outcome) {
    let renditions = task["image"]["renditions"].as_object();
    for url in renditions.into_iter().flat_map(Map::values).filter_map(|made| made["url"].as_str())
    {
        let waiting = format!("{url}{}wait=60", if url.contains('?') { '&' } else { '?' });
        if let Err(error) = client.bytes(&waiting).await {
            outcome.lost.push(format!("{url} after the loss: {error}"));
        }
    }
}
