//! Where an import finds pictures. Each source has an order of its own, and its cursors say how far one
//! has come in it; a page costs no more memory than its entries, however many there are in all.

mod bucket;
mod file;
mod folder;
mod list;
mod reader;

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures::stream::BoxStream;
use nix::libc;
use safelight_blobs::BlobError;
use safelight_config::import_roots;
use safelight_domain::{BackfillSpec, ImageFormat, Labels};

pub(super) use self::reader::Reader;

use self::{bucket::S3Source, folder::Folder, list::List, reader::Progress};

/// The content of an entry.
pub(super) type ByteStream = BoxStream<'static, Result<Bytes, SourceError>>;

/// What cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// And never will be: for people.
    #[error("{0}")]
    Unusable(String),
    /// A pipe, a device or a folder where a plain file was expected.
    #[error("it is no plain file")]
    NotAFile,
    /// It may not be read.
    #[error("{0}")]
    Forbidden(String),
    /// Nothing came for so long.
    #[error("nothing came from the source for {} seconds", .0.as_secs())]
    Silent(Duration),
    /// A file system that failed, and may work again.
    #[error("cannot read the source: {0}")]
    Io(#[source] io::Error),
    /// An object store that failed, and may work again.
    #[error("cannot read the source: {0}")]
    Store(#[source] BlobError),
}

impl SourceError {
    /// An error of the file system at `path`. What is not known to pass stays.
    fn at(path: &Path, error: io::Error) -> Self {
        if may_pass(&error) {
            return Self::Io(error);
        }
        Self::Unusable(format!("{}: {error}", path.display()))
    }

    /// Whether the same will not work later either.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Io(_) | Self::Store(_) | Self::Silent(_))
    }
}

/// Whether a file system is away, or this process has too much open: not the fault of what was read.
fn may_pass(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    let is_known = matches!(
        error.kind(),
        Kind::Interrupted
            | Kind::WouldBlock
            | Kind::TimedOut
            | Kind::OutOfMemory
            | Kind::NotConnected
            | Kind::ConnectionAborted
            | Kind::ConnectionRefused
            | Kind::ConnectionReset
            | Kind::HostUnreachable
            | Kind::NetworkDown
            | Kind::NetworkUnreachable
    );
    is_known || matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
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
    /// Why it is no picture, if that is known without reading it.
    pub verdict: Option<Verdict>,
    /// What the source calls it.
    pub labels: Labels,
}

/// Why an entry is not even read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is a symbolic link, a pipe or a device; in a bucket the mark of a folder.
    NotAFile,
    /// A folder that cannot be read.
    Unreadable(String),
    /// A line of a list that names nothing.
    Invalid(String),
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
    fn at(cursor: String, name: &str, place: Place) -> Self {
        let mut labels = Labels::default();
        match &place {
            Place::File(path) => {
                if let Some(name) = path.file_name() {
                    labels.set_filename(&name.to_string_lossy());
                }
            }
            Place::Object { key, .. } => labels.set_filename(key),
        }
        // PostgreSQL has no text with a NUL in it.
        let name = name.replace('\0', "\u{fffd}");
        Self { cursor, name, place, verdict: None, labels }
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
pub(super) struct Source {
    place: Kind,
    reader: Reader,
    /// What a list may name; anything if empty.
    roots: Vec<String>,
}

enum Kind {
    /// Every file in a folder, however deep.
    Folder(Folder),
    /// What a file names, line by line.
    List(List),
    /// Every object of a bucket under a prefix.
    Bucket(S3Source),
}

impl Source {
    /// The source of an import.
    pub async fn of(spec: &BackfillSpec, reader: Reader) -> Result<Self, SourceError> {
        let Some(source) = &spec.source else {
            return Err(SourceError::Unusable("the import names no source".to_owned()));
        };
        let place = match source.strip_prefix("s3://") {
            Some(rest) => Kind::Bucket(S3Source::new(rest)),
            None => kind_of_path(&reader, source.into()).await?,
        };
        // Of a folder and a bucket it was checked when the import began.
        let roots = if matches!(place, Kind::List(_)) { spec.roots.clone() } else { Vec::new() };
        Ok(Self { place, reader, roots })
    }

    /// How many entries there are.
    pub async fn count(&self) -> Result<u64, SourceError> {
        match &self.place {
            Kind::Folder(folder) => folder.count(&self.reader).await,
            Kind::List(list) => list.count(&self.reader).await,
            Kind::Bucket(bucket) => bucket.count(&self.reader).await,
        }
    }

    /// The next `limit` entries after a cursor; fewer only at the end.
    pub async fn page(&self, after: Option<&str>, limit: u32) -> Result<Vec<Entry>, SourceError> {
        let limit = limit as usize;
        match &self.place {
            Kind::Folder(folder) => folder.page(&self.reader, after, limit).await,
            Kind::List(list) => list.page(&self.reader, after, limit).await,
            Kind::Bucket(bucket) => bucket.page(&self.reader, after, limit).await,
        }
    }

    /// An entry's bytes.
    pub async fn open(&self, entry: &Entry) -> Result<ByteStream, SourceError> {
        match &entry.place {
            Place::File(path) => {
                let (path, roots) = (path.clone(), self.roots.clone());
                let open = move |_: &Progress| {
                    check(&roots, &path.to_string_lossy())?;
                    file::open(&path)
                };
                Ok(file::stream(self.reader.clone(), self.reader.run(open).await?))
            }
            Place::Object { bucket, key } => {
                check(&self.roots, &format!("s3://{bucket}/{key}"))?;
                bucket::open(&self.reader, bucket, key).await
            }
        }
    }
}

/// Whether a list may name this.
fn check(roots: &[String], named: &str) -> Result<(), SourceError> {
    if roots.is_empty() || import_roots::contain(roots, named) {
        return Ok(());
    }
    Err(SourceError::Forbidden(format!("{named} is outside of `import_roots`")))
}

/// A folder, or a list. A picture is neither, and a likely mistake.
async fn kind_of_path(reader: &Reader, path: PathBuf) -> Result<Kind, SourceError> {
    let read = move |_: &Progress| {
        let at = |error| SourceError::at(&path, error);
        if std::fs::metadata(&path).map_err(at)?.is_dir() {
            return Ok(Kind::Folder(Folder::new(path)));
        }
        let file = file::open(&path).map_err(|error| match error {
            SourceError::NotAFile => {
                SourceError::Unusable(format!("{} is neither folder nor file", path.display()))
            }
            error => error,
        })?;
        let mut head = Vec::new();
        file.take(ImageFormat::SNIFF_BYTES as u64).read_to_end(&mut head).map_err(at)?;
        if ImageFormat::sniff(&head).is_some() {
            let why = "is a picture; name its folder, or a list of pictures";
            return Err(SourceError::Unusable(format!("{} {why}", path.display())));
        }
        Ok(Kind::List(List::new(path)))
    };
    reader.run(read).await
}
