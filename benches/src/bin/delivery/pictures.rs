//! Uploads through the API, and the URLs of the results.

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use safelight_testing::{
    client::{Client, TestClient as _},
    pictures,
};
use serde_json::Value;

/// The preset whose renditions are measured. A picture from [`photo`] becomes about 11 KB.
pub const PRESETS: &str = "{ card = { size = 480, quality = 80 } }";

/// Concurrent uploads.
const CONCURRENT_UPLOADS: usize = 16;

/// The allowed size of the measured renditions.
const RENDITION_BYTES: std::ops::RangeInclusive<u64> = 10_000..=12_500;

/// A picture for [`PRESETS`].
pub fn photo(number: usize) -> Result<Vec<u8>> {
    pictures::jpeg(640, 480, u64::try_from(number)? + 1)
}

/// A small picture padded with comments to about `bytes` bytes: large to store, cheap to render, and
/// different for each `number`.
pub fn padded(number: usize, bytes: usize) -> Result<Vec<u8>> {
    const COMMENT: usize = 60_000;
    let mut picture = pictures::jpeg(64, 48, 1)?;
    let head = picture.drain(..2).collect::<Vec<_>>();
    let comment = format!("{number:<COMMENT$}");
    let mut padded = head.clone();
    while padded.len() + COMMENT < bytes {
        let segment = pictures::with_comment(&head, &comment);
        padded.extend_from_slice(&segment[2..]);
    }
    padded.extend(picture);
    Ok(padded)
}

/// Uploads `count` pictures, and waits until all renditions are made; returns the images.
pub async fn upload(
    client: &Client,
    count: usize,
    make: impl Fn(usize) -> Result<Vec<u8>>,
) -> Result<Vec<Value>> {
    stream::iter((0..count).map(|number| {
        let body = make(number);
        async move {
            let task = client.finished(&client.upload(body?).await?).await?;
            ensure!(task["status"] == "succeeded", "{task:#}");
            Ok(task["image"].clone())
        }
    }))
    .buffered(CONCURRENT_UPLOADS)
    .try_collect()
    .await
}

/// The paths of the renditions. Fails if the size of one is not in [`RENDITION_BYTES`].
pub fn renditions(images: &[Value]) -> Result<Vec<String>> {
    let path = |image: &Value| {
        let rendition = &image["renditions"]["card"];
        let bytes = rendition["bytes"].as_u64().context("a rendition")?;
        ensure!(RENDITION_BYTES.contains(&bytes), "a rendition has {bytes} bytes");
        Ok(rendition["url"].as_str().context("a rendition's address")?.to_owned())
    };
    images.iter().map(path).collect()
}

/// The paths of the originals.
pub fn originals(images: &[Value]) -> Result<Vec<String>> {
    images.iter().map(|image| Ok(image["url"].as_str().context("an address")?.to_owned())).collect()
}
