//! Where an import finds pictures. Each source has its own order, and its cursors are positions in that
//! order; a page needs memory only for its own candidates.

mod bucket;
mod candidate;
mod error;
mod file;
mod folder;
mod list;
mod reader;
mod roots;

use std::{io::Read, path::PathBuf};

use safelight_domain::{BackfillSpec, ImageFormat};

pub(super) use self::{
    candidate::{ByteStream, Candidate, Verdict},
    error::SourceError,
    reader::Reader,
};

use self::{
    bucket::S3Source,
    candidate::Location,
    folder::Folder,
    list::List,
    reader::Progress,
    roots::{Place, Roots, open_file},
};

/// Where an import finds pictures.
pub(super) struct Source {
    kind: Kind,
    reader: Reader,
    roots: Roots,
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
        let roots = Roots::new(&spec.roots);
        let kind = match source.strip_prefix("s3://") {
            Some(rest) => Kind::Bucket(S3Source::new(rest)),
            None => kind_of_path(&reader, roots.clone(), source.into()).await?,
        };
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
                let path = path.clone();
                let file = match &self.kind {
                    Kind::Folder(folder) => {
                        let folder = folder.clone();
                        self.reader.run(move |_: &Progress| folder.open(&path)).await?
                    }
                    Kind::List(_) | Kind::Bucket(_) => {
                        let roots = self.roots.clone();
                        self.reader.run(move |_: &Progress| roots.open(&path)).await?
                    }
                };
                Ok(file::stream(self.reader.clone(), file))
            }
            Location::Object { bucket, key } => {
                self.roots.check_object(bucket, key)?;
                bucket::open(&self.reader, bucket, key).await
            }
        }
    }
}

/// A folder, or a list. A picture is neither: naming one is a likely mistake.
async fn kind_of_path(reader: &Reader, roots: Roots, path: PathBuf) -> Result<Kind, SourceError> {
    let read = move |_: &Progress| {
        let at = |error| SourceError::at(&path, error);
        let Place { root, beneath } = roots.find(&path)?;
        if root.kind(&beneath).map_err(at)? == safelight_rooted_files::Kind::Folder {
            let opened = root.folder(&beneath).map_err(at)?;
            return Ok(Kind::Folder(Folder::new(opened, path)));
        }
        let file = open_file(&root, &beneath, &path).map_err(|error| match error {
            SourceError::NotAFile => {
                SourceError::Unusable(format!("{} is neither folder nor file", path.display()))
            }
            error => error,
        })?;
        let mut head = Vec::new();
        (&file).take(ImageFormat::SNIFF_BYTES as u64).read_to_end(&mut head).map_err(at)?;
        if ImageFormat::sniff(&head).is_some() {
            let why = "is a picture; name its folder, or a list of pictures";
            return Err(SourceError::Unusable(format!("{} {why}", path.display())));
        }
        Ok(Kind::List(List::new(path, file)))
    };
    reader.run(read).await
}

#[cfg(test)]
mod tests;
