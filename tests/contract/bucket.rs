//! Buckets that other programs fill: every key can be listed and read, also keys with unusual characters.

use std::collections::HashMap;

use anyhow::{Context, Result};
use futures::TryStreamExt;
use safelight_blobs::{Bucket, Listed};
use safelight_testing::s3::S3;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Names that `object_store` or a URL has to escape.
const NAMES: [&str; 10] = [
    "100%.jpg",
    "a#b.jpg",
    "c+d e.jpg",
    "ding[1].jpg",
    "e&f=g?.jpg",
    "h%23i.jpg",
    "j~k^l.jpg",
    "m{n}|o.jpg",
    "p*q<r>\".jpg",
    "ü\u{1f304}.jpg",
];

async fn read(bucket: &Bucket, key: &str) -> Result<Vec<u8>> {
    let chunks: Vec<_> = bucket.read(key).await?.try_collect().await?;
    Ok(chunks.concat())
}

/// All keys under a prefix, in pages of `limit`.
async fn keys(bucket: &Bucket, prefix: &str, limit: usize) -> Result<Vec<Listed>> {
    let mut found = Vec::<Listed>::new();
    loop {
        let after = found.last().map(|last| last.key.clone());
        let page = bucket.list(prefix, after.as_deref(), limit).await?;
        let is_last = page.len() < limit;
        found.extend(page);
        if is_last {
            return Ok(found);
        }
        assert!(found.len() <= 100, "pages repeat");
    }
}

#[tokio::test]
async fn keys_with_any_characters_are_listed_and_read() -> Result<()> {
    let s3 = S3::start("photos")?;
    let folder = s3.bucket_folder().join("50% off [new]");
    std::fs::create_dir(&folder)?;
    for name in NAMES {
        std::fs::write(folder.join(name), name)?;
    }
    let bucket = Bucket::open_from("photos", s3.env()).await?;
    for limit in [1, 3, 100] {
        let listed = keys(&bucket, "50% off [new]/", limit).await?;
        let names: Vec<_> =
            listed.iter().map(|l| l.key.trim_start_matches("50% off [new]/")).collect();
        assert_eq!(names, NAMES, "pages of {limit}");
    }
    for listed in keys(&bucket, "", 4).await? {
        assert!(listed.key.ends_with(&String::from_utf8(read(&bucket, &listed.key).await?)?));
        assert_eq!(listed.bytes, listed.key.len() as u64 - "50% off [new]/".len() as u64);
    }
    assert!(bucket.read("nothing").await.is_err_and(|error| error.is_refusal()));
    let missing = Bucket::open_from("no-such-bucket", s3.env()).await?;
    assert!(missing.list("", None, 9).await.is_err_and(|error| error.is_refusal()));
    Ok(())
}

/// Such keys cannot exist in a folder, so this S3 server gives fixed answers.
#[tokio::test]
async fn keys_that_are_not_paths_are_listed_and_read() -> Result<()> {
    // XML cannot contain this character. The client must ask for URL encoding.
    let plain = "<ListBucketResult><IsTruncated>false</IsTruncated>\
        <Contents><Key>nul&#0;</Key><Size>3</Size></Contents></ListBucketResult>";
    let listed = "<?xml version=\"1.0\"?><ListBucketResult><Name>b</Name>\
        <EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>\
        <Contents><Key>a%2F%2Fb+c.jpg</Key><Size>3</Size></Contents>\
        <Contents><Key>folder%2F</Key><Size>0</Size></Contents>\
        <Contents><Key>new%0Aline</Key><Size>3</Size></Contents></ListBucketResult>";
    let answers = HashMap::from([
        ("/b?list-type=2&max-keys=9&prefix=a%26%2F".to_owned(), plain),
        ("/b?list-type=2&max-keys=9&prefix=a%26%2F&encoding-type=url".to_owned(), listed),
        ("/b/a//b%20c.jpg".to_owned(), "abc"),
        ("/b/new%0Aline".to_owned(), "new"),
    ]);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            answer(socket, &answers).await.ok();
        }
    });
    let env = [
        ("AWS_ENDPOINT", endpoint.as_str()),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    let env = env.map(|(key, value)| (key.to_owned(), value.to_owned()));
    safelight_client::install_crypto_provider();
    let bucket = Bucket::open_from("b", env).await?;
    let found = bucket.list("a&/", None, 9).await?;
    let found: Vec<_> = found.iter().map(|l| (l.key.as_str(), l.is_folder())).collect();
    assert_eq!(found, [("a//b c.jpg", false), ("folder/", true), ("new\nline", false)]);
    assert_eq!(read(&bucket, "a//b c.jpg").await?, b"abc");
    assert_eq!(read(&bucket, "new\nline").await?, b"new");
    // HTTP clients normalize this path to `c`.
    assert!(bucket.read("a/../c").await.is_err_and(|error| error.is_refusal()));
    Ok(())
}

/// Answers one request. Unsigned and unknown requests get 404.
async fn answer(mut socket: TcpStream, answers: &HashMap<String, &str>) -> Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(socket.read_u8().await?);
    }
    let request = String::from_utf8(request)?;
    let path = request.split(' ').nth(1).context("a path")?;
    let signed = request.to_lowercase().contains("authorization: aws4-hmac-sha256");
    let (status, body) = match answers.get(path) {
        Some(body) if signed => ("200 OK", *body),
        _ => ("404 Not Found", path),
    };
    let head =
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    socket.write_all(head.as_bytes()).await?;
    socket.write_all(body.as_bytes()).await?;
    Ok(socket.shutdown().await?)
}
