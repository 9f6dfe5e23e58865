//! What this process knows of large objects, which it does not hash at every read.

use std::{
    fs::File,
    io::{self, BufReader},
    sync::Arc,
    time::Duration,
};

use moka::sync::Cache;
use safelight_blobs::Stamp;
use safelight_domain::{CacheKey, ContentHasher};

use super::stored::StoredObject;

/// Bytes that are read at once to be hashed.
const CHUNK_BYTES: usize = 256 << 10;

/// Objects that are remembered.
const AT_MOST: u64 = 10_000;

/// How long an object counts as read. Nothing shows whether one of a remote store has changed since, nor whether a disk
/// returns other bytes of a file than were written.
const READ_FOR: Duration = Duration::from_hours(1);

/// How long an object that was found damaged is read to its end before a response begins.
const SUSPECT_FOR: Duration = Duration::from_mins(10);

/// What is known of large objects. Clones share it.
#[derive(Clone)]
pub struct KnownObjects(Arc<Inner>);

struct Inner {
    /// Files of the store, and their state when their content was right.
    files: Cache<Name, Stamp>,
    /// Objects of a remote store that were read to their end and were right.
    read: Cache<Name, ()>,
    /// Objects that were found damaged while they were sent.
    suspects: Cache<Name, ()>,
}

/// An object in the caches, and its path in the store: equal bytes lie under several paths.
type Name = (CacheKey, String);

fn name(object: &StoredObject) -> Name {
    (object.cached, object.key.path().to_string())
}

impl Default for KnownObjects {
    fn default() -> Self {
        Self(Arc::new(Inner {
            files: timed(READ_FOR),
            read: timed(READ_FOR),
            suspects: timed(SUSPECT_FOR),
        }))
    }
}

fn timed<V: Clone + Send + Sync + 'static>(time: Duration) -> Cache<Name, V> {
    Cache::builder().max_capacity(AT_MOST).time_to_live(time).build()
}

impl KnownObjects {
    /// Whether the file is unchanged since its content was found right.
    pub fn knows_file(&self, object: &StoredObject, file: &File) -> bool {
        let stamp = file.metadata().map(|meta| Stamp::of(&meta)).ok();
        stamp.is_some() && self.0.files.get(&name(object)) == stamp
    }

    /// Hashes the file; whether its content is right. Blocks.
    pub fn check_file(&self, object: &StoredObject, file: &File) -> io::Result<bool> {
        let stamp = Stamp::of(&file.metadata()?);
        let mut hasher = Hashing(ContentHasher::default());
        io::copy(&mut BufReader::with_capacity(CHUNK_BYTES, file), &mut hasher)?;
        if hasher.0.finish() != object.sha256 {
            return Ok(false);
        }
        self.0.files.insert(name(object), stamp);
        Ok(true)
    }

    /// Whether the object of a remote store was read to its end lately, and was right.
    pub fn is_read(&self, object: &StoredObject) -> bool {
        self.0.read.contains_key(&name(object))
    }

    /// The object of a remote store was read to its end, and was right.
    pub fn note_read(&self, object: &StoredObject) {
        self.0.suspects.invalidate(&name(object));
        self.0.read.insert(name(object), ());
    }

    /// The object was found damaged while it was sent.
    pub fn note_damaged(&self, object: &StoredObject) {
        self.0.read.invalidate(&name(object));
        self.0.suspects.insert(name(object), ());
    }

    /// Whether the object was found damaged while it was sent, and not found right since.
    pub fn is_suspect(&self, object: &StoredObject) -> bool {
        self.0.suspects.contains_key(&name(object))
    }
}

/// A hasher that can be written to.
pub struct Hashing(pub ContentHasher);

impl io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Seek, Write},
    };

    use safelight_blobs::BlobKey;
    use safelight_domain::{ContentHash, Owner};

    use super::*;

    fn object(content: &[u8]) -> StoredObject {
        let hash = ContentHash::of(content);
        StoredObject::new(&Owner::local(), BlobKey::Blob(hash), hash, content.len() as u64)
    }

    #[test]
    fn file_is_known_until_it_changes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("blob");
        let content = vec![7; 100_000];
        let object = object(&content);
        fs::write(&path, &content).expect("written");
        let known = KnownObjects::default();
        let open = || File::options().read(true).write(true).open(&path).expect("a file");
        assert!(!known.knows_file(&object, &open()));
        assert!(known.check_file(&object, &open()).expect("read"));
        assert!(known.knows_file(&object, &open()));

        let mut file = open();
        file.seek(io::SeekFrom::Start(50_000)).expect("sought");
        file.write_all(b"x").expect("written");
        // Longer than the resolution of a file system's clock.
        let later = std::time::SystemTime::now() + Duration::from_secs(1);
        file.set_modified(later).expect("a modification time");
        assert!(!known.knows_file(&object, &open()));
        assert!(!known.check_file(&object, &open()).expect("read"));
        assert!(!known.knows_file(&object, &open()));
    }

    #[test]
    fn damaged_object_is_suspect_until_it_is_found_right() {
        let (known, object) = (KnownObjects::default(), object(b"picture"));
        known.note_read(&object);
        known.note_damaged(&object);
        assert!(known.is_suspect(&object) && !known.is_read(&object));
        known.note_read(&object);
        assert!(known.is_read(&object) && !known.is_suspect(&object));
    }
}
