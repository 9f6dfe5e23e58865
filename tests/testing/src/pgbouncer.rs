//! pgbouncer in front of a private PostgreSQL.

use std::{fs, net::TcpStream, path::Path, time::Duration};

use anyhow::Result;

use crate::{
    postgres::{as_server_user, give_to_server_user},
    process::{Guarded, free_port},
};

const START_LIMIT: Duration = Duration::from_secs(30);

/// A running pgbouncer.
pub struct PgBouncer {
    _process: Guarded,
    port: u16,
}

impl PgBouncer {
    /// Starts it on a free port in front of the server on `postgres`. `pool_mode` is `session`, `transaction` or
    /// `statement`; `settings` are additional lines of its section `[pgbouncer]`.
    pub fn start(postgres: u16, pool_mode: &str, settings: &str) -> Result<Self> {
        let port = free_port()?;
        let folder = tempfile::Builder::new().prefix("safelight-pgbouncer-").tempdir()?.keep();
        let config = folder.join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={postgres} user=postgres\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = {pool_mode}\ndefault_pool_size = 100\n\
             max_client_conn = 1000\n{settings}\n"
        );
        fs::write(&config, text)?;
        give_to_server_user(&folder)?;
        let mut command = as_server_user(Path::new("pgbouncer"));
        command.arg(&config);
        let listening = || TcpStream::connect(("127.0.0.1", port)).is_ok();
        let process = Guarded::serving("pgbouncer", &mut command, &folder, START_LIMIT, listening)?;
        Ok(Self { _process: process, port })
    }

    /// The URL of a database behind it.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }
}
