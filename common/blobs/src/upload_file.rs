//! The file that an upload is written to until its hash is known.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use safelight_domain::{ContentHash, ContentHasher};
use uuid::Uuid;

use super::Stamp;

/// Bytes copied at once.
const COPY_BYTES: usize = 256 * 1024;

/// A file that receives bytes and hashes them. Its methods wait for the disk.
pub(super) struct UploadFile {
    file: Arc<File>,
    hasher: ContentHasher,
    /// `None` for one that never had a name, or that has its final one.
    name: Option<TemporaryName>,
}

/// Reads the bytes of an [`UploadFile`].
pub(super) struct UploadReader(Arc<File>);

/// The name of an unfinished file, which is removed on drop.
struct TemporaryName(PathBuf);

impl UploadFile {
    /// A file in the folder of a local store. The `#` in its name says that it is unfinished (see
    /// [`super::unfinished`]).
    pub fn named_in(folder: &Path) -> io::Result<Self> {
        let path = folder.join(format!("{}#1", Uuid::new_v4()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self::new(file, Some(TemporaryName(path))))
    }

    /// A file without a name, which vanishes with its process.
    pub fn unnamed_in(folder: &Path) -> io::Result<Self> {
        Ok(Self::new(tempfile::tempfile_in(folder)?, None))
    }

    fn new(file: File, name: Option<TemporaryName>) -> Self {
        Self { file: Arc::new(file), hasher: ContentHasher::default(), name }
    }

    /// Adds bytes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        (&*self.file).write_all(bytes)
    }

    /// The hash of the bytes so far.
    pub fn hash(&self) -> ContentHash {
        self.hasher.clone().finish()
    }

    /// The state of the file.
    pub fn state(&self) -> io::Result<Stamp> {
        self.file.metadata().map(|meta| Stamp::of(&meta))
    }

    /// A way to read the bytes, whatever becomes of the file's name.
    pub fn reader(&self) -> UploadReader {
        UploadReader(self.file.clone())
    }

    /// Gives a complete file its final name, durably: the file, its name, and the folder that has it are synced.
    /// Replaces a file of that name.
    pub fn name(&mut self, to: &Path, shards: &SyncedShards) -> io::Result<()> {
        let Some(TemporaryName(from)) = &self.name else {
            return Err(io::Error::other("the file has its name"));
        };
        let folder = to.parent().ok_or_else(|| io::Error::other("no folder"))?;
        self.file.sync_all()?;
        if let Err(error) = fs::rename(from, to) {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            shards.forget(folder);
            fs::create_dir_all(folder)?;
            fs::rename(from, to)?;
        }
        if let Some(TemporaryName(path)) = &mut self.name {
            path.clear();
        }
        self.name = None;
        sync_folder(folder)?;
        shards.sync_parents(folder)
    }
}

impl UploadReader {
    /// Reads `count` bytes from `offset`.
    pub fn read(&self, offset: u64, count: u64) -> io::Result<Bytes> {
        let mut bytes = vec![0; usize::try_from(count).map_err(io::Error::other)?];
        self.0.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.into())
    }

    /// A copy of the bytes under a temporary name in `folder`.
    pub fn copy_to(&self, folder: &Path) -> io::Result<UploadFile> {
        let mut copy = UploadFile::named_in(folder)?;
        let (mut buffer, mut offset) = (vec![0; COPY_BYTES], 0);
        loop {
            match self.0.read_at(&mut buffer, offset)? {
                0 => return Ok(copy),
                count => {
                    copy.write(&buffer[..count])?;
                    offset += count as u64;
                }
            }
        }
    }
}

impl Drop for TemporaryName {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.0);
        if path.as_os_str().is_empty() {
            return;
        }
        let remove = move || drop(fs::remove_file(path));
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// The shard folders of which this process knows that their own names are durable. Syncing a folder makes the names
/// in it durable, but not its own; and another process may have created it a moment ago.
pub(super) struct SyncedShards([AtomicBool; 256]);

impl Default for SyncedShards {
    fn default() -> Self {
        Self([const { AtomicBool::new(false) }; 256])
    }
}

impl SyncedShards {
    fn of(&self, folder: &Path) -> Option<&AtomicBool> {
        let shard = u8::from_str_radix(folder.file_name()?.to_str()?, 16).ok()?;
        self.0.get(usize::from(shard))
    }

    fn forget(&self, folder: &Path) {
        if let Some(known) = self.of(folder) {
            known.store(false, Ordering::Release);
        }
    }

    /// Makes the name of a shard folder durable, once: syncs `blobs`, and the root that has it.
    fn sync_parents(&self, folder: &Path) -> io::Result<()> {
        let known = self.of(folder);
        if known.is_some_and(|known| known.load(Ordering::Acquire)) {
            return Ok(());
        }
        for parent in folder.ancestors().skip(1).take(2) {
            sync_folder(parent)?;
        }
        if let Some(known) = known {
            known.store(true, Ordering::Release);
        }
        Ok(())
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
