//! The database and the blob store name their installation, and neither works with another's.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use safelight_testing::{
    client::{Client, TestClient as _},
    pictures,
    server::Server,
    wait::LIMIT,
};
use tempfile::TempDir;

use super::{serve, startup};

/// The mark of a store in a folder.
fn mark(data: &Path) -> std::path::PathBuf {
    data.join("blobs/installation.json")
}

/// A server that has stored a picture and ended, and the path of the picture.
async fn used_server(data: &Path) -> Result<String> {
    let server = serve(data).await?;
    let client = Client::new(server.url())?;
    let task = client.finished(&client.upload(pictures::jpeg(64, 48, 1)?).await?).await?;
    end(server).await?;
    Ok(task["image"]["url"].as_str().context("a path")?.to_owned())
}

async fn end(mut server: Server) -> Result<()> {
    server.signal("TERM")?;
    let status = tokio::task::spawn_blocking(move || server.wait(LIMIT)).await??;
    ensure!(status.success(), "{status}");
    Ok(())
}

async fn assert_delivers(data: &Path, path: &str) -> Result<()> {
    let server = serve(data).await?;
    Client::new(server.url())?.bytes(path).await?;
    end(server).await
}

#[tokio::test]
async fn emptied_or_foreign_store_is_refused() -> Result<()> {
    let (data, other) = (TempDir::new()?, TempDir::new()?);
    let image = used_server(data.path()).await?;
    used_server(other.path()).await?;
    let refused = async |env: &[(&str, &str)], why: &str| {
        let ended = startup::run_to_exit(&["serve"], data.path(), env).await?;
        startup::assert_fails(&ended, startup::FAILED, why);
        anyhow::Ok(())
    };
    let foreign = format!("file://{}", other.path().join("blobs").display());
    refused(&[("SAFELIGHT_BLOB_URL", &foreign)], "another installation").await?;
    let empty = TempDir::new()?;
    let empty = format!("file://{}", empty.path().display());
    refused(&[("SAFELIGHT_BLOB_URL", &empty)], "installation's mark").await?;

    // A damaged mark is nobody's.
    let text = fs::read(mark(data.path()))?;
    fs::write(mark(data.path()), "{}")?;
    refused(&[], "mark of the blob store").await?;
    fs::write(mark(data.path()), text)?;
    assert_delivers(data.path(), &image).await
}

#[tokio::test]
async fn new_database_does_not_take_over_a_used_store() -> Result<()> {
    let data = TempDir::new()?;
    let image = used_server(data.path()).await?;
    let aside = TempDir::new()?;
    for file in ["safelight.db", "safelight.db-wal", "safelight.db-shm"] {
        let _ = fs::rename(data.path().join(file), aside.path().join(file));
    }
    let ended = startup::run_to_exit(&["serve"], data.path(), &[]).await?;
    startup::assert_fails(&ended, startup::FAILED, "another installation");
    fs::remove_file(mark(data.path()))?;
    let ended = startup::run_to_exit(&["serve"], data.path(), &[]).await?;
    startup::assert_fails(&ended, startup::FAILED, "the database knows none");
    for file in ["safelight.db", "safelight.db-wal", "safelight.db-shm"] {
        let _ = fs::remove_file(data.path().join(file));
        let _ = fs::rename(aside.path().join(file), data.path().join(file));
    }
    // The mark of a used store does not come back by itself.
    let ended = startup::run_to_exit(&["serve"], data.path(), &[]).await?;
    startup::assert_fails(&ended, startup::FAILED, "installation's mark");
    let adopted = startup::run_to_exit(&["adopt-store"], data.path(), &[]).await?;
    assert_eq!(adopted.code, Some(0), "{adopted:#?}");
    assert_delivers(data.path(), &image).await
}

#[tokio::test]
async fn store_changes_its_installation_only_by_force() -> Result<()> {
    let (data, other) = (TempDir::new()?, TempDir::new()?);
    used_server(data.path()).await?;
    let theirs = used_server(other.path()).await?;
    let foreign = format!("file://{}", other.path().join("blobs").display());
    let env = [("SAFELIGHT_BLOB_URL", foreign.as_str())];
    let ended = startup::run_to_exit(&["adopt-store"], data.path(), &env).await?;
    startup::assert_fails(&ended, startup::FAILED, "another installation");
    assert_delivers(other.path(), &theirs).await?;
    let ended = startup::run_to_exit(&["adopt-store", "--force"], data.path(), &env).await?;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let ended = startup::run_to_exit(&["serve"], other.path(), &[]).await?;
    startup::assert_fails(&ended, startup::FAILED, "another installation");
    Ok(())
}

/// The release before wrote no marks.
#[tokio::test]
async fn store_of_the_release_before_is_marked_if_it_has_our_pictures() -> Result<()> {
    let data = TempDir::new()?;
    let image = used_server(data.path()).await?;
    let forget = async || {
        fs::remove_file(mark(data.path())).ok();
        let options =
            sqlx::sqlite::SqliteConnectOptions::new().filename(data.path().join("safelight.db"));
        let mut conn = sqlx::ConnectOptions::connect(&options).await?;
        sqlx::query("update installation set marked_at = null").execute(&mut conn).await?;
        sqlx::Connection::close(conn).await?;
        anyhow::Ok(())
    };
    forget().await?;
    let empty = TempDir::new()?;
    let empty = format!("file://{}", empty.path().display());
    let env = [("SAFELIGHT_BLOB_URL", empty.as_str())];
    let ended = startup::run_to_exit(&["serve"], data.path(), &env).await?;
    startup::assert_fails(&ended, startup::FAILED, "none of the pictures");
    assert_delivers(data.path(), &image).await?;
    assert!(mark(data.path()).exists());
    Ok(())
}
