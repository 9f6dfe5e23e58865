//! One process on embedded parts, which can be started again on the same folder.

use std::path::{Path, PathBuf};

use anyhow::Result;
use tempfile::TempDir;
use tokio::task::block_in_place;

use crate::{
    audit::{Audit, Database},
    client::Client,
    server::{Server, owned, safelight},
};

/// `safelight serve` on a temporary folder.
pub struct TestServer {
    binary: PathBuf,
    data: TempDir,
    env: Vec<(String, String)>,
}

impl TestServer {
    /// A folder for `binary`, and variables that every start gets.
    pub fn new(binary: &Path, env: &[(&str, &str)]) -> Result<Self> {
        let data = TempDir::new()?;
        let mut all = owned(&[
            ("SAFELIGHT_DATA_DIR", &data.path().to_string_lossy()),
            ("SAFELIGHT_LISTEN", "127.0.0.1:0"),
        ]);
        all.extend(owned(env));
        Ok(Self { binary: binary.to_owned(), data, env: all })
    }

    /// Starts the process with further variables; returns it with a client of it.
    pub fn start(&self, env: &[(&str, &str)]) -> Result<(Server, Client)> {
        let mut command = safelight(&self.binary, ["serve"], &self.env);
        command.envs(env.iter().copied());
        let server = block_in_place(|| Server::start(command))?;
        let client = Client::new(server.url())?;
        Ok((server, client))
    }

    /// The folder with everything that it keeps.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// Its database.
    pub fn database(&self) -> Database {
        Database::Sqlite(self.data.path().join("safelight.db"))
    }

    /// What an audit of it compares.
    pub fn audit(&self) -> Audit<'static> {
        Audit { database: self.database(), blobs: self.data.path().join("blobs"), broker: None }
    }
}
