//! Where an import finds pictures. Each source has its own order, and its cursors are positions in that
//! order; a page needs memory only for its own candidates.

mod bucket;
mod candidate;
mod error;
mod file;
mod folder;
mod list;
mod reader;

use std::{io::Read, path::PathBuf};

use safelight_config::import_roots;
use safelight_domain::{BackfillSpec, ImageFormat};

pub(super) use self::{
    candidate::{ByteStream, Candidate, Verdict},
    error::SourceError,
    reader::Reader,
};

use self::{bucket::S3Source, candidate::Location, folder::Folder, list::List, reader::Progress};

/// Where an import finds pictures.
pub(super) struct Source {
    kind: Kind,
    reader: Reader,
    /// The locations that a list may name; any location if empty.
    roots: Vec<String>,
}

enum Kind {
    /// Every file in a folder and its subfolders.
    Folder(Folder),
    /// The pictures that a file lists, one per line.
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
        let kind = match source.strip_prefix("s3://") {
            Some(rest) => Kind::Bucket(S3Source::new(rest)),
            None => kind_of_path(&reader, source.into()).await?,
        };
        // A folder or a bucket was checked when the import was requested.
        let roots = if matches!(kind, Kind::List(_)) { spec.roots.clone() } else { Vec::new() };
        Ok(Self { kind, reader, roots })
    }

    /// How many candidates there are.
    pub async fn count(&self) -> Result<u64, SourceError> {
        match &self.kind {
            Kind::Folder(folder) => folder.count(&self.reader).await,
            Kind::List(list) => list.count(&self.reader).await,
            Kind::Bucket(bucket) => bucket.count(&self.reader).await,
        }
    }

    /// The next `limit` candidates after a cursor; fewer only at the end.
    pub async fn page(
        &self,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Candidate>, SourceError> {
        let limit = limit as usize;
        match &self.kind {
            Kind::Folder(folder) => folder.page(&self.reader, after, limit).await,
            Kind::List(list) => list.page(&self.reader, after, limit).await,
            Kind::Bucket(bucket) => bucket.page(&self.reader, after, limit).await,
        }
    }

    /// A candidate's bytes.
    pub async fn open(&self, candidate: &Candidate) -> Result<ByteStream, SourceError> {
        match &candidate.location {
            Location::File(path) => {
                let (path, roots) = (path.clone(), self.roots.clone());
                let open = move |_: &Progress| {
                    check(&roots, &path.to_string_lossy())?;
                    file::open(&path)
                };
                Ok(file::stream(self.reader.clone(), self.reader.run(open).await?))
            }
            Location::Object { bucket, key } => {
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

/// A folder, or a list. A picture is neither: naming one is a likely mistake.
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

#[cfg(test)]
mod tests {
    use safelight_domain::BackfillKind;

    use super::*;

    #[tokio::test]
    async fn list_cannot_open_files_outside_import_roots() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("list.ndjson");
        std::fs::write(folder.path().join("in.jpg"), b"x").expect("file");
        std::fs::write(
            &path,
            "\"in.jpg\"\n\"/etc/passwd\"\n\"../../etc/passwd\"\n\"s3://other/a\"",
        )
        .expect("list");
        let mut spec = BackfillSpec::new(BackfillKind::Import);
        spec.source = Some(path.to_string_lossy().into_owned());
        spec.roots = vec![folder.path().to_string_lossy().into_owned()];
        let source = Source::of(&spec, Reader::default()).await.expect("a list");
        let mut opened = Vec::new();
        for candidate in source.page(None, 9).await.expect("page") {
            opened.push(match source.open(&candidate).await {
                Ok(_) => "read",
                Err(SourceError::Forbidden(_)) => "forbidden",
                Err(_) => "unreadable",
            });
        }
        assert_eq!(opened, ["read", "forbidden", "forbidden", "forbidden"]);
    }
}
