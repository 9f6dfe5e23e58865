//! Checks which folders and buckets an import may read.

use std::path::{Path, PathBuf};

/// Whether `location`, a path or `s3://BUCKET/KEY`, is within one of `roots`. Resolves paths first, so that `..`
/// and symbolic links cannot lead outside. A path that does not exist is in no root.
pub fn contain(roots: &[String], location: &str) -> bool {
    if location.starts_with("s3://") {
        return roots.iter().filter(|root| root.starts_with("s3://")).any(|root| {
            let root = root.trim_end_matches('/');
            location.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
    }
    let Ok(path) = Path::new(location).canonicalize() else { return false };
    let folders = roots.iter().filter(|root| !root.starts_with("s3://"));
    folders.filter_map(|root| PathBuf::from(root).canonicalize().ok()).any(|r| path.starts_with(r))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_contains_its_contents_but_no_similar_names() {
        let roots = ["s3://bucket/photos/".to_owned()];
        assert!(contain(&roots, "s3://bucket/photos"));
        assert!(contain(&roots, "s3://bucket/photos/a.jpg"));
        assert!(!contain(&roots, "s3://bucket/photos-private/a.jpg"));
        assert!(!contain(&roots, "s3://bucket"));
        let folder = tempfile::tempdir().expect("folder");
        let (inside, beside) = (folder.path().join("in"), folder.path().join("inside"));
        std::fs::create_dir(&inside).expect("folder");
        std::fs::create_dir(&beside).expect("folder");
        let roots = [inside.to_string_lossy().into_owned()];
        assert!(contain(&roots, &inside.to_string_lossy()));
        assert!(!contain(&roots, &beside.to_string_lossy()));
        assert!(!contain(&roots, &inside.join("../inside").to_string_lossy()));
        std::os::unix::fs::symlink(&beside, inside.join("link")).expect("link");
        assert!(!contain(&roots, &inside.join("link").to_string_lossy()));
        assert!(!contain(&roots, &inside.join("nowhere").to_string_lossy()));
    }
}
