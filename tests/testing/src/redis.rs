//! Private Redis servers: a single one, or a cluster of three masters. They use free ports, store nothing
//! on disk, and end with this process.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    process::{Guarded, free_port},
    wait::blocking_eventually,
};

/// How long a server or a cluster may take to start. A busy machine takes seconds.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long a response may take.
const RESPONSE_LIMIT: Duration = Duration::from_secs(2);

/// The number of hash slots of a cluster.
const SLOTS: u16 = 16384;

/// The smallest number of masters that a Redis cluster can have.
const MASTERS: u16 = 3;

/// A server that keeps its port when it is killed and started again.
pub struct Redis {
    port: u16,
    /// The port for the other nodes of a cluster.
    bus: Option<u16>,
    /// `None` after it was killed.
    process: Option<Guarded>,
}

impl Redis {
    /// Starts an empty server, and waits until it answers. It evicts the least recently used keys above 64
    /// MiB.
    pub fn start() -> Result<Self> {
        Self::start_on(None)
    }

    fn start_on(bus: Option<u16>) -> Result<Self> {
        let mut redis = Self { port: free_port()?, bus, process: None };
        redis.start_again()?;
        Ok(redis)
    }

    /// Starts it on its port again after [`Redis::kill`]. It is then empty and not part of a cluster.
    pub fn start_again(&mut self) -> Result<()> {
        let folder = tempfile::Builder::new().prefix("safelight-redis-").tempdir()?.keep();
        let mut command = Command::new("redis-server");
        command.current_dir(&folder).args(["--port", &self.port.to_string()]);
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.args(["--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"]);
        if let Some(bus) = self.bus {
            command.args(["--cluster-enabled", "yes", "--cluster-port", &bus.to_string()]);
            command.args(["--cluster-node-timeout", "2000"]);
            command.args(["--cluster-require-full-coverage", "no"]);
        }
        let answering = || self.ask("PING").is_ok_and(|answer| answer == "PONG");
        let process = Guarded::serving("Redis", &mut command, &folder, START_LIMIT, answering)?;
        self.process = Some(process);
        Ok(())
    }

    /// Its URL for `SAFELIGHT_SHARED_CACHE_URL`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Its port, for proxies in front of it.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills it with SIGKILL, and waits until it has ended.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.signal("KILL")?;
            process.child().wait()?;
        }
        Ok(())
    }

    /// Freezes it: it keeps and accepts connections, but answers nothing.
    pub fn stop(&self) -> Result<()> {
        self.signal("STOP")
    }

    /// Continues it after [`Redis::stop`].
    pub fn resume(&self) -> Result<()> {
        self.signal("CONT")
    }

    fn signal(&self, signal: &str) -> Result<()> {
        self.process.as_ref().context("Redis was killed")?.signal(signal)
    }

    /// The number of its keys.
    pub fn keys(&self) -> Result<u64> {
        Ok(self.ask("DBSIZE")?.parse()?)
    }

    /// Sends a command; returns the response, or fails with the text of an error response.
    pub fn ask(&self, command: &str) -> Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(RESPONSE_LIMIT))?;
        stream.write_all(format!("{command}\r\n").as_bytes())?;
        let mut reader = BufReader::new(stream);
        let mut first = String::new();
        reader.read_line(&mut first)?;
        let (kind, rest) = first.trim_end().split_at_checked(1).context("a response")?;
        match kind {
            "+" | ":" => Ok(rest.to_owned()),
            "$" => {
                let mut text = vec![0; rest.parse()?];
                reader.read_exact(&mut text)?;
                Ok(String::from_utf8(text)?)
            }
            _ => bail!("{command}: {}", first.trim_end()),
        }
    }
}

/// Three masters that share the slots.
pub struct RedisCluster {
    /// The masters.
    pub masters: Vec<Redis>,
}

impl RedisCluster {
    /// Starts the masters, and waits until each of them reports that the cluster is complete.
    pub fn start() -> Result<Self> {
        let masters = (0..MASTERS)
            .map(|_| Redis::start_on(Some(free_port()?)))
            .collect::<Result<Vec<_>>>()?;
        for (number, master) in (0..MASTERS).zip(&masters) {
            let (first, next) = (number * (SLOTS / MASTERS), (number + 1) * (SLOTS / MASTERS));
            let last = if number + 1 == MASTERS { SLOTS } else { next } - 1;
            // Without a configuration epoch they would first have to agree on the newest view.
            master.ask(&format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1))?;
            master.ask(&format!("CLUSTER ADDSLOTSRANGE {first} {last}"))?;
        }
        for other in &masters[1..] {
            let bus = other.bus.context("a cluster has a bus")?;
            masters[0].ask(&format!("CLUSTER MEET 127.0.0.1 {} {bus}", other.port))?;
        }
        let is_complete = |master: &Redis| {
            let info = master.ask("CLUSTER INFO").unwrap_or_default();
            info.contains("cluster_state:ok") && info.contains(&format!("cluster_slots_ok:{SLOTS}"))
        };
        blocking_eventually(START_LIMIT, "the cluster is complete", || {
            Ok(masters.iter().all(is_complete))
        })?;
        Ok(Self { masters })
    }

    /// The URL of all masters for `SAFELIGHT_SHARED_CACHE_URL`.
    pub fn url(&self) -> String {
        let addresses: Vec<_> =
            self.masters.iter().map(|master| format!("127.0.0.1:{}", master.port)).collect();
        format!("redis-cluster://{}", addresses.join(","))
    }

    /// The number of keys of each master.
    pub fn keys(&self) -> Result<Vec<u64>> {
        self.masters.iter().map(Redis::keys).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_keeps_port_after_kill_and_freeze() -> Result<()> {
        let mut redis = Redis::start()?;
        redis.ask("SET key value")?;
        assert_eq!((redis.keys()?, redis.ask("GET key")?.as_str()), (1, "value"));
        redis.stop()?;
        assert!(redis.ask("PING").is_err(), "frozen");
        redis.resume()?;
        assert_eq!(redis.keys()?, 1);
        redis.kill()?;
        assert!(redis.ask("PING").is_err(), "killed");
        redis.start_again()?;
        assert_eq!(redis.keys()?, 0);
        Ok(())
    }

    #[test]
    fn cluster_masters_share_keys() -> Result<()> {
        let cluster = RedisCluster::start()?;
        for number in 0..100 {
            // Each master accepts its own keys and redirects the client for others.
            for master in &cluster.masters {
                let _ = master.ask(&format!("SET key-{number} value"));
            }
        }
        let keys = cluster.keys()?;
        assert_eq!(keys.iter().sum::<u64>(), 100);
        assert!(keys.iter().all(|&count| count > 0), "{keys:?}");
        Ok(())
    }
}
