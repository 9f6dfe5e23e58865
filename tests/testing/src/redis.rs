//! Private Redis servers: one, or a cluster of three masters. Free ports, nothing on disk, gone with
//! this process.

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

/// Until a server answers, or a cluster has agreed. A machine under full load takes seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(2);

/// What there is to hash to, over all masters of a cluster.
const SLOTS: u16 = 16384;

/// Masters of a cluster: Redis makes none of fewer.
const MASTERS: u16 = 3;

/// A server on a port that it keeps, whatever is done to it.
pub struct Redis {
    port: u16,
    /// Where the nodes of a cluster speak to each other.
    bus: Option<u16>,
    /// `None` once it was killed.
    process: Option<Guarded>,
}

impl Redis {
    /// Starts an empty server that forgets what was used least when its 64 MiB are full, and waits
    /// until it answers.
    pub fn start() -> Result<Self> {
        Self::start_on(None)
    }

    fn start_on(bus: Option<u16>) -> Result<Self> {
        let mut redis = Self { port: free_port()?, bus, process: None };
        redis.start_again()?;
        Ok(redis)
    }

    /// Starts it on its port again after [`Redis::kill`]: empty, and if it was part of a cluster
    /// it no longer is.
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
        let process = Guarded::serving("Redis", &mut command, &folder, PATIENCE, answering)?;
        self.process = Some(process);
        Ok(())
    }

    /// Its address, as `SAFELIGHT_SHARED_CACHE_URL` wants it.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The port, for proxies before it.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it as `kill -9` does, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.signal("KILL")?;
            process.child().wait()?;
        }
        Ok(())
    }

    /// Freezes it: connections stay open and are taken, nothing is answered.
    pub fn stop(&self) -> Result<()> {
        self.signal("STOP")
    }

    /// Lets it go on after [`Redis::stop`].
    pub fn resume(&self) -> Result<()> {
        self.signal("CONT")
    }

    fn signal(&self, signal: &str) -> Result<()> {
        self.process.as_ref().context("Redis was killed")?.signal(signal)
    }

    /// How many keys it holds.
    pub fn keys(&self) -> Result<u64> {
        Ok(self.ask("DBSIZE")?.parse()?)
    }

    /// Sends a command of plain words; gives its answer, fails with an error's text.
    pub fn ask(&self, command: &str) -> Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(format!("{command}\r\n").as_bytes())?;
        let mut answers = BufReader::new(stream);
        let mut first = String::new();
        answers.read_line(&mut first)?;
        let (kind, rest) = first.trim_end().split_at_checked(1).context("an answer")?;
        match kind {
            "+" | ":" => Ok(rest.to_owned()),
            "$" => {
                let mut text = vec![0; rest.parse()?];
                answers.read_exact(&mut text)?;
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
    /// Starts the masters and waits until each of them says that the cluster is whole.
    pub fn start() -> Result<Self> {
        let masters = (0..MASTERS)
            .map(|_| Redis::start_on(Some(free_port()?)))
            .collect::<Result<Vec<_>>>()?;
        for (number, master) in (0..MASTERS).zip(&masters) {
            let (first, next) = (number * (SLOTS / MASTERS), (number + 1) * (SLOTS / MASTERS));
            let last = if number + 1 == MASTERS { SLOTS } else { next } - 1;
            // Otherwise they would have to agree first on whose view is the newest.
            master.ask(&format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1))?;
            master.ask(&format!("CLUSTER ADDSLOTSRANGE {first} {last}"))?;
        }
        for other in &masters[1..] {
            let bus = other.bus.context("a cluster has a bus")?;
            masters[0].ask(&format!("CLUSTER MEET 127.0.0.1 {} {bus}", other.port))?;
        }
        let whole = |master: &Redis| {
            let about = master.ask("CLUSTER INFO").unwrap_or_default();
            about.contains("cluster_state:ok")
                && about.contains(&format!("cluster_slots_ok:{SLOTS}"))
        };
        blocking_eventually(PATIENCE, "the cluster is complete", || Ok(masters.iter().all(whole)))?;
        Ok(Self { masters })
    }

    /// All masters, as `SAFELIGHT_SHARED_CACHE_URL` wants them.
    pub fn url(&self) -> String {
        let places: Vec<_> =
            self.masters.iter().map(|master| format!("127.0.0.1:{}", master.port)).collect();
        format!("redis-cluster://{}", places.join(","))
    }

    /// How many keys each master holds.
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
        assert!(redis.ask("PING").is_err(), "gone");
        redis.start_again()?;
        assert_eq!(redis.keys()?, 0);
        Ok(())
    }

    #[test]
    fn cluster_masters_share_keys() -> Result<()> {
        let cluster = RedisCluster::start()?;
        for number in 0..100 {
            // Each takes its own and sends the client on for the others.
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
