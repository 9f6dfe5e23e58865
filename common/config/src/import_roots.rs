//! Which folders and buckets an import may read.

use std::path::{Path, PathBuf};

/// Whether `place`, a path or `s3://BUCKET/KEY`, lies within one of `roots`. Of paths, what they lead to
/// counts: `..` and symbolic links lead nowhere else. What is not there lies nowhere.
pub fn contain(roots: &[String], place: &str) -> bool {
    if place.starts_with("s3://") {
        return roots.iter().filter(|root| root.starts_with("s3://")).any(|root| {
            let root = root.trim_end_matches('/');
            place.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
    }
    let Ok(place) = Path::new(place).canonicalize() else { return false };
    let folders = roots.iter().filter(|root| !root.starts_with("s3://"));
    folders.filter_map(|root| PathBuf::from(root).canonicalize().ok()).any(|r| place.starts_with(r))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_contains_what_lies_in_it_and_no_namesake() {
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
