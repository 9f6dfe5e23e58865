//! Where an import finds pictures. Each source has an order of its own, and its cursors say how far one
//! has come in it; a page costs no more memory than its entries, however many there are in all.

mod bucket;
mod folder;
mod list;

use std::{
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use safelight_common::{blobs::BlobError, domain::BackfillSpec};
use tokio_util::io::ReaderStream;

use self::{bucket::S3Source, folder::Folder, list::List};

/// Bytes read from a file at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// The content of an entry.
pub(super) type ByteStream = BoxStream<'static, Result<Bytes, SourceError>>;

/// A source that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// And never will be: for people.
    #[error("{0}")]
    Unusable(String),
    /// A file system that failed.
    #[error("cannot read the source: {0}")]
    Io(#[source] io::Error),
    /// An object store that failed.
    #[error("cannot read the source: {0}")]
    Store(#[source] BlobError),
}

impl SourceError {
    /// An error of the file system at `path`.
    fn at(path: &Path, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::NotADirectory => {
                Self::Unusable(format!("{}: {error}", path.display()))
            }
            _ => Self::Io(error),
        }
    }
}

/// Runs `work`, which waits for a disk, on a thread that nobody else waits for.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(SourceError::Io(io::Error::other(panic))))
}

/// Something that may be a picture.
#[derive(Debug)]
pub(super) struct Entry {
    /// The walk's cursor once this is done.
    pub cursor: String,
    /// How it is called in a report.
    pub name: String,
    /// Where its bytes are.
    pub place: Place,
    /// Whether it is a plain file, and no symbolic link, pipe or device.
    pub is_file: bool,
    /// Why it is none, of a line in a list.
    pub invalid: Option<String>,
    /// Title, if the source has one.
    pub title: Option<String>,
    /// Tags, if the source has any.
    pub tags: Vec<String>,
    /// The name of the file.
    pub filename: Option<String>,
}

/// Where bytes are.
#[derive(Debug)]
pub(super) enum Place {
    /// In a file.
    File(PathBuf),
    /// In a bucket, under a key.
    Object { bucket: String, key: String },
}

impl Entry {
    /// An entry of which nothing is known but where it is.
    fn at(cursor: String, name: String, place: Place) -> Self {
        let filename = match &place {
            Place::File(path) => path.file_name().map(|name| name.to_string_lossy().into_owned()),
            Place::Object { key, .. } => key.rsplit('/').next().map(str::to_owned),
        };
        let filename = filename.filter(|name| !name.is_empty());
        let (title, tags) = (None, Vec::new());
        Self { cursor, name, place, is_file: true, invalid: None, title, tags, filename }
    }

    /// Whether its name says that it is a picture.
    pub fn is_named_like_a_picture(&self) -> bool {
        const EXTENSIONS: [&str; 12] = [
            "jpg", "jpeg", "jpe", "png", "gif", "webp", "avif", "tif", "tiff", "bmp", "heic",
            "heif",
        ];
        let extension = Path::new(&self.name).extension().and_then(|e| e.to_str());
        extension.is_some_and(|e| EXTENSIONS.iter().any(|known| e.eq_ignore_ascii_case(known)))
    }
}

/// Where an import finds pictures.
pub(super) enum Source {
    /// Every file in a folder, however deep.
    Folder(Folder),
    /// What a file names, line by line.
    List(List),
    /// Every object of a bucket under a prefix.
    Bucket(S3Source),
}

impl Source {
    /// The source of an import.
    pub fn of(spec: &BackfillSpec) -> Result<Self, SourceError> {
        let Some(source) = &spec.source else {
            return Err(SourceError::Unusable("the import names no source".to_owned()));
        };
        if let Some(rest) = source.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            return Ok(Self::Bucket(S3Source::new(bucket, prefix)));
        }
        let path = PathBuf::from(source);
        let about = std::fs::metadata(&path).map_err(|error| SourceError::at(&path, error))?;
        if about.is_dir() {
            return Ok(Self::Folder(Folder::new(path)));
        }
        Ok(Self::List(List::new(path, spec.roots.clone())))
    }

    /// How many entries there are.
    pub async fn count(&self) -> Result<u64, SourceError> {
        match self {
            Self::Folder(folder) => folder.count().await,
            Self::List(list) => list.count().await,
            Self::Bucket(bucket) => bucket.count().await,
        }
    }

    /// The next `limit` entries after a cursor; fewer only at the end.
    pub async fn page(&self, after: Option<&str>, limit: u32) -> Result<Vec<Entry>, SourceError> {
        let limit = limit as usize;
        match self {
            Self::Folder(folder) => folder.page(after, limit).await,
            Self::List(list) => list.page(after, limit).await,
            Self::Bucket(bucket) => bucket.page(after, limit).await,
        }
    }

    /// An entry's bytes.
    pub async fn open(&self, entry: &Entry) -> Result<ByteStream, SourceError> {
        match &entry.place {
            Place::File(path) => {
                let file = tokio::fs::File::open(path).await;
                let file = file.map_err(|error| SourceError::at(path, error))?;
                Ok(ReaderStream::with_capacity(file, CHUNK_BYTES)
                    .map(|chunk| chunk.map_err(SourceError::Io))
                    .boxed())
            }
            Place::Object { bucket, key } => bucket::open(bucket, key).await,
        }
    }
}
