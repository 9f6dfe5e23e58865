//! Every file in a folder and its subfolders, in the order of names: a subfolder's files come at the position
//! of its name. Symbolic links are not followed, also not where one has replaced a file or folder meanwhile.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::File,
    io::ErrorKind,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};
use safelight_rooted_files::{Kind, RootedFolder};

use super::{
    candidate::{Candidate, Location, Verdict},
    error::SourceError,
    reader::{Progress, Reader},
    roots::open_file,
};

/// Names of one folder in memory. A larger folder is read once for every so many names.
const NAMES: usize = 8192;

/// Characters that a cursor escapes: it is text, and names on Unix are any bytes.
const IN_CURSOR: &AsciiSet = &CONTROLS.add(b'%');

#[derive(Clone)]
pub(super) struct Folder {
    opened: RootedFolder,
    /// Its path, for reports.
    path: PathBuf,
}

impl Folder {
    pub fn new(opened: RootedFolder, path: PathBuf) -> Self {
        Self { opened, path }
    }

    /// Opens a file that the walk has found, by its path.
    pub fn open(&self, path: &Path) -> Result<File, SourceError> {
        open_file(&self.opened, path.strip_prefix(&self.path).unwrap_or(path), path)
    }

    pub async fn count(&self, reader: &Reader) -> Result<u64, SourceError> {
        let folder = self.clone();
        reader
            .run(move |progress| {
                let mut count = 0;
                let mut show = |_: &Path, _: Shown| {
                    count += 1;
                    true
                };
                Walk { root: &folder, progress, show: &mut show }.folder(Path::new(""), None)?;
                Ok(count)
            })
            .await
    }

    pub async fn page(
        &self,
        reader: &Reader,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Candidate>, SourceError> {
        let folder = self.clone();
        let after: Option<PathBuf> =
            after.map(|cursor| OsString::from_vec(percent_decode_str(cursor).collect()).into());
        reader
            .run(move |progress| {
                let mut candidates = Vec::new();
                let mut show = |path: &Path, shown: Shown| {
                    candidates.push(folder.candidate(path, shown));
                    candidates.len() < limit
                };
                let mut walk = Walk { root: &folder, progress, show: &mut show };
                walk.folder(Path::new(""), after.as_deref())?;
                Ok(candidates)
            })
            .await
    }

    /// The candidate at a path beneath this folder.
    fn candidate(&self, beneath: &Path, shown: Shown) -> Candidate {
        let cursor = percent_encode(beneath.as_os_str().as_bytes(), IN_CURSOR).to_string();
        let path = self.path.join(beneath);
        let name = path.to_string_lossy().into_owned();
        let verdict = match shown {
            Shown::Kind(kind) => (kind != Kind::File).then_some(Verdict::NotAFile),
            Shown::Unreadable(why) => Some(Verdict::Unreadable(why)),
        };
        Candidate { verdict, ..Candidate::at(cursor, &name, Location::File(path)) }
    }
}

/// What a walk finds under a path.
enum Shown {
    Kind(Kind),
    /// It cannot be read, nor its contents if it is a folder.
    Unreadable(String),
}

/// A walk through a folder. All its paths are beneath that folder.
struct Walk<'a> {
    root: &'a Folder,
    progress: &'a Progress,
    /// Receives each file, and returns whether it wants more.
    show: &'a mut dyn FnMut(&Path, Shown) -> bool,
}

impl Walk<'_> {
    /// Shows every file under `folder` that comes after the relative path `after`. Returns whether more is
    /// wanted.
    fn folder(&mut self, folder: &Path, after: Option<&Path>) -> Result<bool, SourceError> {
        let mut last: Option<OsString> = None;
        if let Some(mut components) = after.map(Path::components)
            && let Some(first) = components.next()
        {
            let (inside, rest) = (folder.join(first), components.as_path());
            // If the cursor is the folder itself, all of it has been shown.
            let continues = !rest.as_os_str().is_empty()
                && self.root.opened.kind(&inside).is_ok_and(|kind| kind == Kind::Folder);
            if continues && !self.folder_or_itself(&inside, Some(rest))? {
                return Ok(false);
            }
            last = Some(first.as_os_str().to_owned());
        }
        loop {
            let names = self.next_names(folder, last.as_deref())?;
            let Some(end) = names.keys().next_back().cloned() else { return Ok(true) };
            for (name, shown) in names {
                let path = folder.join(name);
                let wants_more = match shown {
                    Shown::Kind(Kind::Folder) => self.folder_or_itself(&path, None)?,
                    shown => (self.show)(&path, shown),
                };
                if !wants_more {
                    return Ok(false);
                }
            }
            last = Some(end);
        }
    }

    /// Walks a subfolder. If it cannot be read, shows the folder itself, unless it was removed meanwhile.
    fn folder_or_itself(
        &mut self,
        folder: &Path,
        after: Option<&Path>,
    ) -> Result<bool, SourceError> {
        match self.folder(folder, after) {
            Err(SourceError::Unusable(why)) if self.is_there(folder) => {
                Ok((self.show)(folder, Shown::Unreadable(why)))
            }
            Err(SourceError::Unusable(_)) => Ok(true),
            walked => walked,
        }
    }

    /// The first names in a folder that come after `last`.
    fn next_names(
        &self,
        folder: &Path,
        last: Option<&OsStr>,
    ) -> Result<BTreeMap<OsString, Shown>, SourceError> {
        let at = |error| SourceError::at(&self.root.path.join(folder), error);
        let mut names = BTreeMap::new();
        for entry in self.root.opened.names(folder).map_err(at)? {
            self.progress.show()?;
            let (name, kind) = entry.map_err(at)?;
            if last.is_some_and(|last| name.as_os_str() <= last) {
                continue;
            }
            names.insert(name, Shown::Kind(kind));
            if names.len() > NAMES {
                names.pop_last();
            }
        }
        Ok(names)
    }

    /// Whether something is there, readable or not.
    fn is_there(&self, path: &Path) -> bool {
        let kind = self.root.opened.kind(path);
        !kind.is_err_and(|error| error.kind() == ErrorKind::NotFound)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn open(path: &Path) -> Folder {
        Folder::new(RootedFolder::open(path).expect("opened"), path.to_owned())
    }

    /// The paths of all candidates, read in pages of `limit`.
    async fn list(folder: &Folder, limit: usize) -> Vec<String> {
        let (mut found, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let page = folder.page(&Reader::default(), cursor.as_deref(), limit).await;
            let page = page.expect("a page");
            let is_last = page.len() < limit;
            cursor = page.last().map(|candidate| candidate.cursor.clone()).or(cursor);
            found.extend(page.into_iter().map(|candidate| {
                let Location::File(path) = candidate.location else { panic!("a file") };
                let path = path.strip_prefix(&folder.path).expect("inside");
                path.to_string_lossy().into_owned()
            }));
            if is_last {
                return found;
            }
        }
    }

    #[tokio::test]
    async fn pages_of_any_size_list_every_file_once() {
        let root = tempfile::tempdir().expect("folder");
        let names =
            ["a.jpg", "b/1.jpg", "b/2/x.jpg", "b/3.jpg", "b.jpg", "c d/ü%.png", "z/e/é.gif"];
        for name in names {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            fs::write(path, b"x").expect("file");
        }
        fs::create_dir(root.path().join("empty")).expect("folder");
        let not_utf8 = root.path().join(OsStr::from_bytes(b"c d/\xff.jpg"));
        fs::write(not_utf8, b"x").expect("file");
        let folder = open(root.path());
        let all = list(&folder, 100).await;
        assert_eq!(all.len(), names.len() + 1);
        for limit in 1..=8 {
            assert_eq!(list(&folder, limit).await, all, "pages of {limit}");
        }
        assert_eq!(folder.count(&Reader::default()).await.expect("count"), 8);
    }

    #[tokio::test]
    async fn folder_lists_links_without_following_them() {
        let root = tempfile::tempdir().expect("folder");
        std::os::unix::fs::symlink("/", root.path().join("link")).expect("link");
        let folder = open(root.path());
        let page = folder.page(&Reader::default(), None, 9).await.expect("a page");
        assert_eq!(page.len(), 1);
        assert_eq!(page[0].verdict, Some(Verdict::NotAFile));
    }

    #[tokio::test]
    async fn folder_that_was_removed_is_unusable() {
        let root = tempfile::tempdir().expect("folder");
        fs::write(root.path().join("a.jpg"), b"x").expect("file");
        let folder = open(root.path());
        drop(root);
        assert!(matches!(folder.count(&Reader::default()).await, Err(SourceError::Unusable(_))));
    }

    /// Makes folders so deep that their path is too long to open, even for root.
    fn make_unreadable_folder(root: &Path) -> PathBuf {
        let script = "for i in $(seq 30); do mkdir -p \"$0\"; cd \"$0\"; done; echo x > deep.jpg";
        let name = "d".repeat(200);
        let mut bash = std::process::Command::new("bash");
        let made = bash.args(["-c", script, &name]).current_dir(root).status().expect("bash");
        assert!(made.success());
        root.join(&name)
    }

    #[tokio::test]
    async fn unreadable_folder_is_one_entry_at_any_page_size() {
        let root = tempfile::tempdir().expect("folder");
        for name in ["a.jpg", "z.jpg"] {
            fs::write(root.path().join(name), b"x").expect("file");
        }
        make_unreadable_folder(root.path());
        let folder = open(root.path());
        for limit in 1..=4 {
            let found = list(&folder, limit).await;
            assert_eq!(found.len(), 3, "pages of {limit}: {found:?}");
        }
        let page = folder.page(&Reader::default(), None, 9).await.expect("a page");
        assert!(matches!(page[1].verdict, Some(Verdict::Unreadable(_))), "{:?}", page[1].verdict);
        assert_eq!(folder.count(&Reader::default()).await.expect("count"), 3);
    }
}
