//! The third tier: a Redis or Valkey that all nodes share. It also elects the one node that reads an object from
//! the store for all.

use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::{Cmd, FromRedisValue, RedisResult};
use safelight_domain::{CacheKey, ContentHash};
use safelight_shared_cache::{SharedCache, object_key};
use uuid::Uuid;

use super::stored::StoredObject;

/// The largest object that is shared: larger ones cost it more than the store.
const MAX_OBJECT_BYTES: u64 = 1 << 20;

/// How long an object stays at most. The shared cache bounds how many there are.
const KEEP: Duration = Duration::from_hours(24);

/// How long a turn to read an object for all nodes lasts unless renewed: the delay that a node which dies causes.
const TURN: Duration = Duration::from_secs(1);

/// How often a node renews its turn. Two renewals may be lost.
const RENEW: Duration = Duration::from_millis(300);

/// How long to wait for another node's turn before reading the store as well: longer than any successful read of
/// an object of this size.
const WAIT_FOR_TURN: Duration = Duration::from_secs(8);

/// Renews a turn, if it is still the one that was given. `ARGV`: its token, milliseconds.
const RENEW_SCRIPT: &str = "\
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0";

/// Ends a turn, if it is still the one that was given. `ARGV`: its token.
const END_SCRIPT: &str = "\
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0";

/// Time between two checks for an object that another node is reading.
const LOOK: Duration = Duration::from_millis(10);

/// The shared cache, as a tier.
pub struct Shared {
    cache: SharedCache,
}

/// The shared cache's answer to a request for an object.
pub enum Turn {
    /// It has the object.
    Found(Bytes),
    /// It does not have it, and this node is to read it.
    Ours(Token),
    /// Another node took too long.
    Without,
}

/// Identifies a turn, so that a node never ends the next one.
pub struct Token(String);

impl Shared {
    /// Over the cache that nodes share.
    pub const fn new(cache: SharedCache) -> Self {
        Self { cache }
    }

    /// Whether an object of this size is shared.
    pub const fn takes(bytes: u64) -> bool {
        bytes <= MAX_OBJECT_BYTES
    }

    /// The object, or the turn to read it. Waits while another node has the turn.
    pub async fn look(&self, object: &StoredObject) -> RedisResult<Turn> {
        let deadline = Instant::now() + WAIT_FOR_TURN;
        loop {
            if let Some(found) = self.get(object).await? {
                return Ok(Turn::Found(found));
            }
            let token = Token(Uuid::new_v4().simple().to_string());
            let mut lock = redis::cmd("SET");
            lock.arg(turn_key(&object.cached))
                .arg(&token.0)
                .arg("NX")
                .arg("PX")
                .arg(milliseconds(TURN));
            if self.run::<Option<()>>(&lock).await?.is_some() {
                // The node that had the turn before may have ended it between the two commands.
                return Ok(match self.get(object).await? {
                    Some(found) => {
                        self.end_turn(&object.cached, &token).await?;
                        Turn::Found(found)
                    }
                    None => Turn::Ours(token),
                });
            }
            if Instant::now() > deadline {
                return Ok(Turn::Without);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Does `work` in this node's turn, which lasts for as long as that takes.
    pub async fn in_turn<T>(
        &self,
        object: &CacheKey,
        token: &Token,
        work: impl Future<Output = T>,
    ) -> T {
        let renew = async {
            loop {
                tokio::time::sleep(RENEW).await;
                let mut renew = redis::cmd("EVAL");
                renew.arg(RENEW_SCRIPT).arg(1).arg(turn_key(object)).arg(&token.0);
                // If it fails, the turn expires and another node reads as well, which does no harm.
                let _ = self.run::<()>(renew.arg(milliseconds(TURN))).await;
            }
        };
        tokio::select! {
            done = work => done,
            never = renew => never,
        }
    }

    /// Stores what this node has read in its turn.
    pub async fn give(&self, object: &CacheKey, content: &Bytes, token: &Token) -> RedisResult<()> {
        let mut set = redis::cmd("SET");
        set.arg(object_key(object)).arg(content.as_ref()).arg("EX").arg(KEEP.as_secs());
        let given = self.run::<()>(&set).await;
        self.end_turn(object, token).await?;
        given
    }

    /// Lets another node try.
    pub async fn end_turn(&self, object: &CacheKey, token: &Token) -> RedisResult<()> {
        let mut end = redis::cmd("EVAL");
        self.run(end.arg(END_SCRIPT).arg(1).arg(turn_key(object)).arg(&token.0)).await
    }

    /// The object, if it is there and its hash is right.
    async fn get(&self, object: &StoredObject) -> RedisResult<Option<Bytes>> {
        let found = match self.run(redis::cmd("GET").arg(object_key(&object.cached))).await {
            // A key of another application. It is no failure of the cache, and is overwritten by the object.
            Err(error) if error.code() == Some("WRONGTYPE") => None,
            found => found?,
        };
        let right = found.filter(|content: &Vec<u8>| ContentHash::of(content) == object.sha256);
        Ok(right.map(Bytes::from))
    }

    async fn run<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        self.cache.run(command).await
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn turn_key(object: &CacheKey) -> String {
    format!("safelight:{{{object}}}:turn")
}
