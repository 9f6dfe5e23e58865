//! The paths of stored bytes: staged uploads, originals, renditions.
//!
//! Nothing moves files that are already stored. After a change of a path, existing images answer 404, and
//! garbage collection may delete their files as unused. The fingerprints are those of the default presets. If
//! a fingerprint changes, every rendition of that preset is made again.

use std::path::Path;

use anyhow::{Context, Result};
use safelight_testing::wait::{LIMIT, eventually};
use safelight_testing::{
    client::{Client, TestClient},
    pictures,
    server::{Server, safelight},
};
use serde_json::Value;
use tempfile::TempDir;

use super::assert_reviewed;
use crate::e2e::{binary, embedded_env};

#[tokio::test]
async fn blob_layout() -> Result<()> {
    let data = TempDir::new()?;
    let mut env = embedded_env(data.path());
    env.push(("SAFELIGHT_FAIL_POINTS".to_owned(), "write.inspected=hang".to_owned()));
    let command = safelight(binary(), ["serve"], &env);
    let mut server = tokio::task::spawn_blocking(move || Server::start(command)).await??;
    let client = Client::new(server.url())?;

    // The first upload's write job hangs: its bytes have their name before.
    let waiting = client.upload(pictures::jpeg(64, 48, 1)?).await?;
    server.wait_for_output("fail point write.inspected", LIMIT)?;
    // Opaque and transparent pictures have renditions of different formats.
    let opaque = client.upload(pictures::jpeg(1400, 1000, 2)?).await?;
    let transparent = client.upload(pictures::png_with_alpha(64, 48, 3)?).await?;
    let mut names = vec![(text(&waiting["image"]["id"])?, "<image>".to_owned())];
    names.extend(hash_names(&waiting, "waiting")?);
    names.extend(hash_names(&client.finished(&opaque).await?, "opaque")?);
    names.extend(hash_names(&client.finished(&transparent).await?, "transparent")?);

    let task = format!("/v1/tasks/{}", text(&waiting["id"])?);
    let folder = data.path().join("blobs");
    let mut files = Vec::new();
    eventually("all files are stored", async || {
        let rendered = client.json(&task).await?["progress"]["succeeded"] == 1;
        files = relative_paths(&folder)?;
        // The janitor writes `clock` in its first round.
        Ok(rendered && files.iter().any(|file| file == "clock"))
    })
    .await?;
    // Dropping the server would wait for the hanging job.
    server.kill()?;
    for file in &mut files {
        for (value, name) in &names {
            *file = file.replace(value, name);
        }
    }
    files.sort_unstable();
    assert_reviewed("blobs", &files.join("\n"));
    Ok(())
}

fn text(value: &Value) -> Result<String> {
    Ok(value.as_str().with_context(|| format!("expected a string, found {value}"))?.to_owned())
}

/// Placeholders for the hash of an upload's bytes and for the first two digits of it.
fn hash_names(task: &Value, name: &str) -> Result<[(String, String); 2]> {
    let sha256 = text(&task["image"]["sha256"])?;
    let digits = sha256.get(..2).context("a hash")?;
    Ok([
        (format!("/{digits}/"), format!("/<2 digits of {name}>/")),
        (sha256, format!("<sha256 of {name}>")),
    ])
}

/// The relative paths of all files below `folder`.
fn relative_paths(folder: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            let inner = relative_paths(&entry.path())?;
            files.extend(inner.into_iter().map(|file| format!("{name}/{file}")));
        } else {
            files.push(name);
        }
    }
    Ok(files)
}
