//! Varnish before any number of delivery nodes, with the configuration that `deploy/` ships.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};

use crate::{
    haproxy::answers,
    process::{Guarded, free_port},
};

/// What an operator mounts.
const SHIPPED: &str = include_str!("../../../deploy/varnish.vcl");

/// How long Varnish may take until its configuration is compiled and it serves.
const START: Duration = Duration::from_mins(1);

/// A running Varnish.
pub struct Varnish {
    _process: Guarded,
    port: u16,
}

impl Varnish {
    /// Starts Varnish on a free port before `nodes` (URLs such as `http://127.0.0.1:40001`), and
    /// waits until one of them answers through it.
    pub fn start(nodes: &[&str]) -> Result<Self> {
        let port = free_port()?;
        let folder = tempfile::Builder::new().prefix("safelight-varnish-").tempdir()?.keep();
        let config = folder.join("varnish.vcl");
        fs::write(&config, configuration(nodes)?)?;
        let mut command = Command::new(binary());
        // Its processes run as whoever we are, and nobody administers it.
        command.args(["-F", "-j", "none", "-T", "none", "-s", "malloc,128M"]);
        command.arg("-a").arg(format!("127.0.0.1:{port}"));
        command.arg("-n").arg(folder.join("work")).arg("-f").arg(&config);
        let answering = || answers(port);
        let process = Guarded::serving("Varnish", &mut command, &folder, START, answering)?;
        Ok(Self { _process: process, port })
    }

    /// Where it listens; also what `purge_urls` names.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// Debian keeps servers where an ordinary user's path does not lead.
fn binary() -> &'static str {
    let debian = "/usr/sbin/varnishd";
    if Path::new(debian).exists() { debian } else { "varnishd" }
}

/// The shipped configuration with other nodes: the first backend is the pattern for all.
fn configuration(nodes: &[&str]) -> Result<String> {
    let (before, rest) = SHIPPED.split_once("backend api_1 {").context("the first backend")?;
    let (pattern, rest) = rest.split_once("}\n").context("its end")?;
    let (_, after) = rest.split_once("backend api_2 {").context("the second backend")?;
    let (_, after) = after.split_once("}\n").context("its end")?;
    let mut backends = String::new();
    let mut members = Vec::new();
    for (number, url) in (1_usize..).zip(nodes) {
        let (host, port) =
            url.trim_start_matches("http://").split_once(':').context("host and port")?;
        let block = pattern
            .replace("\"api-1\"", &format!("{host:?}"))
            .replace("\"8080\"", &format!("{port:?}"));
        backends.extend(["backend api_", &number.to_string(), " {", &block, "}\n"]);
        members.push(format!("  nodes.add_backend(api_{number});"));
    }
    let after = after
        .replace("  nodes.add_backend(api_1);\n  nodes.add_backend(api_2);", &members.join("\n"));
    Ok([before, &backends, &after].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_changes_only_addresses() -> Result<()> {
        let ours = configuration(&["http://127.0.0.1:1", "http://127.0.0.1:2"])?;
        let differing: Vec<_> = ours.lines().filter(|line| !SHIPPED.contains(line)).collect();
        assert_eq!(
            differing,
            [
                "  .host = \"127.0.0.1\";",
                "  .port = \"1\";",
                "  .host = \"127.0.0.1\";",
                "  .port = \"2\";"
            ]
        );
        // But for the empty line between the two backends.
        assert_eq!(ours.lines().count() + 1, SHIPPED.lines().count());
        assert!(configuration(&["http://127.0.0.1:1"])?.matches("add_backend").count() == 1);
        Ok(())
    }
}
