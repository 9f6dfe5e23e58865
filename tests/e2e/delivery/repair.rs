//! Stored bytes that are missing or damaged: renditions are made again when they are read, and no wrong bytes are
//! delivered, neither of a directory nor of an object store.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use reqwest::{StatusCode, header::RANGE};
use safelight_testing::{
    chaos::Link,
    client::{Client, TestClient as _},
    concurrent_requests, pictures,
    test_server::TestServer,
};

use super::{
    DeliverySetup, NO_DISK, NO_MEMORY, blob_reads, eventually, folder, same, text,
    tiers::files_with,
};
use crate::e2e::binary;

/// Concurrent readers of a damaged rendition.
const READERS: usize = 50;

/// What happens to a file.
const DAMAGES: [fn(&Path) -> Result<()>; 4] = [
    |file| Ok(fs::remove_file(file)?),
    |file| Ok(fs::write(file, &fs::read(file)?[..100])?),
    |file| Ok(fs::write(file, vec![0; fs::read(file)?.len()])?),
    |file| Ok(fs::write(file, pictures::jpeg(64, 64, 99)?)?),
];

/// Uploads a picture; returns the path and the bytes of one rendition.
async fn upload(client: &Client, seed: u64) -> Result<(String, Bytes)> {
    let task = client.upload(pictures::jpeg(320, 240, seed)?).await?;
    let image = client.finished(&task).await?["image"].clone();
    let path = text(&image["renditions"]["small"]["url"])?.to_owned();
    let content = client.bytes(&path).await?;
    Ok((path, content))
}

/// The file of a rendition `small` with this content.
fn file_of(folder: &Path, content: &[u8]) -> Result<PathBuf> {
    let is_small = |file: &PathBuf| {
        file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("small-"))
    };
    files_with(folder, content)?.into_iter().find(is_small).context("no file of the rendition")
}

/// How many jobs were queued by requests for renditions.
async fn requests(client: &Client) -> Result<usize> {
    Ok(client.list_tasks(&[("kind", "rendition".to_owned())]).await?.tasks.len())
}

/// Damages renditions in every way, and reads each by many clients of `server` at the same time.
async fn damaged_renditions_heal(client: &Client, server: &str, store: &Path) -> Result<()> {
    for (number, damage) in (1..).zip(DAMAGES) {
        let (path, content) = upload(client, u64::try_from(number)?).await?;
        let file = file_of(store, &content)?;
        damage(&file)?;
        for answer in concurrent_requests::get(&[server; READERS], &path).await? {
            ensure!(answer.status == 200, "{}", answer.head);
            ensure!(answer.body == content, "{path} has other bytes");
        }
        ensure!(fs::read(&file)? == content, "the file is not repaired");
        let queued = requests(client).await?;
        ensure!(queued == number, "{queued} jobs for {number} renditions");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_rendition_in_directory_is_made_again() -> Result<()> {
    let server = TestServer::new(binary(), &[NO_MEMORY, ("SAFELIGHT_DELIVERY_WAIT_MS", "30000")])?;
    let (process, client) = server.start(&[])?;
    damaged_renditions_heal(&client, process.url(), &server.data().join("blobs")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_rendition_in_bucket_is_made_again() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let data = folder()?;
    let wait = ("SAFELIGHT_DELIVERY_WAIT_MS", "30000");
    let node = setup.node(data.path(), &[NO_MEMORY, NO_DISK, wait])?;
    let bucket = setup.fleet.s3.bucket_folder();
    damaged_renditions_heal(&setup.client()?, node.url(), &bucket).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_damaged_on_the_way_are_read_again() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let client = setup.client()?;
    let (path, content) = upload(&client, 1).await?;
    let (chaos, endpoint) = setup.link(Link::Up)?;
    let data = folder()?;
    let env = [("AWS_ENDPOINT", &*endpoint), NO_MEMORY, NO_DISK];
    let node = setup.node(data.path(), &env)?;
    chaos.damage_next(1);
    ensure!(Client::new(node.url())?.bytes(&path).await? == content, "{path} has other bytes");
    let reads = blob_reads(&[&node]).await?;
    assert!(same(reads, 2.0), "{reads} reads of the store");
    assert_eq!(requests(&client).await?, 0, "nothing is made again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_large_original_in_bucket_is_never_complete() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let client = setup.client()?;
    let picture = pictures::jpeg(1600, 1200, 7)?;
    ensure!(picture.len() > 100_000, "memory takes it");
    let task = client.upload(picture.clone()).await?;
    let image = client.finished(&task).await?["image"].clone();
    let path = text(&image["url"])?.to_owned();
    let file = files_with(&setup.fleet.s3.bucket_folder(), &picture)?.pop().context("no file")?;
    let folders = [folder()?, folder()?];
    // With a local file, and without one.
    let nodes = [
        setup.node(folders[0].path(), &[NO_MEMORY])?,
        setup.node(folders[1].path(), &[NO_MEMORY, NO_DISK])?,
    ];
    for at in [picture.len() / 2, picture.len() - 1] {
        let mut damaged = picture.clone();
        damaged[at] ^= 1;
        fs::write(&file, &damaged)?;
        for node in &nodes {
            let reader = Client::new(node.url())?;
            for range in [None, Some("bytes=10-19"), Some("bytes=-1"), None] {
                let mut request = reader.request(reqwest::Method::GET, &path);
                if let Some(range) = range {
                    request = request.header(RANGE, range);
                }
                let answer = request.send().await?;
                if answer.status() == StatusCode::INTERNAL_SERVER_ERROR {
                    continue;
                }
                let body = answer.bytes().await;
                ensure!(body.is_err(), "wrong bytes are delivered: {at}, {range:?}");
            }
        }
    }
    // The same picture is uploaded again.
    client.finished(&client.upload(picture.clone()).await?).await?;
    for node in &nodes {
        let reader = Client::new(node.url())?;
        eventually("the restored original is delivered", async || {
            Ok(reader.bytes(&path).await.is_ok_and(|bytes| *bytes == picture))
        })
        .await?;
        let part = reader.request(reqwest::Method::GET, &path).header(RANGE, "bytes=10-19");
        assert_eq!(part.send().await?.bytes().await?, picture[10..20]);
    }
    Ok(())
}
