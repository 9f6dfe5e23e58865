//! A private `RabbitMQ` node: own ports, own `epmd`, own cookie, own folder.

use std::{
    env,
    fs::{self, File},
    io::{Read, Seek, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    process::{Guarded, free_port},
    wait::blocking_eventually,
};

/// Debian's folder of the plain scripts; those in `/usr/sbin` insist on the system's user.
const BIN: &str = "/usr/lib/rabbitmq/bin";
const HINT: &str = "RabbitMQ is not installed; hint: apt-get install rabbitmq-server \
                    (a private node is started; the system's may stay off)";
/// Virtual hosts that exist from the start: making one later takes a second of `rabbitmqctl`.
const VHOSTS: usize = 40;
/// A fresh node greets after about 5 s on two idle cores.
const START_DEADLINE: Duration = Duration::from_secs(90);
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// The environment variable with the [`Address`] of a node that several processes share, as JSON.
pub const SHARED_NODE: &str = "SAFELIGHT_TEST_RABBITMQ";

/// A node that ends with its folder when this is dropped, or when this process dies.
pub struct RabbitMq {
    /// Before `epmd` in this order: dropped first.
    node: Option<Guarded>,
    /// Lives as long as this value, and its guard owns the folder with everything in it. `None`: another
    /// process started the node.
    _epmd: Option<Guarded>,
    address: Address,
}

/// Where a node is, and how `rabbitmqctl` finds it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Address {
    folder: PathBuf,
    name: String,
    port: u16,
    dist_port: u16,
    epmd_port: u16,
}

impl RabbitMq {
    /// Starts a fresh node and waits until it takes connections.
    pub fn start() -> Result<Self> {
        ensure!(Path::new(BIN).join("rabbitmq-server").exists(), HINT);
        let folder = tempfile::Builder::new().prefix("safelight-rabbitmq-").tempdir()?.keep();
        let (port, dist_port, epmd_port) = (free_port()?, free_port()?, free_port()?);
        // Without -daemon it stays in the foreground, in the guarded group.
        let mut epmd = Command::new("epmd");
        epmd.args(["-address", "127.0.0.1", "-port", &epmd_port.to_string()]).stdin(Stdio::null());
        quiet(&mut epmd, &folder.join("epmd.log"))?;
        let epmd = Guarded::spawn(&mut epmd, "TERM", &folder).context(HINT)?;
        let name = format!("safelight-{}-{port}@localhost", std::process::id());
        let address = Address { folder, name, port, dist_port, epmd_port };
        let mut this = Self { node: None, _epmd: Some(epmd), address };
        this.configure()?;
        this.start_node()?;
        Ok(this)
    }

    /// The node that tests share; each takes a [`RabbitMq::fresh_vhost`]. It is that of `with-engines`,
    /// or otherwise the first caller in this process starts it, while the others wait.
    pub fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<RabbitMq, String>> = OnceLock::new();
        let open = || match env::var(SHARED_NODE) {
            Ok(address) => {
                let address = serde_json::from_str(&address).context(SHARED_NODE)?;
                Ok(Self { node: None, _epmd: None, address })
            }
            Err(_) => Self::start(),
        };
        let shared =
            SHARED.get_or_init(|| open().map_err(|error: anyhow::Error| format!("{error:#}")));
        shared.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// For [`SHARED_NODE`].
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The `amqp://` URL of a virtual host.
    pub fn url(&self, vhost: &str) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/{vhost}", self.address.port)
    }

    /// The URL of a virtual host that nobody else uses.
    pub fn fresh_vhost(&self) -> Result<String> {
        let number = self.next_number()?;
        let vhost = vhost_name(number);
        if number >= VHOSTS {
            self.ctl(&["add_vhost", &vhost])?;
            self.ctl(&["set_permissions", "-p", &vhost, "guest", ".*", ".*", ".*"])?;
        }
        Ok(self.url(&vhost))
    }

    /// Counts the virtual hosts that are in use, over all processes that share the node.
    fn next_number(&self) -> Result<usize> {
        let path = self.address.folder.join("vhosts-in-use");
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        file.lock()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let number = if text.is_empty() { 0 } else { text.parse()? };
        file.rewind()?;
        write!(file, "{}", number + 1)?;
        Ok(number)
    }

    /// The port it takes connections on; stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.address.port
    }

    /// Starts the node again after [`RabbitMq::stop`] or [`RabbitMq::kill`], on the same ports and
    /// data, and waits until it takes connections.
    pub fn start_node(&mut self) -> Result<()> {
        let mut server = self.command("rabbitmq-server");
        quiet(&mut server, &self.address.folder.join("out.log"))?;
        // KILL, because nobody needs the data of a node that is dropped.
        let run = self.address.folder.join("run");
        fs::create_dir_all(&run)?;
        let mut node = Guarded::spawn(&mut server, "KILL", &run)?;
        blocking_eventually(START_DEADLINE, "RabbitMQ answers", || {
            if let Some(status) = node.child().try_wait()? {
                bail!("RabbitMQ ended with {status}");
            }
            Ok(greets(self.address.port))
        })
        .with_context(|| self.log())?;
        self.node = Some(node);
        Ok(())
    }

    /// Stops the node as an operator would; connections are closed with a message.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut node) = self.node.take() else { return Ok(()) };
        // To the script alone, which passes it on; the node dies untidily if its helpers go first.
        let status = Command::new("kill").args(["-s", "TERM", &node.id().to_string()]).status()?;
        ensure!(status.success(), "cannot signal RabbitMQ");
        node.wait(STOP_DEADLINE).map(drop).with_context(|| self.log())
    }

    /// Ends the node as a power cut would, but for what the kernel has yet to write.
    pub fn kill(&mut self) -> Result<()> {
        let Some(node) = self.node.take() else { return Ok(()) };
        node.signal("KILL")
    }

    /// Sends the node's process group a signal by name, such as `STOP` and `CONT`.
    pub fn signal(&self, signal: &str) -> Result<()> {
        self.node.as_ref().context("the node is stopped")?.signal(signal)
    }

    /// Runs `rabbitmqctl` and returns what it prints. Takes about a second.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        let output = self.command("rabbitmqctl").arg("-q").args(args).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let talk = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "rabbitmqctl {args:?}: {text}{talk}");
        Ok(text)
    }

    /// How many messages the queues of a virtual host hold, those in consumers' hands included.
    /// `url` is that of [`RabbitMq::fresh_vhost`].
    pub fn held(&self, url: &str) -> Result<u64> {
        let vhost = url.rsplit('/').next().context("a virtual host")?;
        let queues = ["list_queues", "--no-table-headers", "-p", vhost, "messages"];
        let counts = self.ctl(&queues)?;
        counts.split_whitespace().map(|count| Ok(count.parse::<u64>()?)).sum()
    }

    /// One of `RabbitMQ`'s scripts, pointed at this node alone.
    fn command(&self, script: &str) -> Command {
        let mut command = Command::new(Path::new(BIN).join(script));
        let path = |name: &str| self.address.folder.join(name);
        command
            .stdin(Stdio::null())
            .env("HOME", path("home"))
            .env("LC_ALL", "C.UTF-8")
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.address.epmd_port.to_string())
            .env("RABBITMQ_NODENAME", &self.address.name)
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.address.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.address.dist_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", path("mnesia"))
            .env("RABBITMQ_LOG_BASE", path("log"))
            .env("RABBITMQ_LOGS", path("node.log"))
            .env("RABBITMQ_PID_FILE", path("pid"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", path("advanced.config"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", path("generated"))
            // No spinning: the cores belong to the tests.
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+sbwt none +sbwtdcpu none +sbwtdio none \
                 -kernel inet_dist_use_interface {127,0,0,1}",
            )
            .env("RABBITMQ_CTL_ERL_ARGS", "");
        command
    }

    fn configure(&self) -> Result<()> {
        for name in ["home", "mnesia", "log", "generated"] {
            fs::create_dir_all(self.address.folder.join(name))?;
        }
        fs::write(self.address.folder.join("enabled_plugins"), "[].")?;
        // How old the counts of `list_queues` may be, in ms; 5 s would make every audit wait.
        let ticks = "[{rabbit, [{quorum_tick_interval, 500}]}].";
        fs::write(self.address.folder.join("advanced.config"), ticks)?;
        let definitions = self.address.folder.join("definitions.json");
        fs::write(&definitions, definitions_json().to_string())?;
        let conf = format!(
            "listeners.tcp.1 = 127.0.0.1:{}\n\
             load_definitions = {}\n\
             vm_memory_high_watermark.absolute = 1GB\n\
             disk_free_limit.absolute = 50MB\n\
             log.file.level = warning\n",
            self.address.port,
            definitions.display(),
        );
        fs::write(self.address.folder.join("rabbitmq.conf"), conf)?;
        Ok(())
    }

    /// The end of what the node said, for error messages.
    fn log(&self) -> String {
        ["out.log", "node.log"]
            .iter()
            .filter_map(|name| fs::read_to_string(self.address.folder.join(name)).ok())
            .flat_map(|text| {
                let lines: Vec<_> = text.lines().rev().take(20).map(str::to_owned).collect();
                lines.into_iter().rev()
            })
            .collect::<Vec<_>>()
            .join("\n")
    }
}

fn vhost_name(number: usize) -> String {
    format!("test{number}")
}

/// What the node holds when it first starts.
fn definitions_json() -> serde_json::Value {
    let names: Vec<_> =
        std::iter::once("/".to_owned()).chain((0..VHOSTS).map(vhost_name)).collect();
    let permission = |vhost: &String| json!({ "user": "guest", "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*" });
    json!({
        "users": [{ "name": "guest", "password": "guest", "tags": "administrator" }],
        "vhosts": names.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>(),
        "permissions": names.iter().map(permission).collect::<Vec<_>>(),
    })
}

/// Whether a broker speaks AMQP there: to any other protocol's header it answers with its own.
fn greets(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let limit = Duration::from_secs(1);
    let greeting = || -> std::io::Result<[u8; 4]> {
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"HELO0000")?;
        let mut greeting = [0; 4];
        stream.read_exact(&mut greeting)?;
        Ok(greeting)
    };
    greeting().is_ok_and(|greeting| &greeting == b"AMQP")
}

/// Appends both outputs to a file.
fn quiet(command: &mut Command, log: &Path) -> Result<()> {
    let file = fs::OpenOptions::new().create(true).append(true).open(log)?;
    command.stdout(file.try_clone()?).stderr(file);
    Ok(())
}
