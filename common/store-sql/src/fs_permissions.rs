//! Files and folders that only the program's user can access.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Makes a folder, with its parents, that only this user may enter, independent of the umask. Does not change
/// an existing folder: its permissions may be intended.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Makes an empty file that only this user may read, independent of the umask; fails if it exists.
pub fn make_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Whether every user of this machine can read a file, or look into a folder: it, and each folder on the way
/// to it, are open to all.
pub fn is_open_to_all(path: &Path) -> bool {
    const ENTER: u32 = 0o001;
    const READ: u32 = 0o004;
    let Ok(path) = path.canonicalize() else { return false };
    let allows = |path: &Path, any_of: u32| {
        path.metadata().is_ok_and(|found| found.permissions().mode() & any_of != 0)
    };
    let wanted = if path.is_dir() { ENTER | READ } else { READ };
    allows(&path, wanted) && path.ancestors().skip(1).all(|folder| allows(folder, ENTER))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().expect("exists").permissions().mode() & 0o777
    }

    #[test]
    fn new_files_are_private_and_existing_folders_are_unchanged() {
        let folder = tempfile::tempdir().expect("folder");
        let deep = folder.path().join("a/b");
        make_folder(&deep).expect("created");
        assert_eq!((mode(&deep), mode(&folder.path().join("a"))), (0o700, 0o700));
        let file = deep.join("secret");
        make_file(&file).expect("created");
        assert_eq!(mode(&file), 0o600);
        assert!(make_file(&file).is_err(), "it exists");
        fs::set_permissions(&deep, Permissions::from_mode(0o755)).expect("changed");
        make_folder(&deep).expect("exists");
        assert_eq!(mode(&deep), 0o755);
    }

    #[test]
    fn file_in_a_closed_folder_is_not_open() {
        let folder = tempfile::tempdir().expect("folder");
        let (inner, file) = (folder.path().join("inner"), folder.path().join("inner/file"));
        fs::create_dir(&inner).expect("folder");
        fs::write(&file, "").expect("file");
        let open = |path: &Path, mode| {
            fs::set_permissions(path, Permissions::from_mode(mode)).expect("changed");
        };
        open(&file, 0o644);
        open(&inner, 0o755);
        open(folder.path(), 0o700);
        assert!(!is_open_to_all(&file));
        open(folder.path(), 0o711);
        assert!(is_open_to_all(&file) && is_open_to_all(&inner));
        open(&file, 0o640);
        assert!(!is_open_to_all(&file));
        open(&inner, 0o750);
        assert!(!is_open_to_all(&inner) && !is_open_to_all(&inner.join("nothing")));
    }
}
