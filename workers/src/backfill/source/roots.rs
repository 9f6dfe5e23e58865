//! What an import may read. A path is resolved once; what it then names is opened beneath its root without
//! following links, so that nothing that is swapped meanwhile leads out.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use safelight_config::import_roots;
use safelight_rooted_files::RootedFolder;

use super::error::SourceError;

/// The folders and buckets that an import may read; any location if empty. Clones share them.
#[derive(Clone)]
pub(super) struct Roots(Arc<[String]>);

/// A place beneath an opened folder.
pub(super) struct Place {
    pub root: RootedFolder,
    /// Its path beneath the root, without links.
    pub beneath: PathBuf,
}

impl Roots {
    pub fn new(roots: &[String]) -> Self {
        Self(roots.into())
    }

    /// Checks that an object may be read.
    pub fn check_object(&self, bucket: &str, key: &str) -> Result<(), SourceError> {
        let named = format!("s3://{bucket}/{key}");
        if self.0.is_empty() || import_roots::contain(&self.0, &named) {
            return Ok(());
        }
        Err(outside(&named))
    }

    /// The place that a path leads to, also through links, if it may be read. The root is opened anew, because
    /// its volume may have been mounted again; a link in its place is an error.
    pub fn find(&self, path: &Path) -> Result<Place, SourceError> {
        let resolved = path.canonicalize().map_err(|error| match SourceError::at(path, error) {
            // Whether something exists outside of the roots is not told.
            SourceError::Unusable(_) if !self.0.is_empty() => outside(&path.to_string_lossy()),
            error => error,
        })?;
        let root = if self.0.is_empty() {
            Path::new("/")
        } else {
            let root = import_roots::folder_of(&self.0, &resolved);
            root.ok_or_else(|| outside(&path.to_string_lossy()))?
        };
        let opened =
            RootedFolder::open_resolved(root).map_err(|error| SourceError::at(root, error))?;
        let beneath = resolved.strip_prefix(root).unwrap_or(Path::new("")).to_owned();
        Ok(Place { root: opened, beneath })
    }

    /// Opens the plain file that a path leads to, if it may be read.
    pub fn open(&self, path: &Path) -> Result<File, SourceError> {
        let Place { root, beneath } = self.find(path)?;
        open_file(&root, &beneath, path)
    }
}

/// Opens a plain file beneath a folder. Errors name it as `shown`.
pub(super) fn open_file(
    root: &RootedFolder,
    beneath: &Path,
    shown: &Path,
) -> Result<File, SourceError> {
    let file = root.file(beneath).map_err(|error| SourceError::at(shown, error))?;
    file.ok_or(SourceError::NotAFile)
}

fn outside(named: &str) -> SourceError {
    SourceError::Forbidden(format!(
        "{named} is outside of what this import may read (`import_roots`)"
    ))
}

#[cfg(test)]
mod tests {
    use std::{io, os::unix::fs::symlink};

    use nix::libc;

    use super::*;

    fn anywhere() -> Roots {
        Roots::new(&[])
    }

    #[test]
    fn only_plain_files_are_opened() {
        let folder = tempfile::tempdir().expect("folder");
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
        assert!(made.success());
        for path in [pipe.as_path(), folder.path(), Path::new("/dev/zero")] {
            let result = anywhere().open(path);
            assert!(matches!(result, Err(SourceError::NotAFile)), "{}", path.display());
        }
    }

    #[test]
    fn permanent_and_temporary_errors_are_told_apart() {
        let folder = tempfile::tempdir().expect("folder");
        let link = folder.path().join("link");
        symlink(&link, &link).expect("link");
        let (long, nul) = (format!("/{}", "x".repeat(300)), "/a\0b".to_owned());
        let deep = "/x".repeat(5000);
        for path in [&*link.to_string_lossy(), &long, &nul, &deep, "/nowhere"] {
            let result = anywhere().open(Path::new(path));
            assert!(matches!(result, Err(SourceError::Unusable(_))), "{result:?}");
        }
        for temporary in [libc::EMFILE, libc::ENOTCONN, libc::EHOSTUNREACH, libc::ETIMEDOUT] {
            let error = SourceError::at(Path::new("/"), io::Error::from_raw_os_error(temporary));
            assert!(matches!(error, SourceError::Io(_)), "{error}");
        }
        let bad_sector = SourceError::at(Path::new("/"), io::Error::from_raw_os_error(libc::EIO));
        assert!(matches!(bad_sector, SourceError::Unusable(_)), "{bad_sector}");
    }

    #[test]
    fn links_are_followed_only_within_the_roots() {
        let folder = tempfile::tempdir().expect("folder");
        let base = folder.path().canonicalize().expect("resolved");
        for name in ["root/in", "secret"] {
            std::fs::create_dir_all(base.join(name)).expect("folder");
            std::fs::write(base.join(name).join("a"), "x").expect("file");
        }
        symlink(base.join("root/in"), base.join("root/inner")).expect("link");
        symlink(base.join("secret"), base.join("root/outer")).expect("link");
        let roots = Roots::new(&[base.join("root").to_string_lossy().into_owned()]);
        assert!(roots.open(&base.join("root/in/a")).is_ok());
        assert!(roots.open(&base.join("root/inner/a")).is_ok());
        for path in ["root/outer/a", "root/../secret/a", "root/nothing", "nothing"] {
            let result = roots.open(&base.join(path));
            assert!(matches!(result, Err(SourceError::Forbidden(_))), "{path}: {result:?}");
        }
        // A place that was found before a swap.
        let place = roots.find(&base.join("root/in/a")).expect("found");
        std::fs::rename(base.join("root/in"), base.join("root/moved")).expect("moved");
        symlink(base.join("secret"), base.join("root/in")).expect("link");
        let result = open_file(&place.root, &place.beneath, Path::new("shown"));
        assert!(matches!(result, Err(SourceError::Unusable(_))), "{result:?}");
    }
}
