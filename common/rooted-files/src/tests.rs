//! Swaps happen between two calls, so that no test depends on who is faster.

use std::{
    fs,
    io::Read,
    os::unix::fs::{FileTypeExt, symlink},
    process::Command,
};

use super::*;

/// A folder `root` with `in/a.jpg`, beside a folder `secret` with another `a.jpg`.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        for path in ["root/in", "secret"] {
            fs::create_dir_all(folder.path().join(path)).expect("folder");
        }
        fs::write(folder.path().join("root/in/a.jpg"), "inside").expect("file");
        fs::write(folder.path().join("secret/a.jpg"), "secret").expect("file");
        Self(folder)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn root(&self) -> RootedFolder {
        RootedFolder::open(&self.path("root")).expect("opened")
    }

    /// Replaces something in the tree by a link to something else in it.
    fn swap(&self, path: &str, target: &str) {
        fs::rename(self.path(path), self.path("moved")).expect("moved");
        symlink(self.path(target), self.path(path)).expect("link");
    }
}

fn read(folder: &RootedFolder, path: &str) -> io::Result<Option<String>> {
    let Some(mut file) = folder.file(Path::new(path))? else { return Ok(None) };
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(Some(text))
}

fn is_link_error<T: std::fmt::Debug>(result: &io::Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.to_string().contains("symbolic link"))
}

#[test]
fn files_beneath_a_folder_are_read() {
    let tree = Tree::new();
    let root = tree.root();
    for path in ["in/a.jpg", "./in/./a.jpg", "in//a.jpg"] {
        assert_eq!(read(&root, path).expect(path).as_deref(), Some("inside"));
    }
    let inner = root.folder(Path::new("in")).expect("opened");
    assert_eq!(read(&inner, "a.jpg").expect("read").as_deref(), Some("inside"));
    let names =
        |folder: &RootedFolder| -> io::Result<Vec<_>> { folder.names(Path::new(""))?.collect() };
    assert_eq!(names(&inner).expect("names"), [("a.jpg".into(), Kind::File)]);
    assert_eq!(names(&root).expect("names"), [("in".into(), Kind::Folder)]);
}

#[test]
fn no_path_leads_out() {
    let tree = Tree::new();
    let root = tree.root();
    for path in ["../secret/a.jpg", "in/../../secret/a.jpg", "/etc/passwd", ".."] {
        assert!(read(&root, path).is_err() && root.kind(Path::new(path)).is_err(), "{path}");
        assert!(root.folder(Path::new(path)).is_err() && root.names(Path::new(path)).is_err());
    }
    let long = "x/".repeat(3000);
    assert_eq!(read(&root, &long).expect_err("too long").kind(), io::ErrorKind::InvalidFilename);
}

#[test]
fn what_a_link_has_replaced_is_not_followed() {
    for (swapped, target) in
        [("root/in/a.jpg", "secret/a.jpg"), ("root/in", "secret"), ("root/in", "root/moved")]
    {
        let tree = Tree::new();
        let root = tree.root();
        let inner = root.folder(Path::new("in")).expect("opened");
        tree.swap(swapped, target);
        let found = read(&root, "in/a.jpg");
        assert!(is_link_error(&found) || matches!(found, Ok(None)), "{swapped}: {found:?}");
        if swapped == "root/in" {
            assert!(is_link_error(&found), "{found:?}");
            assert!(is_link_error(&root.folder(Path::new("in"))));
            assert!(is_link_error(&root.names(Path::new("in")).map(|_| ())));
            // What was opened before is still what it was.
            assert_eq!(read(&inner, "a.jpg").expect("read").as_deref(), Some("inside"));
        }
    }
}

#[test]
fn root_that_a_link_has_replaced_is_not_followed() {
    let tree = Tree::new();
    let resolved = tree.path("root").canonicalize().expect("resolved");
    let opened = RootedFolder::open_resolved(&resolved).expect("opened");
    tree.swap("root", "secret");
    assert!(is_link_error(&RootedFolder::open_resolved(&resolved)));
    assert_eq!(read(&opened, "in/a.jpg").expect("read").as_deref(), Some("inside"));
    assert!(RootedFolder::open_resolved(Path::new("root")).is_err(), "a relative path");
}

#[test]
fn only_plain_files_are_opened() {
    let tree = Tree::new();
    let root = tree.root();
    let pipe = tree.path("root/in/pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    assert!(fs::metadata(&pipe).expect("pipe").file_type().is_fifo());
    symlink("a.jpg", tree.path("root/in/link")).expect("link");
    for path in ["in", "in/pipe", "in/link"] {
        assert_eq!(read(&root, path).expect(path), None, "{path}");
    }
    let device = RootedFolder::open_resolved(Path::new("/dev")).expect("opened");
    assert!(device.file(Path::new("zero")).expect("looked").is_none());
}

/// As on a kernel without `openat2`.
#[test]
fn step_by_step_has_the_same_results() {
    let tree = Tree::new();
    let root = tree.root();
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |path: &str| root.open_step_by_step(Path::new(path), flags);
    assert!(open("in/a.jpg").is_ok() && open("in").is_ok() && open(".").is_ok());
    assert_eq!(open("in/nothing").map(|_| ()), Err(Errno::NOENT));
    assert_eq!(open("in/a.jpg/x").map(|_| ()), Err(Errno::NOTDIR));
    symlink("a.jpg", tree.path("root/in/link")).expect("link");
    assert_eq!(open("in/link").map(|_| ()), Err(Errno::LOOP));
    tree.swap("root/in", "secret");
    assert_eq!(open("in/a.jpg").map(|_| ()), Err(Errno::LOOP));
    assert_eq!(open("in").map(|_| ()), Err(Errno::LOOP));
}

/// Also not one that stays within the root: what it leads to may be swapped as well.
#[test]
fn link_within_the_root_is_not_followed() {
    let tree = Tree::new();
    let root = tree.root();
    fs::rename(tree.path("root/in"), tree.path("root/was")).expect("moved");
    symlink("was", tree.path("root/in")).expect("link");
    assert!(is_link_error(&read(&root, "in/a.jpg")));
    assert!(is_link_error(&root.folder(Path::new("in"))));
}
