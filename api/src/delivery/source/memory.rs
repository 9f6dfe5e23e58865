//! The first tier: whole objects in memory, bounded in bytes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use moka::{policy::EvictionPolicy, sync::Cache};
use safelight_domain::CacheKey;

/// The largest object that is ever held in memory as a whole.
const MAX_OBJECT_BYTES: u64 = 8 << 20;

/// Of the bound, the part for the newest objects, regardless of how often they were used.
const RECENT_SHARE: u64 = 8;

/// Of the bound, the part for objects on their way from the store or to clients. While it is full, objects are
/// streamed.
const TRANSIT_SHARE: u64 = 5;

/// Beyond the bound, memory for small objects that many slow clients are fetching.
const RESERVE: u64 = 64 << 20;

/// What an entry costs beside its bytes.
const ENTRY_BYTES: u64 = 256;

/// Objects by their owner and their content.
///
/// Objects in frequent use stay (`TinyLFU`), so a scan over everything does not flush them. The newest are kept
/// for a moment in any case, so that requests in quick succession share one read even while the cache is full.
pub struct Memory {
    frequent: Cache<CacheKey, Bytes>,
    recent: Cache<CacheKey, Bytes>,
    bound: u64,
    /// Bytes of all objects that are in memory, cached or on their way.
    live: Arc<AtomicU64>,
}

impl Memory {
    /// At most `bound` bytes, on their way or kept.
    pub fn new(bound: u64) -> Self {
        let weigh = |_: &CacheKey, bytes: &Bytes| {
            u32::try_from(bytes.len() as u64 + ENTRY_BYTES).unwrap_or(u32::MAX)
        };
        let (recent, transit) = (bound / RECENT_SHARE, bound / TRANSIT_SHARE);
        let frequent = bound - recent - transit;
        Self {
            frequent: Cache::builder().max_capacity(frequent).weigher(weigh).build(),
            recent: Cache::builder()
                .max_capacity(recent)
                .weigher(weigh)
                .eviction_policy(EvictionPolicy::lru())
                .build(),
            bound,
            live: Arc::default(),
        }
    }

    /// The object, if it is here.
    pub fn get(&self, object: &CacheKey) -> Option<Bytes> {
        self.frequent.get(object).or_else(|| self.recent.get(object))
    }

    /// Whether an object of this size is to be read into memory as a whole, rather than streamed.
    pub fn takes(&self, bytes: u64) -> bool {
        let bound = if bytes <= Self::small() { self.bound + RESERVE } else { self.bound };
        bytes <= self.largest() && self.live() + bytes <= bound
    }

    /// Up to here an object is held in memory like any buffer, unless very many are.
    pub const fn small() -> u64 {
        64 << 10
    }

    fn largest(&self) -> u64 {
        (self.bound / (RECENT_SHARE * 2)).clamp(Self::small(), MAX_OBJECT_BYTES)
    }

    /// Reserves memory for an object that will be read.
    pub fn reserve(&self, bytes: u64) -> Reservation {
        self.live.fetch_add(bytes, Ordering::Relaxed);
        Reservation { bytes, live: self.live.clone() }
    }

    /// Keeps an object; returns its bytes, whose memory is reserved for as long as they are held.
    pub fn keep(&self, object: CacheKey, bytes: Bytes, reserved: Reservation) -> Bytes {
        let bytes = Bytes::from_owner(Reserved { bytes, _reserved: reserved });
        if self.bound > 0 {
            self.recent.insert(object, bytes.clone());
            self.frequent.insert(object, bytes.clone());
        }
        if bytes.len() as u64 > Self::small() {
            // Otherwise evicted objects stay until some dozens more have come.
            self.recent.run_pending_tasks();
            self.frequent.run_pending_tasks();
        }
        bytes
    }

    /// Drops an object. A response that is sending it holds its bytes until then.
    pub fn forget(&self, object: &CacheKey) {
        self.recent.invalidate(object);
        self.frequent.invalidate(object);
    }

    /// Bytes of all objects in memory.
    pub fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }
}

/// Memory that is reserved until this is dropped.
pub struct Reservation {
    bytes: u64,
    live: Arc<AtomicU64>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.live.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes with their reservation.
struct Reserved {
    bytes: Bytes,
    _reserved: Reservation,
}

impl AsRef<[u8]> for Reserved {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use safelight_domain::{ContentHash, Owner};

    use super::*;

    const KIB: usize = 1024;

    fn object(number: u32) -> (CacheKey, Bytes) {
        let bytes = Bytes::from(number.to_le_bytes().repeat(4 * KIB));
        (CacheKey::of(&Owner::local(), &ContentHash::of(&bytes)), bytes)
    }

    fn keep(memory: &Memory, (key, bytes): (CacheKey, Bytes)) -> Bytes {
        memory.keep(key, bytes.clone(), memory.reserve(bytes.len() as u64))
    }

    fn settle(memory: &Memory) {
        memory.frequent.run_pending_tasks();
        memory.recent.run_pending_tasks();
    }

    #[test]
    fn scan_does_not_evict_frequently_used_objects() {
        let memory = Memory::new(64 * 16 * KIB as u64);
        let hot: Vec<_> = (0..30).map(object).collect();
        for object in &hot {
            keep(&memory, object.clone());
        }
        for _ in 0..20 {
            assert!(hot.iter().all(|(key, _)| memory.get(key).is_some()));
            settle(&memory);
        }
        let mut lost = 0;
        for (at, (key, bytes)) in (1000..6000).map(object).enumerate() {
            assert!(memory.get(&key).is_none());
            keep(&memory, (key, bytes.clone()));
            assert_eq!(memory.get(&key), Some(bytes), "the newest object is always cached");
            settle(&memory);
            // Between two uses of a hot object, more new objects arrive than fit into memory.
            let object = &hot[at % hot.len()];
            if memory.get(&object.0).is_none() {
                lost += 1;
                keep(&memory, object.clone());
            }
        }
        assert!(lost < 500, "{lost} of 5000 uses found the object evicted");
    }

    #[test]
    fn bytes_are_counted_until_the_last_client_drops_them() {
        let memory = Memory::new(0);
        let (key, bytes) = object(1);
        let held = keep(&memory, (key, bytes.clone()));
        let part = held.slice(3..9);
        drop(held);
        assert_eq!(memory.live(), bytes.len() as u64);
        drop(part);
        assert_eq!(memory.live(), 0);
        assert!(memory.get(&key).is_none(), "with a bound of 0 nothing is kept");
    }

    #[test]
    fn memory_stays_bounded_while_clients_are_slow() {
        let memory = Memory::new(32 << 20);
        assert!(memory.takes(2 << 20));
        assert!(!memory.takes(3 << 20), "too large a share of the bound");
        let slow: Vec<_> = (0..32 << 6).map(object).map(|object| keep(&memory, object)).collect();
        assert!(slow.iter().map(|bytes| bytes.len() as u64).sum::<u64>() >= 32 << 20);
        assert!(!memory.takes(1 << 20), "{} bytes are being sent", memory.live());
        drop(slow);
        settle(&memory);
        assert!(memory.takes(1 << 20));
        let coming: Vec<_> = (0..8).map(|_| memory.reserve(1 << 20)).collect();
        assert!(!memory.takes(1 << 20), "reserved bytes count too");
        drop(coming);
        assert!(memory.takes(1 << 20));
    }

    #[test]
    fn stalled_clients_pin_a_bounded_number_of_small_objects() {
        let memory = Memory::new(0);
        let small = 16 * KIB as u64;
        let mut slow = Vec::new();
        while memory.takes(small) {
            slow.push(keep(&memory, object(u32::try_from(slow.len()).expect("few"))));
            assert!(memory.live() <= RESERVE, "{} bytes", memory.live());
        }
        drop(slow);
        assert!(memory.takes(small));
    }
}
