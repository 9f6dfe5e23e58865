//! Varnish in front of any number of delivery nodes, with the configuration from `deploy/`.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};

use crate::{
    haproxy::is_ready,
    process::{Guarded, free_port},
};

/// The configuration that operators mount.
const SHIPPED: &str = include_str!("../../../deploy/varnish.vcl");

/// How long Varnish may take to compile its configuration and start.
const START_LIMIT: Duration = Duration::from_mins(1);

/// A running Varnish.
pub struct Varnish {
    _process: Guarded,
    port: u16,
}

impl Varnish {
    /// Starts Varnish on a free port in front of `nodes` (URLs such as `http://127.0.0.1:40001`), and waits
    /// until one of them is ready through it.
    pub fn start(nodes: &[&str]) -> Result<Self> {
        let port = free_port()?;
        let folder = tempfile::Builder::new().prefix("safelight-varnish-").tempdir()?.keep();
        let config = folder.join("varnish.vcl");
        fs::write(&config, configuration(nodes)?)?;
        let mut command = Command::new(binary());
        // No change of user, and no administration port.
        command.args(["-F", "-j", "none", "-T", "none", "-s", "malloc,128M"]);
        command.arg("-a").arg(format!("127.0.0.1:{port}"));
        command.arg("-n").arg(folder.join("work")).arg("-f").arg(&config);
        let ready = || is_ready(port);
        let process = Guarded::serving("Varnish", &mut command, &folder, START_LIMIT, ready)?;
        Ok(Self { _process: process, port })
    }

    /// Its URL, which is also the URL for `purge_urls`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// Debian installs servers in a directory that is not in the `PATH` of ordinary users.
fn binary() -> &'static str {
    let debian = "/usr/sbin/varnishd";
    if Path::new(debian).exists() { debian } else { "varnishd" }
}

/// The shipped configuration with other nodes: the first backend is the template for all.
fn configuration(nodes: &[&str]) -> Result<String> {
    let (before, rest) = SHIPPED.split_once("backend api_1 {").context("the first backend")?;
    let (template, rest) = rest.split_once("}\n").context("its end")?;
    let (_, after) = rest.split_once("backend api_2 {").context("the second backend")?;
    let (_, after) = after.split_once("}\n").context("its end")?;
    let mut backends = String::new();
    let mut members = Vec::new();
    for (number, url) in (1_usize..).zip(nodes) {
        let (host, port) =
            url.trim_start_matches("http://").split_once(':').context("host and port")?;
        let block = template
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
        let generated = configuration(&["http://127.0.0.1:1", "http://127.0.0.1:2"])?;
        let differing: Vec<_> = generated.lines().filter(|line| !SHIPPED.contains(line)).collect();
        assert_eq!(
            differing,
            [
                "  .host = \"127.0.0.1\";",
                "  .port = \"1\";",
                "  .host = \"127.0.0.1\";",
                "  .port = \"2\";"
            ]
        );
        // Except for the empty line between the two backends.
        assert_eq!(generated.lines().count() + 1, SHIPPED.lines().count());
        assert!(configuration(&["http://127.0.0.1:1"])?.matches("add_backend").count() == 1);
        Ok(())
    }
}
