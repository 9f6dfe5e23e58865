//! The list of bytes that the images of a snapshot need: one line each, ordered by hash.
//!
//! ```text
//! <sha256> <bytes> <image> stored
//! <sha256> <bytes> <image> staged
//! <sha256> <bytes> <image> failed
//! ```

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use futures::TryStreamExt;
use safelight_blobs::{BlobError, Blobs};
use safelight_domain::ContentHash;
use safelight_store_sql::{BytesState, NeededBytes};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, Lines};
use tokio_util::io::StreamReader;

/// A list being written to a local file.
pub struct ContentsWriter(BufWriter<File>);

impl ContentsWriter {
    /// Starts the file.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self(BufWriter::new(File::create_new(path)?)))
    }

    /// Adds a line.
    pub fn add(&mut self, needed: &NeededBytes) -> io::Result<()> {
        let NeededBytes { sha256, bytes, image, state } = needed;
        let state = match state {
            BytesState::Stored => "stored",
            BytesState::Staged => "staged",
            BytesState::Failed => "failed",
        };
        writeln!(self.0, "{sha256} {bytes} {image} {state}")
    }

    /// Writes what is buffered.
    pub fn finish(mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A list being read from a backup.
pub struct Contents {
    path: String,
    lines: Lines<Box<dyn AsyncBufRead + Unpin + Send>>,
    next: Option<NeededBytes>,
}

impl Contents {
    /// Starts to read the list at `path`.
    pub async fn open(backup: &Blobs, path: &str) -> Result<Self, BlobError> {
        let (_, bytes) = backup.open_path(path).await?;
        let reader: Box<dyn AsyncBufRead + Unpin + Send> =
            Box::new(StreamReader::new(bytes.map_err(io::Error::other)));
        Ok(Self { path: path.to_owned(), lines: reader.lines(), next: None })
    }

    /// The next line; `None` at the end.
    pub async fn next(&mut self) -> io::Result<Option<NeededBytes>> {
        match self.next.take() {
            Some(peeked) => Ok(Some(peeked)),
            None => self.read().await,
        }
    }

    /// Whether a line has this hash. To be asked with ever larger hashes.
    pub async fn needs(&mut self, sha256: &ContentHash) -> io::Result<bool> {
        while let Some(needed) = self.next().await? {
            if needed.sha256 >= *sha256 {
                self.next = Some(needed);
                return Ok(needed.sha256 == *sha256);
            }
        }
        Ok(false)
    }

    async fn read(&mut self) -> io::Result<Option<NeededBytes>> {
        let Some(line) = self.lines.next_line().await? else { return Ok(None) };
        let needed = parse(&line).ok_or_else(|| {
            let text = format!("{} is damaged: {}", self.path, line.escape_debug());
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
        Ok(Some(needed))
    }
}

fn parse(line: &str) -> Option<NeededBytes> {
    let mut words = line.split(' ');
    let needed = NeededBytes {
        sha256: words.next()?.parse().ok()?,
        bytes: words.next()?.parse().ok()?,
        image: words.next()?.parse().ok()?,
        state: match words.next()? {
            "stored" => BytesState::Stored,
            "staged" => BytesState::Staged,
            "failed" => BytesState::Failed,
            _ => return None,
        },
    };
    words.next().is_none().then_some(needed)
}

#[cfg(test)]
mod tests {
    use safelight_blobs::BlobLocation;
    use safelight_domain::ImageId;

    use super::*;

    #[tokio::test]
    async fn list_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().expect("folder");
        let location = BlobLocation::Folder(folder.path().to_owned());
        let blobs = Blobs::open(&location, folder.path()).expect("opened");
        let states = [BytesState::Stored, BytesState::Staged, BytesState::Failed];
        let mut all: Vec<_> = [b"a", b"b", b"c"]
            .into_iter()
            .zip(states)
            .map(|(bytes, state)| NeededBytes {
                sha256: ContentHash::of(bytes),
                bytes: 1,
                image: ImageId::new(),
                state,
            })
            .collect();
        all.sort_by_key(|needed| needed.sha256);
        let mut writer = ContentsWriter::create(&folder.path().join("list")).expect("created");
        for needed in &all {
            writer.add(needed).expect("written");
        }
        writer.finish().expect("written");

        let mut contents = Contents::open(&blobs, "list").await.expect("opened");
        for needed in &all {
            assert_eq!(contents.next().await.expect("read"), Some(*needed));
        }
        assert_eq!(contents.next().await.expect("read"), None);

        let mut contents = Contents::open(&blobs, "list").await.expect("opened");
        assert!(contents.needs(&all[1].sha256).await.expect("read"));
        assert!(contents.needs(&all[1].sha256).await.expect("read"), "asked twice");
        assert!(!contents.needs(&ContentHash([0xFF; 32])).await.expect("read"));

        std::fs::write(folder.path().join("cut"), "0123").expect("written");
        let mut contents = Contents::open(&blobs, "cut").await.expect("opened");
        assert!(contents.next().await.is_err(), "a line without its end");
    }
}
