//! Every object of a bucket under a prefix, in the order of keys.

use futures::{StreamExt, TryStreamExt, stream};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use safelight_blobs::{BlobError, Bucket, Listed};

use super::{
    candidate::{ByteStream, Candidate, Location, Verdict},
    error::SourceError,
    reader::Reader,
};

/// Keys listed in one request, for counting.
const PAGE: usize = 1000;

/// Characters that a cursor escapes: a key is any text, and PostgreSQL cannot store text with a NUL.
const IN_CURSOR: &AsciiSet = &CONTROLS.add(b'%');

pub(super) struct S3Source {
    bucket: String,
    /// Empty, or a folder with its `/`.
    prefix: String,
}

impl S3Source {
    /// `BUCKET` or `BUCKET/PREFIX`; a prefix is a folder, also without a `/` at its end.
    pub fn new(place: &str) -> Self {
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let mut prefix = prefix.to_owned();
        if !prefix.is_empty() && !prefix.ends_with('/') {
            prefix.push('/');
        }
        Self { bucket: bucket.to_owned(), prefix }
    }

    pub async fn count(&self, reader: &Reader) -> Result<u64, SourceError> {
        let (mut count, mut last) = (0, None::<String>);
        loop {
            let page = self.list(reader, last.as_deref(), PAGE).await?;
            count += page.len() as u64;
            if page.len() < PAGE {
                return Ok(count);
            }
            last = page.into_iter().next_back().map(|object| object.key);
        }
    }

    pub async fn page(
        &self,
        reader: &Reader,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Candidate>, SourceError> {
        let after = after.map(|cursor| percent_decode_str(cursor).decode_utf8_lossy());
        let page = self.list(reader, after.as_deref(), limit).await?;
        Ok(page.into_iter().map(|object| self.candidate(object)).collect())
    }

    async fn list(
        &self,
        reader: &Reader,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, SourceError> {
        let list = async {
            let bucket = Bucket::open(&self.bucket).await.map_err(store)?;
            bucket.list(&self.prefix, after, limit).await.map_err(store)
        };
        reader.wait(list).await
    }

    fn candidate(&self, object: Listed) -> Candidate {
        let verdict = object.is_folder().then_some(Verdict::NotAFile);
        let key = object.key;
        let cursor = utf8_percent_encode(&key, IN_CURSOR).to_string();
        let name = format!("s3://{}/{key}", self.bucket);
        let location = Location::Object { bucket: self.bucket.clone(), key };
        Candidate { verdict, ..Candidate::at(cursor, &name, location) }
    }
}

/// An object's bytes.
pub(super) async fn open(
    reader: &Reader,
    bucket: &str,
    key: &str,
) -> Result<ByteStream, SourceError> {
    let open = async {
        let bucket = Bucket::open(bucket).await.map_err(store)?;
        bucket.read(key).await.map_err(store)
    };
    let bytes = reader.wait(open).await?;
    let next = |(reader, mut bytes): (Reader, safelight_blobs::BlobStream)| async move {
        let chunk = reader.wait(async { bytes.try_next().await.map_err(store) }).await?;
        Ok(chunk.map(|chunk| (chunk, (reader, bytes))))
    };
    Ok(stream::try_unfold((reader.clone(), bytes), next).boxed())
}

fn store(error: BlobError) -> SourceError {
    if error.is_refusal() {
        let what = "there is no such bucket or object, or it may not be read";
        return SourceError::Unusable(what.to_owned());
    }
    SourceError::Store(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_is_read_as_folder() {
        for (place, prefix) in
            [("b", ""), ("b/", ""), ("b/a", "a/"), ("b/a//", "a//"), ("b//a", "/a/")]
        {
            assert_eq!(S3Source::new(place).prefix, prefix, "{place}");
        }
    }

    #[test]
    fn folder_markers_are_not_files_and_cursor_keeps_unusual_keys() {
        let source = S3Source::new("b");
        let candidate = |key: &str, bytes| source.candidate(Listed { key: key.to_owned(), bytes });
        assert_eq!(candidate("folder/", 0).verdict, Some(Verdict::NotAFile));
        assert_eq!(candidate("folder/", 9).verdict, None);
        let unusual = candidate("a//100%\0.jpg", 9);
        assert!(!unusual.cursor.contains('\0') && !unusual.name.contains('\0'), "{unusual:?}");
        assert_eq!(percent_decode_str(&unusual.cursor).decode_utf8_lossy(), "a//100%\0.jpg");
        assert_eq!(unusual.labels.filename.as_deref(), Some("100%.jpg"));
    }
}
