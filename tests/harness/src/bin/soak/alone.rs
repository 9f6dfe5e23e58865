//! One process on embedded parts.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use safelight_harness::{
    books::{Books, Database},
    process::free_port,
    server::{Server, safelight},
};
use tempfile::TempDir;
use tokio::task::block_in_place;

use crate::{ENV, Victim, random::Random};

/// `safelight serve`, on the same folder and port however often it is killed.
pub struct Alone {
    server: Server,
    binary: PathBuf,
    env: Vec<(String, String)>,
    data: TempDir,
}

impl Alone {
    /// Starts it.
    pub fn start(binary: &Path) -> Result<Self> {
        let data = TempDir::new()?;
        let folder = data.path().to_string_lossy().into_owned();
        let listen = format!("127.0.0.1:{}", free_port()?);
        let own = [("SAFELIGHT_DATA_DIR", folder.as_str()), ("SAFELIGHT_LISTEN", &listen)];
        let env: Vec<_> =
            ENV.iter().chain(&own).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let server = block_in_place(|| Server::start(safelight(binary, ["serve"], &env)))?;
        Ok(Self { server, binary: binary.to_owned(), env, data })
    }
}

impl Victim for Alone {
    fn url(&self) -> String {
        self.server.url().to_owned()
    }

    fn database(&self) -> Database {
        Database::Sqlite(self.data.path().join("safelight.db"))
    }

    async fn harm(&mut self, random: &mut Random) -> Result<&'static str> {
        if random.index(3) == 0 {
            self.server.signal("STOP")?;
            let asleep = random.between(Duration::from_secs(1), Duration::from_secs(8));
            tokio::time::sleep(asleep).await;
            self.server.signal("CONT")?;
            return Ok("server frozen");
        }
        block_in_place(|| {
            self.server.kill()?;
            self.server = Server::start(safelight(&self.binary, ["serve"], &self.env))?;
            Ok("server killed")
        })
    }

    fn books(&self) -> Books<'_> {
        Books { database: self.database(), blobs: self.data.path().join("blobs"), broker: None }
    }
}
