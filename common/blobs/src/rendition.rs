//! Writes renditions. They can be made again from their blob, so in a local directory nothing waits for the disk (ADR
//! 18): a reader finds a whole file as long as the machine runs, and compares what a power loss left with its hash.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures::future::try_join_all;
use object_store::{ObjectStoreExt, PutPayload, path::Path as StorePath};
use uuid::Uuid;

use super::{BlobError, BlobKey, Blobs, WrongStore, blocking::blocking};

impl Blobs {
    /// Stores renditions, and replaces existing ones. In a local directory they are not synced: after a power loss, one
    /// may be missing, cut short or have other bytes.
    pub async fn put_renditions(&self, renditions: Vec<(BlobKey, Bytes)>) -> Result<(), BlobError> {
        let paths: Vec<StorePath> = renditions.iter().map(|(key, _)| key.path()).collect();
        let bytes = renditions.into_iter().map(|(_, bytes)| bytes);
        let objects: Vec<(StorePath, Bytes)> = paths.iter().cloned().zip(bytes).collect();
        if let Some(root) = self.folder() {
            self.write_files(root, objects).await?;
        } else {
            let puts = objects
                .into_iter()
                .map(async |(path, bytes)| self.store.put(&path, PutPayload::from(bytes)).await);
            try_join_all(puts).await?;
        }
        let confirmed = self.confirm().await;
        if matches!(confirmed, Err(BlobError::WrongStore(WrongStore::Unmarked))) {
            // They were written somewhere else, for example below the mount point of a volume that was unmounted.
            for path in &paths {
                let _ = self.store.delete(path).await;
            }
        }
        confirmed
    }

    async fn write_files(
        &self,
        root: PathBuf,
        objects: Vec<(StorePath, Bytes)>,
    ) -> Result<(), BlobError> {
        let size: usize = objects.iter().map(|(_, bytes)| bytes.len()).sum();
        self.space.take(size as u64).await?;
        self.confirm().await?;
        let write_all = move || {
            objects.iter().try_for_each(|(path, bytes)| write(&root.join(path.as_ref()), bytes))
        };
        blocking(write_all).await.map_err(failed)
    }
}

fn failed(error: io::Error) -> BlobError {
    object_store::Error::Generic { store: "blobs", source: error.into() }.into()
}

/// Writes a file that gets its name when it is complete.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = unfinished(path);
    let written = create(&unfinished)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// A name that nothing lists and that the janitor recognizes: `#` and digits, as `object_store` has them.
fn unfinished(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!("#{}", Uuid::new_v4().as_u128()));
    name.into()
}

/// Creates a file, and its folder if there is none. A deletion may remove an empty folder at any time.
fn create(path: &Path) -> io::Result<File> {
    match File::create_new(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            File::create_new(path)
        }
        created => created,
    }
}

#[cfg(test)]
mod tests {
    use safelight_domain::{ContentHash, ImageFormat, InstallationId};
    use tempfile::TempDir;

    use super::*;
    use crate::{free_space::FreeSpace, testing::open};

    fn key(preset: &str) -> BlobKey {
        BlobKey::Rendition {
            of: ContentHash::of(b"x"),
            preset: preset.to_owned(),
            fingerprint: "0".to_owned(),
            format: ImageFormat::Jpeg,
        }
    }

    fn both(bytes: &'static [u8]) -> Vec<(BlobKey, Bytes)> {
        ["small", "large"].map(|preset| (key(preset), Bytes::from_static(bytes))).into()
    }

    /// The names in the folder of the renditions.
    fn names(folder: &TempDir) -> Vec<String> {
        let path = folder.path().join(key("x").path().as_ref());
        let entries = fs::read_dir(path.parent().expect("a folder")).expect("a folder");
        let name = |entry: io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        let mut names: Vec<_> =
            entries.map(|one| name(one).to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn renditions_replace_others_and_leave_nothing_unfinished() {
        let folder = TempDir::new().expect("a folder");
        let blobs = open(&folder);
        for bytes in [&b"first"[..], b"second"] {
            blobs.put_renditions(both(bytes)).await.expect("stored");
            for preset in ["small", "large"] {
                assert_eq!(blobs.read(&key(preset), 10).await.expect("read"), bytes);
            }
        }
        assert_eq!(names(&folder), ["large-0.jpg", "small-0.jpg"]);
    }

    #[tokio::test]
    async fn rendition_that_cannot_be_written_leaves_the_one_before() {
        let folder = TempDir::new().expect("a folder");
        let blobs = open(&folder);
        blobs.put_renditions(both(b"first")).await.expect("stored");
        let mut full = blobs.clone();
        full.space = FreeSpace::all_reserved(folder.path().to_owned());
        let error = full.put_renditions(both(b"second")).await.expect_err("no space");
        assert!(matches!(error, BlobError::Full), "{error:?}");
        assert_eq!(blobs.read(&key("small"), 10).await.expect("read"), &b"first"[..]);
        // A folder cannot be replaced by a file: the rename fails.
        let path = folder.path().join(key("other").path().as_ref());
        fs::create_dir(&path).expect("a folder");
        let other = vec![(key("other"), Bytes::from_static(b"x"))];
        blobs.put_renditions(other).await.expect_err("a folder is there");
        assert_eq!(names(&folder), ["large-0.jpg", "other-0.jpg", "small-0.jpg"]);
    }

    #[test]
    fn unfinished_rendition_has_a_name_that_is_not_listed() {
        let name = unfinished(Path::new("renditions/aa/small-0.jpg"));
        let (path, number) = name.to_str().expect("text").split_once('#').expect("a mark");
        assert_eq!(path, "renditions/aa/small-0.jpg");
        assert!(!number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()));
    }

    #[tokio::test]
    async fn renditions_are_not_written_below_a_mount_point() {
        let folder = TempDir::new().expect("a folder");
        let blobs = open(&folder);
        let id = InstallationId(Uuid::nil());
        blobs.mark(id).await.expect("marked");
        let blobs = blobs.of_installation(id);
        blobs.put_renditions(both(b"x")).await.expect("the own store");
        fs::remove_dir_all(folder.path()).expect("removed");
        fs::create_dir(folder.path()).expect("what is seen when the volume is unmounted");
        let error = blobs.put_renditions(both(b"x")).await.expect_err("another place");
        assert!(matches!(error, BlobError::WrongStore(WrongStore::Unmarked)), "{error:?}");
        assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 0);
    }

    /// From now on, this thread and those that it starts fail to sync anything.
    #[cfg(target_os = "linux")]
    fn forbid_syncs() {
        use nix::libc;
        use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
        let calls = [
            libc::SYS_fsync,
            libc::SYS_fdatasync,
            libc::SYS_sync_file_range,
            libc::SYS_syncfs,
            libc::SYS_sync,
        ];
        let rules = calls.map(|call| (call, Vec::new())).into_iter().collect();
        let fail = SeccompAction::Errno(libc::EPERM.unsigned_abs());
        let arch = std::env::consts::ARCH.try_into().expect("a known processor");
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, fail, arch).expect("a filter");
        let program: BpfProgram = filter.try_into().expect("a program");
        seccompiler::apply_filter(&program).expect("applied");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn renditions_are_stored_without_a_sync_and_blobs_are_not() {
        let folder = TempDir::new().expect("a folder");
        let blobs = open(&folder);
        let work = move || {
            forbid_syncs();
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(async {
                blobs.put_renditions(both(b"x")).await.expect("stored without a sync");
                let blob = BlobKey::Blob(ContentHash::of(b"x"));
                blobs.put(&blob, Bytes::from_static(b"x")).await.expect_err("a sync fails");
            });
        };
        std::thread::spawn(work).join().expect("no panic");
    }
}
