//! Renditions are not synced: after a power loss their files may be anything. Every first read is right all the same.
//! One that is made again alone may have other bytes than one that was made with others.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use reqwest::{
    Method, StatusCode,
    header::{CONTENT_RANGE, ETAG, IF_NONE_MATCH, RANGE},
};
use safelight_domain::ContentHash;
use safelight_testing::{
    audit::Ledger,
    client::{Client, TestClient as _},
    pictures,
    test_server::TestServer,
};

use super::binary;

/// Small enough that no two presets of a picture make the same bytes, which are one object in the caches.
const PRESETS: (&str, &str) =
    ("SAFELIGHT_PRESETS", "{ a = { size = 40 }, b = { size = 60 }, c = { size = 80 } }");

/// What a power loss leaves of a file.
#[derive(Debug, Clone, Copy)]
enum Left {
    Whole,
    Nothing,
    Empty,
    Cut,
    Zeros,
    WrongByte,
    AnotherRendition,
}

const ALL: [Left; 7] = [
    Left::Whole,
    Left::Nothing,
    Left::Empty,
    Left::Cut,
    Left::Zeros,
    Left::WrongByte,
    Left::AnotherRendition,
];

/// A rendition, as it was before the loss.
struct Made {
    url: String,
    file: PathBuf,
    content: Bytes,
}

/// A response to the first read after the loss.
struct First {
    etag: String,
    /// The part of the rendition that was asked for, of so many bytes.
    part: (Range<usize>, usize),
    body: Bytes,
}

/// An image with its original and its renditions.
struct Stored {
    url: String,
    original: Vec<u8>,
    renditions: Vec<Made>,
}

/// Uploads a picture, and reads all of its renditions.
async fn store(client: &Client, blobs: &Path, ledger: &Ledger, seed: usize) -> Result<Stored> {
    let original = pictures::jpeg(160, 120, u64::try_from(seed)?)?;
    let accepted = client.upload(original.clone()).await?;
    ledger.record(&accepted, &original)?;
    let ended = client.finished(&accepted).await?;
    let image = &ended["image"];
    let sha256 = image["sha256"].as_str().context("a hash")?;
    let folder = blobs.join("renditions").join(&sha256[..2]).join(sha256);
    let mut renditions = Vec::new();
    for (preset, made) in image["renditions"].as_object().context("renditions")? {
        let url = made["url"].as_str().context("a URL")?.to_owned();
        let content = client.bytes(&url).await?;
        let is_its = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(preset))
        };
        let mut files = fs::read_dir(&folder)?.filter_map(|entry| Some(entry.ok()?.path()));
        let file = files.find(is_its).context("a file")?;
        ensure!(fs::read(&file)? == content, "{} has other bytes", file.display());
        renditions.push(Made { url, file, content });
    }
    let url = image["url"].as_str().context("a URL")?.to_owned();
    Ok(Stored { url, original, renditions })
}

impl Made {
    fn damage(&self, left: Left, another: &Self) -> Result<()> {
        let mut content = self.content.to_vec();
        let middle = content.len() / 2;
        match left {
            Left::Whole => {}
            Left::Nothing => return Ok(fs::remove_file(&self.file)?),
            Left::Empty => content.clear(),
            Left::Cut => content.truncate(middle),
            Left::Zeros => content.fill(0),
            Left::WrongByte => content[middle] ^= 1,
            Left::AnotherRendition => content = another.content.to_vec(),
        }
        Ok(fs::write(&self.file, content)?)
    }

    /// Reads it in one of several ways, for the first time after the loss.
    async fn read_first(&self, client: &Client, way: usize) -> Result<First> {
        let (header, expected) = match way % 4 {
            0 => (None, StatusCode::OK),
            1 => (Some((IF_NONE_MATCH, "\"another\"")), StatusCode::OK),
            2 => (Some((RANGE, "bytes=10-99")), StatusCode::PARTIAL_CONTENT),
            _ => (Some((RANGE, "bytes=-1")), StatusCode::PARTIAL_CONTENT),
        };
        let request = client.request(Method::GET, &self.url);
        let request =
            header.iter().fold(request, |request, (name, value)| request.header(name, *value));
        let answer = request.send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.bytes().await?;
        ensure!(status == expected, "{}: {status} {}", self.url, String::from_utf8_lossy(&body));
        let etag = headers.get(ETAG).context("a tag")?.to_str()?.to_owned();
        let part = match headers.get(CONTENT_RANGE) {
            None => (0..body.len(), body.len()),
            Some(range) => {
                let (_, bytes) = range.to_str()?.split_once('/').context("a size")?;
                let bytes = bytes.parse()?;
                (if way % 4 == 2 { 10..100 } else { bytes - 1..bytes }, bytes)
            }
        };
        Ok(First { etag, part, body })
    }

    /// Compares the first response with all of the rendition, and reads it in the ways that need no bytes.
    async fn read_again(&self, client: &Client, first: &First) -> Result<()> {
        let answer = client.get(&self.url).await?;
        let etag = answer.headers().get(ETAG).context("a tag")?.to_str()?.to_owned();
        let content = answer.bytes().await?;
        ensure!(etag == tag(&content), "{} has other bytes than its tag says", self.url);
        let First { etag: before, part: (range, bytes), body } = first;
        if range.len() == *bytes {
            ensure!(*before == tag(body), "{} had other bytes", self.url);
        } else if etag == *before {
            ensure!(content.len() == *bytes, "{} has another size", self.url);
            ensure!(content[range.clone()] == *body, "{} had another part", self.url);
        }
        let head = client.request(Method::HEAD, &self.url).send().await?;
        ensure!(head.status() == StatusCode::OK, "{}: HEAD is {}", self.url, head.status());
        let unchanged = client.request(Method::GET, &self.url).header(IF_NONE_MATCH, &etag);
        let status = unchanged.send().await?.status();
        ensure!(status == StatusCode::NOT_MODIFIED, "{}: {status}", self.url);
        ensure!(fs::read(&self.file)? == content, "{} is not repaired", self.file.display());
        Ok(())
    }
}

/// The tag of these bytes.
fn tag(bytes: &[u8]) -> String {
    format!("\"{}\"", ContentHash::of(bytes))
}

#[tokio::test(flavor = "multi_thread")]
async fn renditions_lost_with_the_power_come_with_their_first_read() -> Result<()> {
    let wait = ("SAFELIGHT_DELIVERY_WAIT_MS", "60000");
    let setup = TestServer::new(binary(), &[wait, PRESETS])?;
    let (mut server, client) = setup.start(&[])?;
    let blobs = setup.data().join("blobs");
    let count = ALL.len() * ALL.len();
    let ledger = Ledger::default();
    let uploads = (0..count).map(|seed| store(&client, &blobs, &ledger, seed));
    let images = try_join_all(uploads).await?;
    server.kill()?;
    for (number, image) in images.iter().enumerate() {
        // Every pair for the first two, and another one for the third.
        let (one, other) = (number / ALL.len(), number % ALL.len());
        let [first, second, third] = &*image.renditions else { anyhow::bail!("three presets") };
        first.damage(ALL[one], second)?;
        second.damage(ALL[other], third)?;
        third.damage(ALL[(one + other) % ALL.len()], first)?;
        if one == 1 && other == 1 {
            // A name of which nothing has reached the disk, not even its folder.
            fs::remove_dir_all(first.file.parent().context("a folder")?)?;
        }
    }
    let (_server, client) = setup.start(&[])?;
    let renditions = || images.iter().flat_map(|image| &image.renditions);
    let reads = renditions().enumerate().map(|(way, made)| made.read_first(&client, way));
    let firsts = try_join_all(reads).await?;
    for (made, first) in renditions().zip(&firsts) {
        made.read_again(&client, first).await?;
    }
    for image in &images {
        ensure!(client.bytes(&image.url).await? == image.original, "{} has other bytes", image.url);
    }
    // Also looks at what the files show.
    let report = setup.audit().run(&ledger).await?;
    ensure!(report.is_clean(), "{report:?}");
    Ok(())
}
