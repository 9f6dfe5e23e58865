//! What an import reads when files, folders and roots are swapped. Swaps happen between two calls, so that no test
//! depends on who is faster.

use std::{fs, os::unix::fs::symlink};

use futures::TryStreamExt;
use safelight_domain::BackfillKind;

use super::*;

/// `root/in/{a,z}.jpg` and `root/list.ndjson`, which names both, beside `secret/{a,z}.jpg`.
struct Tree {
    _folder: tempfile::TempDir,
    base: PathBuf,
}

impl Tree {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let base = folder.path().canonicalize().expect("resolved");
        for (path, text) in [("root/in", "inside"), ("secret", "secret")] {
            fs::create_dir_all(base.join(path)).expect("folder");
            for name in ["a.jpg", "z.jpg"] {
                fs::write(base.join(path).join(name), text).expect("file");
            }
        }
        fs::write(base.join("root/list.ndjson"), "\"in/a.jpg\"\n\"in/z.jpg\"\n").expect("list");
        Self { _folder: folder, base }
    }

    /// The import of a path in the tree; without `roots` of the kind that no `import_roots` give.
    fn spec(&self, source: &str, root: &str) -> BackfillSpec {
        let text = |path: &str| self.base.join(path).to_string_lossy().into_owned();
        let mut spec = BackfillSpec::new(BackfillKind::Import);
        (spec.source, spec.roots) = (Some(text(source)), vec![text(root)]);
        spec
    }

    /// Replaces something in the tree by a link to something else in it.
    fn swap(&self, path: &str, target: &str) {
        fs::rename(self.base.join(path), self.base.join("moved")).expect("moved");
        symlink(self.base.join(target), self.base.join(path)).expect("link");
    }
}

async fn source(spec: &BackfillSpec) -> Result<Source, SourceError> {
    Source::of(spec, Reader::default()).await
}

/// What an import gets of a candidate: its text, or why there is none.
async fn take(source: &Source, candidate: &Candidate) -> String {
    if let Some(verdict) = &candidate.verdict {
        return format!("{verdict:?}");
    }
    match source.open(candidate).await {
        Ok(bytes) => {
            let chunks: Vec<_> = bytes.try_collect().await.expect("read");
            String::from_utf8(chunks.concat()).expect("text")
        }
        Err(error) => format!("error: {error}"),
    }
}

async fn take_all(source: &Source, candidates: &[Candidate]) -> Vec<String> {
    let mut taken = Vec::new();
    for candidate in candidates {
        taken.push(take(source, candidate).await);
    }
    taken
}

#[tokio::test]
async fn list_cannot_open_files_outside_import_roots() {
    let tree = Tree::new();
    let lines = ["in/a.jpg", "/etc/passwd", "../secret/a.jpg", "s3://other/a", "in/none.jpg"];
    let lines = lines.map(|line| format!("\"{line}\"\n")).concat();
    fs::write(tree.base.join("root/list.ndjson"), lines).expect("list");
    let source = source(&tree.spec("root/list.ndjson", "root")).await.expect("a list");
    let taken = take_all(&source, &source.page(None, 9).await.expect("page")).await;
    assert_eq!(taken[0], "inside");
    assert_eq!(taken.len(), 5);
    assert!(taken[1..].iter().all(|why| why.contains("outside of what")), "{taken:?}");
}

#[tokio::test]
async fn swap_after_the_walk_gives_nothing_from_outside() {
    for from in ["root/in", "root/list.ndjson"] {
        for (swapped, target) in [
            ("root/in/a.jpg", "secret/a.jpg"),
            ("root/in", "secret"),
            ("root", "secret"),
            ("root/in/a.jpg", "nothing"),
        ] {
            let tree = Tree::new();
            let source = source(&tree.spec(from, "root")).await.expect("a source");
            let candidates = source.page(None, 9).await.expect("page");
            assert_eq!(take_all(&source, &candidates).await, ["inside", "inside"]);
            tree.swap(swapped, target);
            let taken = take_all(&source, &candidates).await;
            assert!(!taken.contains(&"secret".to_owned()), "{from}, {swapped}: {taken:?}");
            if swapped == "root/in/a.jpg" {
                assert!(taken[0].starts_with("error: "), "{taken:?}");
                assert_eq!(taken[1], "inside", "only that file fails");
            }
        }
    }
}

#[tokio::test]
async fn swap_between_two_steps_ends_the_import() {
    // Of the folder or list itself, of a folder on the way to it, and of its root.
    for (from, root, swapped, target) in [
        ("root/in", "root", "root/in", "secret"),
        ("root/in", "root", "root", "secret"),
        ("root/in", "root/in", "root/in", "secret"),
        ("root/in", "root/in", "root", "secret"),
        ("root/list.ndjson", "root", "root/list.ndjson", "secret/a.jpg"),
        ("root/list.ndjson", "root", "root", "secret"),
    ] {
        let tree = Tree::new();
        let spec = tree.spec(from, root);
        assert!(source(&spec).await.is_ok());
        fs::create_dir(tree.base.join("secret/in")).expect("folder");
        fs::copy(tree.base.join("root/list.ndjson"), tree.base.join("secret/list.ndjson"))
            .expect("list");
        tree.swap(swapped, target);
        let error = source(&spec).await.map(|_| ()).expect_err("swapped");
        assert!(error.is_final(), "{from}, {swapped}: {error}");
    }
}

#[tokio::test]
async fn swap_during_the_walk_gives_nothing_from_outside() {
    let tree = Tree::new();
    let whole = source(&tree.spec("root", "root")).await.expect("a folder");
    let first = whole.page(None, 1).await.expect("page");
    tree.swap("root/in", "secret");
    let rest = whole.page(Some(&first[0].cursor), 9).await.expect("page");
    let taken = take_all(&whole, &rest).await;
    assert!(!taken.contains(&"secret".to_owned()), "{taken:?}");
}

#[tokio::test]
async fn pipe_in_place_of_a_file_does_not_block() {
    let tree = Tree::new();
    let source = source(&tree.spec("root/in", "root")).await.expect("a folder");
    let candidates = source.page(None, 9).await.expect("page");
    let file = tree.base.join("root/in/a.jpg");
    fs::remove_file(&file).expect("removed");
    let made = std::process::Command::new("mkfifo").arg(&file).status().expect("mkfifo");
    assert!(made.success());
    assert_eq!(take_all(&source, &candidates).await, ["error: it is no plain file", "inside"]);
}

#[tokio::test]
async fn missing_source_is_final() {
    let tree = Tree::new();
    for root in ["root", "nowhere"] {
        let error = source(&tree.spec("nowhere", root)).await.map(|_| ()).expect_err("missing");
        assert!(error.is_final(), "{error}");
    }
}
