//! Who can read the files of an installation.

use std::{os::unix::fs::PermissionsExt, path::Path};

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
