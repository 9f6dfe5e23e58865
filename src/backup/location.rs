//! Where a backup is: a directory or a prefix of a bucket, opened like a blob store.

use std::{
    fmt,
    fs::{DirBuilder, File, TryLockError},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use safelight_blobs::Blobs;
use safelight_config::{BlobUrl, Config};

use crate::{
    bootstrap::{fs_permissions::is_open_to_all, services},
    error::CommandError,
    output::status,
};

/// Variables with this prefix replace the same `AWS_*` variables for the backup's store.
const OVERRIDE: &str = "SAFELIGHT_BACKUP_";

/// The file that is locked while a backup runs.
const LOCK: &str = "backup.lock";

/// A directory, or the URL of a blob store.
#[derive(Clone, PartialEq, Eq)]
pub struct Location(BlobUrl);

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url = match text.split_once(':') {
            Some(("file" | "s3", _)) => {
                text.parse::<BlobUrl>().map_err(|error| error.to_string())?
            }
            _ if text.contains("://") => {
                return Err("expected a directory, file:///FOLDER or s3://BUCKET/PREFIX".to_owned());
            }
            _ => BlobUrl::File(text.into()),
        };
        match url {
            BlobUrl::File(folder) if folder.as_os_str().is_empty() => {
                Err("the directory has no name".to_owned())
            }
            BlobUrl::File(folder) => {
                let folder = std::path::absolute(folder).map_err(|error| error.to_string())?;
                Ok(Self(BlobUrl::File(folder)))
            }
            bucket @ BlobUrl::S3 { .. } => Ok(Self(bucket)),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            BlobUrl::File(folder) => write!(f, "{}", folder.display()),
            bucket @ BlobUrl::S3 { .. } => write!(f, "{bucket}"),
        }
    }
}

impl Location {
    /// Creates a directory that does not exist.
    pub fn create(&self) -> Result<(), CommandError> {
        match &self.0 {
            BlobUrl::File(folder) => make_private_folder(folder),
            BlobUrl::S3 { .. } => Ok(()),
        }
    }

    /// Warns of a directory that other users can read.
    pub fn warn_if_open_to_all(&self) {
        if let BlobUrl::File(folder) = &self.0
            && is_open_to_all(folder)
        {
            status!("warning: every user of this machine can read {self}: chmod 700");
        }
    }

    /// Whether a directory may have a file, without a change to it. Always true for a bucket.
    pub fn may_have(&self, file: &str) -> bool {
        match &self.0 {
            // What cannot be read is not absent.
            BlobUrl::File(folder) => folder.join(file).try_exists().unwrap_or(true),
            BlobUrl::S3 { .. } => true,
        }
    }

    /// Opens it. A directory must exist.
    pub async fn open(&self, config: &Config) -> Result<Blobs, CommandError> {
        if let BlobUrl::File(folder) = &self.0
            && !folder.is_dir()
        {
            return Err(CommandError::failed(format!("there is no directory {self}")));
        }
        let blobs = Blobs::open_from(
            &services::blob_location(&self.0),
            &config.data_dir.join("spool"),
            with_overrides(environment()),
        );
        let opened = async {
            let blobs = blobs?;
            blobs.check().await?;
            Ok::<_, safelight_blobs::BlobError>(blobs)
        };
        opened.await.map_err(|error| {
            CommandError::failed(format!("cannot open {self}: {error}")).hint(match self.0 {
                BlobUrl::File(_) => "is the directory writable?",
                BlobUrl::S3 { .. } => {
                    "are the AWS_* variables right? SAFELIGHT_BACKUP_AWS_* replaces them for the backup's store"
                }
            })
        })
    }

    /// The folder for temporary files: they must be as private as the backup, and may be as large as the database.
    pub fn working_folder(&self, config: &Config) -> Result<PathBuf, CommandError> {
        match &self.0 {
            BlobUrl::File(folder) => Ok(folder.clone()),
            BlobUrl::S3 { .. } => {
                let folder = config.data_dir.join("spool");
                make_private_folder(&folder)?;
                Ok(folder)
            }
        }
    }

    /// Rejects a place that is a part of what is backed up, or has it as a part.
    pub fn require_separate(&self, config: &Config) -> Result<(), CommandError> {
        let clash = match (&self.0, &config.blob_url) {
            (BlobUrl::File(own), blobs) => {
                let own = resolved(own);
                let within = |other: &Path| own.starts_with(resolved(other));
                let blobs_overlap = match blobs {
                    BlobUrl::File(folder) => within(folder) || resolved(folder).starts_with(&own),
                    BlobUrl::S3 { .. } => false,
                };
                blobs_overlap || within(&config.data_dir)
            }
            (BlobUrl::S3 { bucket, prefix }, BlobUrl::S3 { bucket: other, prefix: of }) => {
                let parts = |prefix: &str| format!("{prefix}/").trim_start_matches('/').to_owned();
                let (own, other_prefix) = (parts(prefix), parts(of));
                let overlaps = own.starts_with(&other_prefix) || other_prefix.starts_with(&own);
                bucket == other && overlaps && !has_own_endpoint()
            }
            (BlobUrl::S3 { .. }, BlobUrl::File(_)) => false,
        };
        if clash {
            return Err(CommandError::usage(format!(
                "{self} is a part of the server's own data, which would be lost together with it"
            ))
            .hint("choose a place on another disk or in another bucket"));
        }
        Ok(())
    }
}

/// Locks a folder for one backup at a time, until the file is dropped.
pub fn lock(folder: &Path) -> Result<File, CommandError> {
    let path = folder.join(LOCK);
    let failed = |error| CommandError::failed(format!("cannot lock {}: {error}", path.display()));
    let file = File::create(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(CommandError::failed("another backup to this place is running")
                .hint("wait until it has ended"))
        }
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Makes a folder that only this user may enter. An existing one stays as it is.
pub fn make_private_folder(folder: &Path) -> Result<(), CommandError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| {
        CommandError::failed(format!("cannot make the directory {}: {error}", folder.display()))
    })
}

/// The path without links, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for ancestor in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (ancestor.canonicalize(), path.strip_prefix(ancestor)) {
            return real.join(rest);
        }
    }
    path
}

fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
}

/// The `AWS_*` variables, replaced by those with the prefix [`OVERRIDE`].
fn with_overrides(environment: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let (own, mut all): (Vec<_>, Vec<_>) =
        environment.partition(|(key, _)| key.starts_with(OVERRIDE));
    let own = own.into_iter().map(|(key, value)| (key[OVERRIDE.len()..].to_owned(), value));
    // The later of two equal ones is used.
    all.extend(own);
    all
}

fn has_own_endpoint() -> bool {
    environment().any(|(key, _)| key.starts_with(OVERRIDE) && key.contains("ENDPOINT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(data: &Path, blobs: &str) -> Config {
        let env = [("SAFELIGHT_DATA_DIR", &*data.to_string_lossy()), ("SAFELIGHT_BLOB_URL", blobs)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        safelight_config::load_from(None, env).expect("a configuration")
    }

    #[test]
    fn place_within_the_servers_data_is_rejected() {
        let folder = tempfile::tempdir().expect("folder");
        let data = folder.path().join("data");
        let other = folder.path().join("other").to_string_lossy().into_owned();
        let inside = data.join("backup").to_string_lossy().into_owned();
        let around = folder.path().to_string_lossy().into_owned();
        for (blobs, place, allowed) in [
            ("file:", other.as_str(), true),
            ("file:", &inside, false),
            ("file:", &around, false),
            ("s3://images/a", &other, true),
            ("s3://images/a", &inside, false),
            ("s3://images/a", "s3://images/b", true),
            ("s3://images/a", "s3://images/ab", true),
            ("s3://images/a", "s3://images/a/b", false),
            ("s3://images/a", "s3://images", false),
            ("s3://images/a", "s3://other/a", true),
        ] {
            let place: Location = place.parse().expect("a place");
            let result = place.require_separate(&config(&data, blobs));
            assert_eq!(result.is_ok(), allowed, "{place} and {blobs}");
        }
    }

    #[test]
    fn places_are_directories_or_urls() {
        assert_eq!("s3://a/b/".parse::<Location>().expect("s3").to_string(), "s3://a/b");
        assert_eq!("file:///x/y".parse::<Location>().expect("file").to_string(), "/x/y");
        assert_eq!("/x/y".parse::<Location>().expect("path").to_string(), "/x/y");
        for wrong in ["", "file:", "https://example.org/x", "s3://"] {
            assert!(wrong.parse::<Location>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn variables_of_the_backup_replace_those_of_the_server() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let given = [
            pair("SAFELIGHT_BACKUP_AWS_REGION", "own"),
            pair("AWS_REGION", "other"),
            pair("AWS_ENDPOINT", "kept"),
        ];
        let expected =
            [pair("AWS_REGION", "other"), pair("AWS_ENDPOINT", "kept"), pair("AWS_REGION", "own")];
        assert_eq!(with_overrides(given.into_iter()), expected);
    }
}
