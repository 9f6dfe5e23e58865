//! Renditions are not synced, so a backup after a power loss finds some that are damaged.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use safelight_testing::client::Client;
use tempfile::TempDir;

use super::{Upload, command, embedded_env, finished, objects, start, stop, upload};

/// The files of an upload's renditions below a store, in the order of their names.
fn files(store: &Path, (task, _): &Upload) -> Result<Vec<PathBuf>> {
    let sha256 = task["image"]["sha256"].as_str().context("a hash")?;
    objects(&store.join("renditions").join(&sha256[..2]).join(sha256))
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_renditions_are_left_out_of_backups_and_replace_nothing() -> Result<()> {
    let (data, place) = (TempDir::new()?, TempDir::new()?);
    let env = embedded_env(data.path());
    let (store, backup) = (data.path().join("blobs"), place.path().join("backup"));
    let to = backup.to_string_lossy().into_owned();
    let (server, client) = start(&env, &[]).await?;
    let old = upload(&client, 0..1).await?.remove(0);
    finished(&client, std::slice::from_ref(&old)).await?;
    command(&["backup", "--init", &to], &env).await?.success()?;
    let good = fs::read(&files(&backup, &old)?[0])?;

    // A copy is there already; and of another upload nothing is.
    fs::write(&files(&store, &old)?[0], &good[..good.len() / 2])?;
    let new = upload(&client, 1..2).await?.remove(0);
    finished(&client, std::slice::from_ref(&new)).await?;
    let [zeroed, lost, whole] = &*files(&store, &new)? else { anyhow::bail!("three presets") };
    let before = [fs::read(zeroed)?, fs::read(lost)?, fs::read(whole)?];
    fs::write(zeroed, vec![0; before[0].len()])?;
    fs::remove_file(lost)?;
    command(&["backup", &to], &env).await?.success()?;
    assert_eq!(fs::read(&files(&backup, &old)?[0])?, good, "damage has replaced a good copy");
    let [copied] = &*files(&backup, &new)? else { anyhow::bail!("damage was copied") };
    assert_eq!((copied.file_name(), fs::read(copied)?), (whole.file_name(), before[2].clone()));
    stop(server).await?;

    let other = TempDir::new()?;
    let env = embedded_env(other.path());
    command(&["restore", &to], &env).await?.success()?;
    let (_server, client) = start(&env, &[("SAFELIGHT_DELIVERY_WAIT_MS", "60000")]).await?;
    let (old, new) = (renditions(&client, &old).await?, renditions(&client, &new).await?);
    assert!(old.contains(&good), "another rendition was restored");
    assert!(before.iter().all(|made| new.contains(made)), "another rendition was made");
    Ok(())
}

/// All renditions of an upload, as they are delivered.
async fn renditions(client: &Client, (task, _): &Upload) -> Result<Vec<Vec<u8>>> {
    let id = task["image"]["id"].as_str().context("an image")?;
    let image = client.json(&format!("/v1/images/{id}")).await?;
    let mut found = Vec::new();
    for made in image["renditions"].as_object().context("renditions")?.values() {
        found.push(client.bytes(made["url"].as_str().context("a URL")?).await?.to_vec());
    }
    Ok(found)
}
