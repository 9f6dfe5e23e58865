//! One process with SQLite, the in-process queue and a local folder, which can be restarted on the same
//! folder.

use std::path::{Path, PathBuf};

use anyhow::Result;
use tempfile::TempDir;
use tokio::task::block_in_place;

use crate::{
    audit::{Audit, Database},
    client::Client,
    server::{Server, owned, safelight},
};

/// After a kill, staged bytes that were not recorded yet look like those of a newer database, and stay longer.
pub(crate) const RECOVERY_GRACE: (&str, &str) = ("SAFELIGHT_RECOVERY_GRACE_MS", "5000");

/// `safelight serve` on a temporary folder.
pub struct TestServer {
    binary: PathBuf,
    data: TempDir,
    env: Vec<(String, String)>,
}

impl TestServer {
    /// Prepares a folder for `binary`. Every start uses the variables `env`.
    pub fn new(binary: &Path, env: &[(&str, &str)]) -> Result<Self> {
        let data = TempDir::new()?;
        let mut all = owned(&[
            ("SAFELIGHT_DATA_DIR", &data.path().to_string_lossy()),
            ("SAFELIGHT_LISTEN", "127.0.0.1:0"),
            RECOVERY_GRACE,
        ]);
        all.extend(owned(env));
        Ok(Self { binary: binary.to_owned(), data, env: all })
    }

    /// Starts the process with additional variables; returns it and a client for it.
    pub fn start(&self, env: &[(&str, &str)]) -> Result<(Server, Client)> {
        let mut command = safelight(&self.binary, ["serve"], &self.env);
        command.envs(env.iter().copied());
        let server = block_in_place(|| Server::start(command))?;
        let client = Client::new(server.url())?;
        Ok((server, client))
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// Its database.
    pub fn database(&self) -> Database {
        Database::Sqlite(self.data.path().join("safelight.db"))
    }

    /// An audit of this server.
    pub fn audit(&self) -> Audit<'static> {
        Audit { database: self.database(), blobs: self.data.path().join("blobs"), broker: None }
    }
}
