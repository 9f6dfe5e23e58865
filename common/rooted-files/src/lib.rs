//! Opens folders and files beneath a folder that was opened before.
//!
//! A check of a path says nothing about what the path names a moment later: whoever may write to a folder can
//! replace a file, or a folder on the way to it, by a symbolic link. So nothing here checks paths. A
//! [`RootedFolder`] opens what is beneath it through its own handle, follows no link, and looks at what it has
//! opened.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, statat},
    io::Errno,
};

/// Bytes of a path beneath a folder at most: the kernel's own limit, which also bounds how deep a walk goes.
const MAX_PATH_BYTES: usize = 4096;

/// How folders on the way are opened: for their names, without any access to their contents.
const WAY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// An opened folder. Clones share its handle.
#[derive(Debug, Clone)]
pub struct RootedFolder(Arc<OwnedFd>);

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A plain file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link, a pipe, a device or a socket.
    Other,
}

impl RootedFolder {
    /// Opens a folder by any path, and follows links on the way: for a path that its owner has named.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(Arc::new(openat(CWD, path, WAY, Mode::empty())?)))
    }

    /// Opens a folder by an absolute path without `..`, and follows no link at all.
    pub fn open_resolved(path: &Path) -> io::Result<Self> {
        let beneath = path.strip_prefix("/").map_err(|_| io::ErrorKind::InvalidInput)?;
        Self::open(Path::new("/"))?.folder(beneath)
    }

    /// The folder at a path beneath this one; itself for an empty path.
    pub fn folder(&self, path: &Path) -> io::Result<Self> {
        Ok(Self(Arc::new(self.open_beneath(path, WAY)?)))
    }

    /// Opens the plain file at a path beneath this folder. `None` if it is none: a pipe would wait for a writer,
    /// and a device would never end.
    pub fn file(&self, path: &Path) -> io::Result<Option<File>> {
        // Some devices do something when they are opened. The second look is at what is really read.
        if self.kind(path)? != Kind::File {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = self.open_beneath(path, flags)?;
        Ok((kind_of(&file)? == Kind::File).then(|| file.into()))
    }

    /// What there is at a path beneath this folder.
    pub fn kind(&self, path: &Path) -> io::Result<Kind> {
        kind_of(&self.open_beneath(path, OFlags::PATH)?)
    }

    /// The names in the folder at a path beneath this one, in no order; without `.` and `..`. An error if the
    /// folder was removed.
    pub fn names(&self, path: &Path) -> io::Result<Names> {
        let folder = self.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        // A handle stays usable, and the names of a folder that was removed would just be none.
        if fstat(&folder)?.st_nlink == 0 {
            return Err(Errno::NOENT.into());
        }
        let folder = Arc::new(folder);
        Ok(Names { names: Dir::read_from(&*folder)?, folder: Self(folder) })
    }

    fn open_beneath(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let path = plain(path)?;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match self.open_at_once(&path, flags) {
            // The kernel is older than Linux 5.6, or a filter of system calls does not know this one.
            Err(Errno::NOSYS | Errno::PERM) => self.open_step_by_step(&path, flags),
            opened => opened,
        };
        opened.map_err(|error| match error {
            Errno::LOOP | Errno::XDEV => io::Error::other("a symbolic link is in its place"),
            error => error.into(),
        })
    }

    #[cfg(target_os = "linux")]
    fn open_at_once(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        use rustix::fs::{ResolveFlags, openat2};

        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        // With this flag the kernel would look at the link itself, and report that it is no folder.
        let unneeded =
            if flags.contains(OFlags::DIRECTORY) { OFlags::NOFOLLOW } else { OFlags::empty() };
        let flags = flags - unneeded;
        loop {
            match openat2(&*self.0, path, flags, Mode::empty(), beneath) {
                // Something was renamed on the way.
                Err(Errno::AGAIN | Errno::INTR) => {}
                opened => return opened,
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn open_at_once(&self, _: &Path, _: OFlags) -> Result<OwnedFd, Errno> {
        Err(Errno::NOSYS)
    }

    /// The same with one call for each folder on the way.
    fn open_step_by_step(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut names = path.components().peekable();
        let mut folder = self.0.clone();
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                return open_name(&folder, name.as_os_str(), flags);
            }
            folder = Arc::new(open_name(&folder, name.as_os_str(), WAY | OFlags::NOFOLLOW)?);
        }
        Err(Errno::INVAL)
    }
}

/// The names in a folder.
pub struct Names {
    names: Dir,
    folder: RootedFolder,
}

impl Iterator for Names {
    type Item = io::Result<(OsString, Kind)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = match self.names.read()? {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error.into())),
            };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                // Some file systems tell it only when they are asked.
                FileType::Unknown => match self.folder.kind(Path::new(name)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    kind => kind,
                },
                known => Ok(kind_from(known)),
            };
            return Some(kind.map(|kind| (name.to_owned(), kind)));
        }
    }
}

/// Opens a name in a folder. A link is an error that says so.
fn open_name(folder: &OwnedFd, name: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat(folder, name, flags, Mode::empty()).map_err(|error| {
        // What the kernel reports of a link that should be a folder.
        let is_link = error == Errno::NOTDIR
            && statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|found| FileType::from_raw_mode(found.st_mode).is_symlink());
        if is_link { Errno::LOOP } else { error }
    })
}

/// A path of names alone, which cannot lead out of a folder; `.` if it has none.
fn plain(path: &Path) -> io::Result<PathBuf> {
    let names = path.components().filter(|part| *part != Component::CurDir);
    let path = names
        .map(|part| match part {
            Component::Normal(name) => Ok(name),
            _ => Err(io::Error::other("its path leads out of its folder")),
        })
        .collect::<io::Result<PathBuf>>()?;
    if path.as_os_str().len() >= MAX_PATH_BYTES {
        return Err(Errno::NAMETOOLONG.into());
    }
    Ok(if path.as_os_str().is_empty() { PathBuf::from(".") } else { path })
}

fn kind_of(handle: &OwnedFd) -> io::Result<Kind> {
    Ok(kind_from(FileType::from_raw_mode(fstat(handle)?.st_mode)))
}

fn kind_from(kind: FileType) -> Kind {
    match kind {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Folder,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests;
