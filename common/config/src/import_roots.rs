//! Checks which folders and buckets an import may read.

use std::path::Path;

/// The roots by their resolved paths, as far as they exist. To be called at startup: a root that is replaced
/// by a link afterwards then names nothing.
pub fn resolved(roots: &[String]) -> Vec<String> {
    roots.iter().map(|root| resolve(root).unwrap_or_else(|| root.clone())).collect()
}

/// What the workers of an import of `source` may read: the roots, or if there are none the folder that is
/// imported. Empty for any location.
pub fn of_import(roots: &[String], source: &str) -> Vec<String> {
    if roots.is_empty() && Path::new(source).is_dir() {
        return vec![resolve(source).unwrap_or_else(|| source.to_owned())];
    }
    roots.to_vec()
}

/// Whether `location`, a path or `s3://BUCKET/KEY`, is within one of `roots`. Resolves the path first, so that
/// `..` and symbolic links cannot lead outside. A path that does not exist is in no root.
///
/// This is an answer for people. It does not bind the worker, who opens the root and what is beneath it later.
pub fn contain(roots: &[String], location: &str) -> bool {
    if is_bucket(location) {
        return roots.iter().filter(|root| is_bucket(root)).any(|root| {
            let root = root.trim_end_matches('/');
            location.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
    }
    let Ok(path) = Path::new(location).canonicalize() else { return false };
    folder_of(roots, &path).is_some()
}

/// The root that contains a resolved path.
pub fn folder_of<'a>(roots: &'a [String], path: &Path) -> Option<&'a Path> {
    let mut folders = roots.iter().filter(|root| !is_bucket(root)).map(Path::new);
    folders.find(|root| path.starts_with(root))
}

fn is_bucket(location: &str) -> bool {
    location.starts_with("s3://")
}

/// The resolved path of a folder; `None` for a bucket, and for a path that does not exist or is not UTF-8.
fn resolve(location: &str) -> Option<String> {
    if is_bucket(location) {
        return None;
    }
    Path::new(location).canonicalize().ok()?.into_os_string().into_string().ok()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::PathBuf};

    use super::*;

    fn text(path: PathBuf) -> String {
        path.into_os_string().into_string().expect("UTF-8")
    }

    #[test]
    fn root_contains_its_contents_and_not_similar_names() {
        let roots = ["s3://bucket/photos/".to_owned()];
        assert!(contain(&roots, "s3://bucket/photos"));
        assert!(contain(&roots, "s3://bucket/photos/a.jpg"));
        assert!(!contain(&roots, "s3://bucket/photos-private/a.jpg"));
        assert!(!contain(&roots, "s3://bucket"));
        let folder = tempfile::tempdir().expect("folder");
        let (inside, beside) = (folder.path().join("in"), folder.path().join("inside"));
        fs::create_dir(&inside).expect("folder");
        fs::create_dir(&beside).expect("folder");
        let roots = [text(inside.clone())];
        assert!(contain(&roots, &inside.to_string_lossy()));
        assert!(!contain(&roots, &beside.to_string_lossy()));
        assert!(!contain(&roots, &inside.join("../inside").to_string_lossy()));
        symlink(&beside, inside.join("link")).expect("link");
        assert!(!contain(&roots, &inside.join("link").to_string_lossy()));
        assert!(!contain(&roots, &inside.join("nowhere").to_string_lossy()));
    }

    #[test]
    fn root_that_was_replaced_by_a_link_contains_nothing() {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name);
        for name in ["real/in", "secret/in"] {
            fs::create_dir_all(path(name)).expect("folder");
        }
        symlink(path("real"), path("root")).expect("link");
        let missing = text(path("missing"));
        let roots = resolved(&[text(path("root")), missing.clone(), "s3://bucket/x".to_owned()]);
        assert_eq!(roots[1..], [missing, "s3://bucket/x".to_owned()]);
        assert!(contain(&roots, &text(path("root/in"))), "a root may be a link from the start");
        fs::rename(path("real"), path("moved")).expect("moved");
        symlink(path("secret"), path("real")).expect("link");
        assert!(!contain(&roots, &text(path("root/in"))));
        assert!(!contain(&roots, &text(path("real/in"))));
    }

    #[test]
    fn import_without_roots_may_read_the_folder_that_it_names() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().canonicalize().expect("resolved");
        symlink(&path, path.join("link")).expect("link");
        fs::write(path.join("list"), "").expect("file");
        assert_eq!(of_import(&[], &text(path.join("link"))), [text(path.clone())]);
        assert!(of_import(&[], &text(path.join("list"))).is_empty());
        assert!(of_import(&[], "s3://bucket").is_empty());
        assert_eq!(of_import(&["/a".to_owned()], &text(path)), ["/a"]);
    }
}
