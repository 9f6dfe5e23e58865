//! HAProxy in front of any number of servers, with the configuration from `deploy/`.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::Result;

use crate::process::{Guarded, free_port};

/// The configuration that `compose.yaml` mounts.
const SHIPPED: &str = include_str!("../../../deploy/haproxy.cfg");

/// The configuration that `docs/deploy.md` uses on a public address.
const PUBLIC: &str = include_str!("../../../deploy/haproxy-public.cfg");

/// The line by which nodes learn that a request came through a proxy.
const FORWARD: &str = "  option forwardfor\n";

/// How long HAProxy may take to find its backends.
const START_LIMIT: Duration = Duration::from_secs(30);

/// HAProxy with the configuration for public addresses.
pub struct PublicHaProxy {
    _process: Guarded,
    plain: u16,
    tls: u16,
}

impl PublicHaProxy {
    /// Starts it on free ports in front of `backend` (a URL) and waits until it listens. The PEM file
    /// `identity` contains a certificate and its key.
    pub fn start(backend: &str, identity: &Path) -> Result<Self> {
        let (plain, tls) = (free_port()?, free_port()?);
        let folder = tempfile::Builder::new().prefix("safelight-haproxy-").tempdir()?.keep();
        let config = folder.join("haproxy.cfg");
        fs::write(&config, public_configuration(plain, tls, backend, identity))?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&config);
        let listening = || TcpStream::connect(("127.0.0.1", tls)).is_ok();
        let process = Guarded::serving("HAProxy", &mut command, &folder, START_LIMIT, listening)?;
        Ok(Self { _process: process, plain, tls })
    }

    /// The URL without TLS.
    pub fn plain_url(&self) -> String {
        format!("http://localhost:{}", self.plain)
    }

    /// The URL with TLS.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.tls)
    }
}

/// The public configuration with other addresses, for the user that runs the test.
fn public_configuration(plain: u16, tls: u16, backend: &str, identity: &Path) -> String {
    PUBLIC
        .replace("bind :80\n", &format!("bind 127.0.0.1:{plain}\n"))
        .replace("bind :443 ", &format!("bind 127.0.0.1:{tls} "))
        .replace("https://img.example.org ", &format!("https://localhost:{tls} "))
        .replace("/etc/haproxy/safelight.pem", &identity.to_string_lossy())
        .replace("127.0.0.1:8080", backend.trim_start_matches("http://"))
        .replace("  user haproxy\n  group haproxy\n", "")
}

/// A running HAProxy.
pub struct HaProxy {
    process: Guarded,
    port: u16,
}

impl HaProxy {
    /// Starts HAProxy on a free port in front of `backends` (URLs such as `http://127.0.0.1:40001`), and
    /// waits until one of them is ready through it. Does not tell the nodes that requests come through a proxy:
    /// most fleets of tests have no keys, and would reject them.
    pub fn start(backends: &[&str]) -> Result<Self> {
        let configure = |port| configuration(port, backends).replace(FORWARD, "");
        Self::start_with(configure)
    }

    /// Like [`HaProxy::start`], with everything that the shipped configuration says.
    pub fn start_as_shipped(backends: &[&str]) -> Result<Self> {
        Self::start_with(|port| configuration(port, backends))
    }

    fn start_with(configure: impl FnOnce(u16) -> String) -> Result<Self> {
        let port = free_port()?;
        let folder = tempfile::Builder::new().prefix("safelight-haproxy-").tempdir()?.keep();
        let config = folder.join("haproxy.cfg");
        fs::write(&config, configure(port))?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&config);
        let ready = || is_ready(port);
        let process = Guarded::serving("HAProxy", &mut command, &folder, START_LIMIT, ready)?;
        Ok(Self { process, port })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Whether it has noticed that no server of `backend` is ready.
    pub fn has_lost(&self, backend: &str) -> Result<bool> {
        let log = fs::read_to_string(self.process.folder().join("log"))?;
        Ok(log.contains(&format!("{backend} has no server available")))
    }
}

/// The shipped configuration with other addresses: replaces each block of `server` lines.
fn configuration(port: u16, backends: &[&str]) -> String {
    let mut lines = Vec::new();
    let mut in_servers = false;
    for line in SHIPPED.lines() {
        let keyword = line.split_whitespace().next();
        match keyword {
            Some("bind") => lines.push(format!("  bind 127.0.0.1:{port}")),
            Some("server") if in_servers => {}
            Some("server") => {
                let server = |(number, url): (usize, &&str)| {
                    format!("  server api-{number} {}", url.trim_start_matches("http://"))
                };
                lines.extend((1..).zip(backends).map(server));
            }
            _ => lines.push(line.to_owned()),
        }
        in_servers = keyword == Some("server");
    }
    lines.join("\n") + "\n"
}

/// Whether a node behind the port reports that it is ready.
pub(crate) fn is_ready(port: u16) -> bool {
    let request = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        Ok(response.split(' ').nth(1) == Some("200"))
    };
    request().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_changes_only_addresses() {
        let generated = configuration(1234, &["http://127.0.0.1:1", "http://127.0.0.1:2"]);
        let differing = |from: &str, to: &str| {
            from.lines().filter(|line| !to.contains(line)).map(str::to_owned).collect::<Vec<_>>()
        };
        let servers = ["  server api-1 127.0.0.1:1", "  server api-2 127.0.0.1:2"];
        let backends = SHIPPED.matches("\nbackend ").count();
        let expected = ["  bind 127.0.0.1:1234"].into_iter().chain(servers.repeat(backends));
        assert_eq!(differing(&generated, SHIPPED), expected.collect::<Vec<_>>());
        assert_eq!(generated.lines().count(), SHIPPED.lines().count());
    }
}
