//! The second tier: files on this machine, in front of a remote store.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use moka::{notification::RemovalCause, sync::Cache};
use safelight_blobs::Stamp;
use safelight_domain::{CacheKey, ContentHash, ContentHasher};
use uuid::Uuid;

use super::known::Hashing;

/// The prefix of files that are being written.
const UNFINISHED: &str = "new-";

/// Of the bound, the part that one object may take at most.
const LARGEST_SHARE: u64 = 4;

/// How long a file stays at most, counted again from a restart. This bounds how long deleted images stay.
const KEEP: Duration = Duration::from_hours(24);

/// Objects as files named by their key, `<2 hex>/<64 hex>` in one folder.
///
/// Nothing is synced, and no file is trusted: it is hashed before it is used, unless it is unchanged since this
/// process wrote or hashed it. A damaged file is removed.
pub struct Disk {
    folder: PathBuf,
    bound: u64,
    /// The prefix of files that this process is writing.
    unfinished: String,
    /// What is known of each file.
    index: Cache<CacheKey, Kept>,
}

#[derive(Clone, Copy)]
struct Kept {
    bytes: u64,
    /// The state of the file when its content was right.
    right: Option<Stamp>,
}

impl Disk {
    /// Files of at most `bound` bytes together in `folder`. The files of an earlier process are found
    /// in the background.
    pub fn open(folder: &Path, bound: u64) -> io::Result<Arc<Self>> {
        fs::create_dir_all(folder)?;
        let evicted = {
            let folder = folder.to_owned();
            move |key: Arc<CacheKey>, _: Kept, cause: RemovalCause| {
                if cause.was_evicted() {
                    // Requests that have it open read on.
                    let _ = fs::remove_file(path(&folder, &key));
                }
            }
        };
        let index = Cache::builder()
            .max_capacity(bound)
            .weigher(|_, kept: &Kept| u32::try_from(kept.bytes).unwrap_or(u32::MAX))
            .time_to_live(KEEP)
            .eviction_listener(evicted)
            .build();
        let disk =
            Arc::new(Self { folder: folder.to_owned(), bound, unfinished: unfinished(), index });
        let found = disk.clone();
        std::thread::Builder::new().name("disk cache".to_owned()).spawn(move || {
            if let Err(error) = found.find() {
                tracing::warn!(%error, "cannot look through the disk cache");
            }
        })?;
        Ok(disk)
    }

    /// Takes over the files of an earlier process.
    fn find(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(&self.unfinished) {
                // A file of this process that is not locked yet looks abandoned.
            } else if name.starts_with(UNFINISHED) {
                Self::remove_abandoned(&entry)?;
            } else if entry.file_type()?.is_dir() {
                for entry in fs::read_dir(entry.path())? {
                    let entry = entry?;
                    let name = entry.file_name();
                    let Some(Ok(key)) = name.to_str().map(str::parse::<CacheKey>) else {
                        continue;
                    };
                    // Another process over the same folder may have removed it.
                    let Ok(meta) = entry.metadata() else { continue };
                    let age = meta.modified().and_then(|at| at.elapsed().map_err(io::Error::other));
                    if age.is_ok_and(|age| age > KEEP) {
                        let _ = fs::remove_file(entry.path());
                        continue;
                    }
                    let kept = Kept { bytes: meta.len(), right: None };
                    self.index.entry(key).or_insert(kept);
                }
            }
        }
        self.index.run_pending_tasks();
        Ok(())
    }

    /// Removes files that a crash left unfinished. Another process over the same folder may still be writing one:
    /// then it holds a lock. Where there are no locks, age decides: no object takes an hour to arrive.
    fn remove_abandoned(entry: &fs::DirEntry) -> io::Result<()> {
        // It may have been finished meanwhile.
        let Ok(file) = File::open(entry.path()) else { return Ok(()) };
        let abandoned = match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(_)) => {
                let age = file.metadata()?.modified()?.elapsed().unwrap_or_default();
                age > Duration::from_hours(1)
            }
        };
        if abandoned { fs::remove_file(entry.path()) } else { Ok(()) }
    }

    /// Whether an object of this size may be kept.
    pub const fn takes(&self, bytes: u64) -> bool {
        bytes <= self.bound / LARGEST_SHARE
    }

    /// Reads an object whole. `None` if it is not here. Blocks.
    pub fn read(
        &self,
        key: &CacheKey,
        hash: &ContentHash,
        bytes: u64,
    ) -> io::Result<Option<Bytes>> {
        let Some((mut file, _)) = self.file(key, bytes)? else { return Ok(None) };
        let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or_default());
        file.read_to_end(&mut content)?;
        if ContentHash::of(&content) != *hash {
            self.drop_damaged(key);
            return Ok(None);
        }
        Ok(Some(content.into()))
    }

    /// Opens an object's file, checked unless it is known to be right. `None` if it is not here. Blocks.
    pub fn open_file(
        &self,
        key: &CacheKey,
        hash: &ContentHash,
        bytes: u64,
    ) -> io::Result<Option<File>> {
        let Some((file, known)) = self.file(key, bytes)? else { return Ok(None) };
        let now = Stamp::of(&file.metadata()?);
        if known.right != Some(now) {
            let (mut hasher, mut reader) = (Hashing(ContentHasher::default()), &file);
            io::copy(&mut reader, &mut hasher)?;
            if hasher.0.finish() != *hash {
                self.drop_damaged(key);
                return Ok(None);
            }
            self.index.insert(*key, Kept { bytes, right: Some(now) });
        }
        Ok(Some(file))
    }

    /// The file, and what is known of it. The folder decides, not the index: another process may have
    /// written or removed it.
    fn file(&self, key: &CacheKey, bytes: u64) -> io::Result<Option<(File, Kept)>> {
        // The lookup also counts the use.
        let known = self.index.get(key);
        let file = match File::open(path(&self.folder, key)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if known.is_some() {
                    self.index.invalidate(key);
                }
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if file.metadata()?.len() != bytes {
            self.drop_damaged(key);
            return Ok(None);
        }
        let unknown = Kept { bytes, right: None };
        if known.is_none() {
            self.index.insert(*key, unknown);
        }
        Ok(Some((file, known.unwrap_or(unknown))))
    }

    fn drop_damaged(&self, key: &CacheKey) {
        tracing::warn!(%key, "a file of the disk cache is damaged; removed");
        let _ = fs::remove_file(path(&self.folder, key));
        self.index.invalidate(key);
    }

    /// Keeps an object. Blocks.
    pub fn keep(&self, key: &CacheKey, content: &[u8]) -> io::Result<()> {
        let new = self.begin()?;
        let mut file = new.create()?;
        file.write_all(content)?;
        self.finish(key, content.len() as u64, &new)
    }

    /// Removes an object, if it is here. Requests that have it open read on. Blocks.
    pub fn forget(&self, key: &CacheKey) -> io::Result<()> {
        self.index.invalidate(key);
        match fs::remove_file(path(&self.folder, key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// A name for an object that is to be written.
    pub fn begin(&self) -> io::Result<Unfinished> {
        fs::create_dir_all(&self.folder)?;
        Ok(Unfinished(self.folder.join(format!("{}{}", self.unfinished, Uuid::new_v4()))))
    }

    /// Gives a file whose content is right its final name. Blocks.
    pub fn finish(&self, key: &CacheKey, bytes: u64, new: &Unfinished) -> io::Result<()> {
        let path = path(&self.folder, key);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::rename(&new.0, &path)?;
        // After the renaming, which counts as a change. Another process may have replaced the file since: then it is
        // one with equal content.
        let right = Some(Stamp::of(&fs::metadata(&path)?));
        self.index.insert(*key, Kept { bytes, right });
        Ok(())
    }
}

/// The prefix of one process's unfinished files.
fn unfinished() -> String {
    format!("{UNFINISHED}{}-", Uuid::new_v4().simple())
}

/// A file without its final name yet; removed unless it gets one.
pub struct Unfinished(PathBuf);

impl Unfinished {
    /// Creates the file, to be written and read. As long as it is open, its lock shows that it is not abandoned.
    pub fn create(&self) -> io::Result<File> {
        let file = File::options().read(true).write(true).create_new(true).open(&self.0)?;
        // Not every file system has locks.
        let _ = file.try_lock();
        Ok(file)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn path(folder: &Path, key: &CacheKey) -> PathBuf {
    let name = key.to_string();
    folder.join(&name[..2]).join(&name)
}

#[cfg(test)]
mod tests {
    use safelight_domain::Owner;

    use super::*;

    fn object(number: u16) -> (CacheKey, ContentHash, Vec<u8>) {
        let content = number.to_le_bytes().repeat(500);
        let hash = ContentHash::of(&content);
        (CacheKey::of(&Owner::local(), &hash), hash, content)
    }

    fn bytes_in(folder: &Path) -> u64 {
        let files = fs::read_dir(folder)
            .expect("a folder")
            .flat_map(|folder| fs::read_dir(folder.expect("an entry").path()).expect("a folder"));
        files.map(|file| file.expect("an entry").metadata().expect("metadata").len()).sum()
    }

    #[test]
    fn files_stay_within_the_bound_and_survive_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Disk::open(folder.path(), 20_000).expect("a cache");
        assert!(disk.takes(5_000) && !disk.takes(5_001));
        for (key, _, content) in (0..100).map(object) {
            disk.keep(&key, &content).expect("kept");
        }
        disk.index.run_pending_tasks();
        let kept = bytes_in(folder.path());
        assert!((10_000..=20_000).contains(&kept), "{kept} bytes");
        let again = Disk::open(folder.path(), 20_000).expect("a cache");
        let found = (0..100).map(object).filter(|(key, hash, content)| {
            again.read(key, hash, 1000).expect("a file").is_some_and(|read| read == *content)
        });
        assert_eq!(found.count() as u64 * 1000, kept);
    }

    #[test]
    fn damaged_file_is_never_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Disk::open(folder.path(), 1 << 20).expect("a cache");
        let (key, hash, content) = object(7);
        for damage in [&content[1..], &[0; 1000]] {
            disk.keep(&key, &content).expect("kept");
            assert!(disk.open_file(&key, &hash, 1000).expect("a file").is_some());
            fs::write(path(folder.path(), &key), damage).expect("damaged");
            let later = Disk::open(folder.path(), 1 << 20).expect("a cache");
            assert!(later.open_file(&key, &hash, 1000).expect("no file").is_none());
            assert!(later.read(&key, &hash, 1000).expect("no file").is_none());
            assert!(
                disk.read(&key, &hash, 1000).expect("no file").is_none(),
                "not even by the process that wrote it"
            );
        }
    }

    #[test]
    fn old_files_are_removed_at_startup() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Disk::open(folder.path(), 1 << 20).expect("a cache");
        let objects = [object(1), object(2)];
        for (key, _, content) in &objects {
            disk.keep(key, content).expect("kept");
        }
        let old = path(folder.path(), &objects[0].0);
        let then = std::time::SystemTime::now() - KEEP - Duration::from_mins(1);
        File::options()
            .append(true)
            .open(&old)
            .expect("a file")
            .set_modified(then)
            .expect("a time");
        Disk {
            folder: folder.path().to_owned(),
            bound: 1 << 20,
            unfinished: unfinished(),
            index: Cache::new(1 << 20),
        }
        .find()
        .expect("scanned");
        assert!(!old.exists() && path(folder.path(), &objects[1].0).exists());
    }

    #[test]
    fn changed_file_is_hashed_before_it_is_opened_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Disk::open(folder.path(), 1 << 20).expect("a cache");
        let (key, hash, content) = object(7);
        let file_path = path(folder.path(), &key);
        let replace = |content: &[u8]| {
            let other = folder.path().join("other");
            fs::write(&other, content).expect("written");
            fs::rename(other, &file_path).expect("replaced");
        };
        disk.keep(&key, &content).expect("kept");
        replace(&content);
        assert!(
            disk.open_file(&key, &hash, 1000).expect("a file").is_some(),
            "the content is the same"
        );
        replace(&[0; 1000]);
        assert!(disk.open_file(&key, &hash, 1000).expect("no file").is_none());
        assert!(!file_path.exists());

        disk.keep(&key, &content).expect("kept");
        let file = File::options().write(true).open(&file_path).expect("a file");
        (&file).write_all(b"damage").expect("written");
        let written = std::time::SystemTime::now() + Duration::from_secs(1);
        file.set_modified(written).expect("a modification time");
        assert!(disk.open_file(&key, &hash, 1000).expect("no file").is_none());
    }

    #[test]
    fn unfinished_files_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Disk::open(folder.path(), 1 << 20).expect("a cache");
        let files = || fs::read_dir(folder.path()).expect("a folder").count();
        let new = disk.begin().expect("a name");
        new.create().expect("a file");
        drop(new);
        assert_eq!(files(), 0);

        // One file of a killed process, and one of a running process.
        let earlier = Disk::open(folder.path(), 1 << 20).expect("a cache");
        let (killed, running) =
            (earlier.begin().expect("a name"), earlier.begin().expect("a name"));
        drop(killed.create().expect("a file"));
        let written = running.create().expect("a file");
        std::mem::forget(killed);
        disk.find().expect("scanned");
        assert_eq!(files(), 1);
        drop((written, running));
        assert_eq!(files(), 0);
    }
}
