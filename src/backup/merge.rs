//! Compares two stores object by object. Both are walked in the order of paths, so neither is ever in memory as a
//! whole.

use futures::{TryStreamExt, stream::BoxStream};
use safelight_blobs::{BlobError, BlobKey, Blobs, Stored};

/// A walk over the blobs and renditions of a store, without foreign objects.
pub struct Walk {
    objects: BoxStream<'static, Result<Stored, BlobError>>,
    next: Option<Stored>,
}

/// The objects at one path.
#[derive(Debug, PartialEq, Eq)]
pub enum Pair {
    /// Only the first store has it.
    First(Stored),
    /// Only the second store has it.
    Second(Stored),
    /// Both have it.
    Both(Stored, Stored),
}

impl Pair {
    /// The object of the first store, unless the second has one that may be a copy of it: a blob of the same size may
    /// be damaged, and renditions are not compared.
    pub fn to_copy(&self) -> Option<&Stored> {
        match self {
            Self::First(object) => Some(object),
            Self::Both(object, copy) => {
                let is_blob = matches!(object.key, Some(BlobKey::Blob(_)));
                (is_blob || object.bytes != copy.bytes).then_some(object)
            }
            Self::Second(_) => None,
        }
    }
}

impl Walk {
    /// Over the blobs, then, if wanted, the renditions.
    pub fn new(blobs: &Blobs, with_renditions: bool) -> Self {
        if with_renditions {
            return Self::over(blobs, &[BlobKey::BLOBS, BlobKey::RENDITIONS]);
        }
        Self::over(blobs, &[BlobKey::BLOBS])
    }

    /// Over the renditions alone.
    pub fn renditions(blobs: &Blobs) -> Self {
        Self::over(blobs, &[BlobKey::RENDITIONS])
    }

    fn over(blobs: &Blobs, folders: &[&'static str]) -> Self {
        Self { objects: blobs.sorted(folders), next: None }
    }

    /// The next object.
    pub async fn next(&mut self) -> Result<Option<Stored>, BlobError> {
        self.peek().await?;
        Ok(self.next.take())
    }

    async fn peek(&mut self) -> Result<Option<&Stored>, BlobError> {
        while self.next.is_none() {
            match self.objects.try_next().await? {
                Some(object) if object.key.is_some() => self.next = Some(object),
                Some(_) => {}
                None => break,
            }
        }
        Ok(self.next.as_ref())
    }
}

/// The objects at the next path that one of two walks has; `None` at the end of both.
pub async fn next_pair(first: &mut Walk, second: &mut Walk) -> Result<Option<Pair>, BlobError> {
    let order = match (first.peek().await?, second.peek().await?) {
        (None, None) => return Ok(None),
        (Some(_), None) => std::cmp::Ordering::Less,
        (None, Some(_)) => std::cmp::Ordering::Greater,
        (Some(one), Some(other)) => one.path.cmp(&other.path),
    };
    let one = if order.is_le() { first.next().await? } else { None };
    let other = if order.is_ge() { second.next().await? } else { None };
    Ok(match (one, other) {
        (Some(one), Some(other)) => Some(Pair::Both(one, other)),
        (Some(one), None) => Some(Pair::First(one)),
        (None, Some(other)) => Some(Pair::Second(other)),
        (None, None) => None,
    })
}

#[cfg(test)]
mod tests {
    use safelight_blobs::BlobLocation;
    use safelight_domain::ContentHash;

    use super::*;

    #[tokio::test]
    async fn every_path_of_either_store_comes_once() {
        let folder = tempfile::tempdir().expect("folder");
        let open = |name: &str| {
            let location = BlobLocation::Folder(folder.path().join(name));
            Blobs::open(&location, folder.path()).expect("opened")
        };
        let (one, other) = (open("one"), open("other"));
        let hashes: Vec<_> = (0..40_u8).map(|number| ContentHash::of(&[number])).collect();
        for (number, hash) in hashes.iter().enumerate() {
            let key = BlobKey::Blob(*hash);
            if number % 2 == 0 {
                one.put(&key, vec![0; 1].into()).await.expect("stored");
            }
            if number % 3 == 0 {
                other.put(&key, vec![0; 2].into()).await.expect("stored");
            }
        }
        let (mut first, mut second) = (Walk::new(&one, true), Walk::new(&other, true));
        let (mut only_first, mut only_second, mut both) = (0, 0, 0);
        while let Some(pair) = next_pair(&mut first, &mut second).await.expect("walked") {
            match pair {
                Pair::First(_) => only_first += 1,
                Pair::Second(_) => only_second += 1,
                Pair::Both(one, other) => {
                    assert_eq!((one.path, one.bytes, other.bytes), (other.path, 1, 2));
                    both += 1;
                }
            }
        }
        assert_eq!((only_first, only_second, both), (13, 7, 7));
    }
}
