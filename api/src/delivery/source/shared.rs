//! The third tier: a Redis or Valkey that all nodes share, and by which one of them reads the store
//! for all.

use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::{Cmd, FromRedisValue, RedisResult};
use safelight_domain::{CacheKey, ContentHash};
use safelight_shared_cache::{SharedCache, object_key};
use uuid::Uuid;

use super::Content;

/// The largest object that is shared: larger ones cost the engine more than the store.
const MAX_OBJECT_BYTES: u64 = 1 << 20;

/// How long an object stays at most. How many there are is the engine's to bound.
const KEEP: Duration = Duration::from_hours(24);

/// How long a turn to read an object for all lasts after a sign of life: what a node that dies costs the
/// others.
const TURN: Duration = Duration::from_secs(1);

/// How often a node that reads gives one. Two may be lost.
const RENEW: Duration = Duration::from_millis(300);

/// How long to wait for the node whose turn it is, before reading oneself: longer than any read of an object
/// of this size that comes to a good end.
const WAIT_FOR_TURN: Duration = Duration::from_secs(8);

/// Renews a turn, if it is still the one that was given. `ARGV`: its token, milliseconds.
const RENEW_SCRIPT: &str = "\
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0";

/// Ends a turn, if it is still the one that was given. `ARGV`: its token.
const END_SCRIPT: &str = "\
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0";

/// Between two looks for what another node is reading.
const LOOK: Duration = Duration::from_millis(10);

/// The engine.
pub struct Shared {
    cache: SharedCache,
}

/// What the engine says of an object that is wanted.
pub enum Turn {
    /// Here it is.
    Found(Bytes),
    /// It is not here, and this node is the one to read it.
    Ours(Token),
    /// Another node took too long.
    Without,
}

/// By what a turn is known from the next one, which another node may have.
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

    /// The object, or whose turn it is to read it. Waits while that is another node's.
    pub async fn look(&self, object: &Content) -> RedisResult<Turn> {
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
                // Whoever had the turn before may have ended it between our two questions.
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
                // Without it the turn runs out, and another node reads as well: nothing worse.
                let _ = self.run::<()>(renew.arg(milliseconds(TURN))).await;
            }
        };
        tokio::select! {
            done = work => done,
            never = renew => never,
        }
    }

    /// Gives everybody what this node has read in its turn.
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

    /// What is there under the object's name, if it is right.
    async fn get(&self, object: &Content) -> RedisResult<Option<Bytes>> {
        let found = match self.run(redis::cmd("GET").arg(object_key(&object.cached))).await {
            // Somebody else's. It says nothing of the engine, and gives way to the object.
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
