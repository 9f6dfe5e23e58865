//! The local key: a file that stands for the user who runs the server, as long as there are no keys in the database.
//!
//! A server on the loopback address answers the programs of its own user without a key, but it cannot always tell
//! them: a proxy may run as the same user, and a container hides who calls. Whoever can read the data directory can
//! read the database, so the file gives nobody more than they have.

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use safelight_config::Config;
use safelight_domain::secrets::ApiSecret;
use safelight_store::DynStore;

/// Its name in the data directory.
const FILE: &str = "local.key";

/// Bytes of the file that are read at most: more than a key has.
const MAX_BYTES: u64 = 256;

/// Where it is.
pub fn path(config: &Config) -> PathBuf {
    config.data_dir.join(FILE)
}

/// The local key of a server with this configuration on `address`, made if there is none yet; `Some(None)` if it cannot
/// be made, `None` where every request needs a key of the database.
pub async fn of_server(
    config: &Config,
    store: &DynStore,
    address: SocketAddr,
) -> Option<Option<ApiSecret>> {
    let path = path(config);
    match store.has_api_keys().await {
        Ok(true) => {
            // It would open nothing, but somebody might take it for a key.
            let _ = fs::remove_file(path);
            return None;
        }
        // A worker has an address of its own.
        // While the database does not answer, nobody is admitted; when it does, there may be no key.
        Ok(false) | Err(_) if config.is_for_this_machine() && address.ip().is_loopback() => {}
        Ok(false) | Err(_) => return None,
    }
    let key = read_or_make(&path).inspect_err(|error| {
        tracing::warn!(%error, path = %path.display(), "cannot make the local key");
    });
    Some(key.ok())
}

/// Reads the file, or makes it. Of processes that make it at the same time one wins, and the others read.
fn read_or_make(path: &Path) -> io::Result<ApiSecret> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    if let Some(key) = read(path) {
        return Ok(key);
    }
    let key = ApiSecret::new().map_err(io::Error::other)?;
    let new = path.with_extension(format!("key-{}", key.prefix()));
    let made = write(&new, &key).and_then(|()| fs::hard_link(&new, path));
    let made = match made {
        // Another process was faster, or the file is damaged or open to others.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => match read(path) {
            Some(key) => Ok(key),
            None => fs::rename(&new, path).map(|()| key),
        },
        made => made.map(|()| key),
    };
    let _ = fs::remove_file(&new);
    made
}

fn write(path: &Path, key: &ApiSecret) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(format!("{}\n", key.reveal()).as_bytes())?;
    file.sync_all()
}

/// The key in the file; `None` unless it is one that only this user can read and write.
pub fn read(path: &Path) -> Option<ApiSecret> {
    let file = fs::File::open(path).ok()?;
    let found = file.metadata().ok()?;
    let is_open = found.mode() & 0o077 != 0;
    let is_private = !is_open && found.uid() == rustix::process::geteuid().as_raw();
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    ApiSecret::parse(text.trim()).filter(|_| is_private && found.is_file())
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt,
        sync::{Arc, Barrier},
        thread,
    };

    use super::*;

    #[test]
    fn processes_that_start_together_agree_on_one_private_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, together) = (folder.path().join("data/local.key"), Arc::new(Barrier::new(4)));
        let others: Vec<_> = (0..4)
            .map(|_| {
                let (path, together) = (path.clone(), together.clone());
                thread::spawn(move || {
                    together.wait();
                    read_or_make(&path).expect("a key").reveal().to_owned()
                })
            })
            .collect();
        let keys: Vec<_> = others.into_iter().map(|one| one.join().expect("no panic")).collect();
        assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
        let found = fs::metadata(&path).expect("a file");
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path().join("data")).expect("a folder").count(), 1);
    }

    #[test]
    fn file_that_others_can_read_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE);
        let first = read_or_make(&path).expect("a key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("changed");
        assert!(read(&path).is_none());
        let second = read_or_make(&path).expect("a key");
        assert_ne!(first.reveal(), second.reveal());
        fs::write(&path, "sl_").expect("written");
        assert_ne!(read_or_make(&path).expect("a key").reveal(), second.reveal());
    }
}
