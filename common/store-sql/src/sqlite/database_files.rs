//! Notices that the files of the database were removed or replaced while they are open. SQLite writes on into files
//! that have no name any more, and everything is gone with the process.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// A file by device and inode.
type FileId = (u64, u64);

/// The files of a database that is open.
pub struct DatabaseFiles {
    database: (PathBuf, Option<FileId>),
    /// The write-ahead log, which exists from the first write on.
    log: (PathBuf, Option<FileId>),
}

impl DatabaseFiles {
    /// Of the database at `path`, which is open.
    pub fn of(path: &Path) -> Self {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let known = |path: PathBuf| {
            let id = id(&path);
            (path, id)
        };
        Self { database: known(path.to_owned()), log: known(log.into()) }
    }

    /// Forgets the log, which the next connection may make again.
    pub fn reopened(&mut self) {
        self.log.1 = None;
    }

    /// Fails if a file that is open has no name, or its name leads to another file.
    pub fn check(&mut self) -> io::Result<()> {
        for (path, known) in [&mut self.database, &mut self.log] {
            let found = id(path);
            match known {
                None => *known = found,
                Some(_) if *known == found => {}
                Some(_) => {
                    let text = format!(
                        "{} was removed or replaced while it was open; stop the server before you \
                         replace its database",
                        path.display()
                    );
                    return Err(io::Error::other(text));
                }
            }
        }
        Ok(())
    }
}

fn id(path: &Path) -> Option<FileId> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_and_replaced_files_are_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, log) = (folder.path().join("a.db"), folder.path().join("a.db-wal"));
        fs::write(&path, "database").expect("write");
        let mut files = DatabaseFiles::of(&path);
        files.check().expect("no log yet");
        fs::write(&log, "log").expect("write");
        files.check().expect("a log");
        fs::write(&log, "").expect("emptied");
        files.check().expect("the same file");
        fs::remove_file(&log).expect("remove");
        assert!(files.check().is_err());
        files.reopened();
        files.check().expect("the next connection makes it again");
        fs::write(folder.path().join("copy"), "database").expect("write");
        fs::rename(folder.path().join("copy"), &path).expect("replace");
        assert!(files.check().is_err());
    }
}
