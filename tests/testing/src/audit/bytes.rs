//! Reads the folder of the blobs as plain files: `blobs/<2>/<sha256>`,
//! `renditions/<2>/<sha256>/<preset>-<fingerprint>.<ext>`, `incoming/<image>`.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{ledger::sha256, look::Look};

/// A rendition's file.
pub(super) struct File {
    pub sha256: String,
    /// What it shows; `None` if it cannot be decoded.
    pub look: Option<Look>,
}

/// The names of all files in `incoming/`, complete or not.
pub(super) fn staged(root: &Path) -> Result<Vec<String>> {
    Ok(children(&root.join("incoming"))?.iter().map(|path| name(path)).collect())
}

/// The names of all files in `trash/`.
pub(super) fn trash(root: &Path) -> Result<Vec<String>> {
    Ok(children(&root.join("trash"))?.iter().map(|path| name(path)).collect())
}

/// The hashes of the files of each blob, by the name of the blob.
pub(super) fn originals(root: &Path) -> Result<HashMap<String, Vec<String>>> {
    let mut found: HashMap<String, Vec<String>> = HashMap::new();
    for folder in children(&root.join("blobs"))? {
        for file in children(&folder)? {
            found.entry(name(&file)).or_default().push(sha256(&fs::read(&file)?));
        }
    }
    Ok(found)
}

/// What the intact originals show, by their hash.
pub(super) fn looks(root: &Path) -> Result<HashMap<String, Look>> {
    let mut found = HashMap::new();
    for folder in children(&root.join("blobs"))? {
        for file in children(&folder)? {
            let content = fs::read(&file)?;
            if sha256(&content) == name(&file)
                && let Some(look) = Look::of(&content)
            {
                found.insert(name(&file), look);
            }
        }
    }
    Ok(found)
}

/// The files of all renditions, by the hash of the blob and the file name without extension.
pub(super) fn renditions(root: &Path) -> Result<HashMap<(String, String), File>> {
    let mut found = HashMap::new();
    for folder in children(&root.join("renditions"))? {
        for blob in children(&folder)? {
            for file in children(&blob)? {
                let content = fs::read(&file)?;
                let stem = file.file_stem().context("a rendition has a name")?;
                let key = (name(&blob), stem.to_string_lossy().into_owned());
                found.insert(key, File { sha256: sha256(&content), look: Look::of(&content) });
            }
        }
    }
    Ok(found)
}

/// The content of a folder; empty if it does not exist.
fn children(folder: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| folder.display().to_string()),
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
