//! Every file in a folder, however deep, in the order of names: what a folder holds comes where its name
//! stands among its neighbours. Symbolic links are not followed.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, FileType},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};

use super::{Entry, Place, SourceError, on_thread};

/// Names of one folder in memory at once. A larger folder is read once for each so many names.
const NAMES: usize = 8192;

/// What a cursor writes otherwise: it is text, and names on Unix are any bytes.
const IN_CURSOR: &AsciiSet = &CONTROLS.add(b'%');

pub(in crate::backfill) struct Folder {
    root: PathBuf,
}

impl Folder {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub async fn count(&self) -> Result<u64, SourceError> {
        let root = self.root.clone();
        on_thread(move || {
            let mut count = 0;
            walk(&root, None, &mut |_, _| {
                count += 1;
                true
            })?;
            Ok(count)
        })
        .await
    }

    pub async fn page(&self, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, SourceError> {
        let root = self.root.clone();
        let after: Option<PathBuf> =
            after.map(|cursor| OsString::from_vec(percent_decode_str(cursor).collect()).into());
        on_thread(move || {
            let mut entries = Vec::new();
            walk(&root, after.as_deref(), &mut |path, kind| {
                let cursor = path.strip_prefix(&root).unwrap_or(path).as_os_str().as_bytes();
                let cursor = percent_encode(cursor, IN_CURSOR).to_string();
                let name = path.to_string_lossy().into_owned();
                let entry = Entry::at(cursor, name, Place::File(path.to_owned()));
                entries.push(Entry { is_file: kind.is_file(), ..entry });
                entries.len() < limit
            })?;
            Ok(entries)
        })
        .await
    }
}

/// Shows every file under `folder` that comes after the relative path `after` to `show`, until that says
/// that it has seen enough. Answers whether it wants more.
fn walk(
    folder: &Path,
    after: Option<&Path>,
    show: &mut dyn FnMut(&Path, FileType) -> bool,
) -> Result<bool, SourceError> {
    let mut last: Option<OsString> = None;
    if let Some(mut components) = after.map(Path::components)
        && let Some(first) = components.next()
    {
        let inside = folder.join(first);
        let is_folder = fs::symlink_metadata(&inside).is_ok_and(|about| about.is_dir());
        if is_folder && !walk(&inside, Some(components.as_path()), show)? {
            return Ok(false);
        }
        last = Some(first.as_os_str().to_owned());
    }
    loop {
        let names = next_names(folder, last.as_deref())?;
        let Some(end) = names.keys().next_back().cloned() else { return Ok(true) };
        for (name, kind) in names {
            let path = folder.join(name);
            let wants_more =
                if kind.is_dir() { walk_or_pass(&path, show)? } else { show(&path, kind) };
            if !wants_more {
                return Ok(false);
            }
        }
        last = Some(end);
    }
}

/// Walks a folder inside; one that was removed meanwhile, or may not be read, shows itself.
fn walk_or_pass(
    folder: &Path,
    show: &mut dyn FnMut(&Path, FileType) -> bool,
) -> Result<bool, SourceError> {
    match walk(folder, None, show) {
        Err(SourceError::Unusable(_)) => match fs::symlink_metadata(folder) {
            Ok(about) => Ok(show(folder, about.file_type())),
            Err(_) => Ok(true),
        },
        walked => walked,
    }
}

/// The first names in a folder that come after `last`.
fn next_names(
    folder: &Path,
    last: Option<&OsStr>,
) -> Result<BTreeMap<OsString, FileType>, SourceError> {
    let at = |error| SourceError::at(folder, error);
    let mut names = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(at)? {
        let entry = entry.map_err(at)?;
        let name = entry.file_name();
        if last.is_some_and(|last| name.as_os_str() <= last) {
            continue;
        }
        names.insert(name, entry.file_type().map_err(at)?);
        if names.len() > NAMES {
            names.pop_last();
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(folder: &Folder, limit: usize) -> Vec<String> {
        let (mut found, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let page = folder.page(cursor.as_deref(), limit).await.expect("a page");
            let is_last = page.len() < limit;
            cursor = page.last().map(|entry| entry.cursor.clone()).or(cursor);
            found.extend(page.into_iter().map(|entry| {
                let Place::File(path) = entry.place else { panic!("a file") };
                let path = path.strip_prefix(&folder.root).expect("inside");
                path.to_string_lossy().into_owned()
            }));
            if is_last {
                return found;
            }
        }
    }

    #[tokio::test]
    async fn pages_of_any_size_show_every_file_once() {
        let root = tempfile::tempdir().expect("folder");
        let names =
            ["a.jpg", "b/1.jpg", "b/2/x.jpg", "b/3.jpg", "b.jpg", "c d/ü%.png", "z/e/é.gif"];
        for name in names {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            fs::write(path, b"x").expect("file");
        }
        fs::create_dir(root.path().join("empty")).expect("folder");
        let odd = root.path().join(OsStr::from_bytes(b"c d/\xff.jpg"));
        fs::write(odd, b"x").expect("file");
        let folder = Folder::new(root.path().to_owned());
        let whole = all(&folder, 100).await;
        assert_eq!(whole.len(), names.len() + 1);
        for limit in 1..=8 {
            assert_eq!(all(&folder, limit).await, whole, "pages of {limit}");
        }
        assert_eq!(folder.count().await.expect("count"), 8);
    }

    #[tokio::test]
    async fn links_are_shown_and_not_followed() {
        let root = tempfile::tempdir().expect("folder");
        std::os::unix::fs::symlink("/", root.path().join("link")).expect("link");
        let page = Folder::new(root.path().to_owned()).page(None, 9).await.expect("a page");
        assert_eq!(page.len(), 1);
        assert!(!page[0].is_file);
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_unusable() {
        let folder = Folder::new("/nowhere/at/all".into());
        assert!(matches!(folder.count().await, Err(SourceError::Unusable(_))));
    }
}
