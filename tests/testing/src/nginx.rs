//! nginx: with a folder of files, configured for speed, as the reference for delivery benchmarks; and as a bare proxy.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::process::{Guarded, free_port};

/// How long nginx may take to start.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A running nginx.
pub struct Nginx {
    process: Guarded,
    port: u16,
}

impl Nginx {
    /// Starts nginx on a free port with `workers` worker processes and an empty folder.
    pub fn start(workers: usize) -> Result<Self> {
        let port = free_port()?;
        let folder = tempfile::Builder::new().prefix("safelight-nginx-").tempdir()?.keep();
        fs::create_dir(folder.join("files"))?;
        Self::run(port, &folder, &configuration(port, workers, &folder))
    }

    /// Starts nginx as the proxy of `target` that a short tutorial shows. Its workers run as `user`, and it listens on
    /// `address`.
    pub fn proxy(target: &str, user: &str, address: &str) -> Result<Self> {
        let port = free_port()?;
        let folder = tempfile::Builder::new().prefix("safelight-nginx-").tempdir()?.keep();
        let configuration =
            proxy_configuration(target, user, &format!("{address}:{port}"), &folder);
        Self::run(port, &folder, &configuration)
    }

    fn run(port: u16, folder: &Path, configuration: &str) -> Result<Self> {
        fs::write(folder.join("nginx.conf"), configuration)?;
        let mut command = Command::new(binary());
        command.arg("-c").arg(folder.join("nginx.conf")).arg("-e").arg(folder.join("error.log"));
        let listening = || TcpStream::connect(("127.0.0.1", port)).is_ok();
        let process = Guarded::serving("nginx", &mut command, folder, START_LIMIT, listening)?;
        Ok(Self { process, port })
    }

    /// Stores a file at a path such as `images/1`.
    pub fn put(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let file = self.files().join(path);
        fs::create_dir_all(file.parent().context("a folder")?)?;
        Ok(fs::write(file, bytes)?)
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn files(&self) -> PathBuf {
        self.process.folder().join("files")
    }
}

/// Debian installs servers in a directory that is not in the `PATH` of ordinary users.
fn binary() -> &'static str {
    let debian = "/usr/sbin/nginx";
    if Path::new(debian).exists() { debian } else { "nginx" }
}

fn configuration(port: u16, workers: usize, folder: &Path) -> String {
    let folder = folder.display();
    // If root starts nginx, its workers run as `nobody` by default, who cannot read the folder.
    let user = if is_root() { "user root;" } else { "" };
    format!(
        "{user}
worker_processes {workers};
worker_rlimit_nofile 20000;
daemon off;
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/tmp; proxy_temp_path {folder}/tmp;
  fastcgi_temp_path {folder}/tmp; uwsgi_temp_path {folder}/tmp; scgi_temp_path {folder}/tmp;
  sendfile on;
  tcp_nopush on;
  tcp_nodelay on;
  keepalive_requests 100000000;
  keepalive_timeout 75s;
  open_file_cache max=10000 inactive=60s;
  open_file_cache_valid 60s;
  etag on;
  default_type image/jpeg;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    root {folder}/files;
    add_header Cache-Control \"public, max-age=31536000, immutable\";
  }}
}}
"
    )
}

fn proxy_configuration(target: &str, user: &str, listen: &str, folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "user {user};
worker_processes 1;
daemon off;
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {folder}/tmp; proxy_temp_path {folder}/tmp;
  fastcgi_temp_path {folder}/tmp; uwsgi_temp_path {folder}/tmp; scgi_temp_path {folder}/tmp;
  server {{
    listen {listen};
    location / {{ proxy_pass {target}; }}
  }}
}}
"
    )
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nginx_serves_stored_file() -> Result<()> {
        let nginx = Nginx::start(1)?;
        nginx.put("images/1", b"not a picture")?;
        let client = crate::client::Client::new(&nginx.url())?;
        let response = client.get("/images/1").await?;
        assert!(response.headers().contains_key("etag"));
        assert_eq!(response.bytes().await?, "not a picture");
        Ok(())
    }
}
