//! Files and folders that only the program's user can access.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
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

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt,
    };

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
}
