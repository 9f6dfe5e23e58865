//! A type for each kind of id, so that a task's id cannot be passed for a job's.

use std::{
    fmt,
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use uuid::{Builder, Uuid};

use crate::secrets;

macro_rules! id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord,
            Serialize, Deserialize, utoipa::ToSchema,
        )]
        #[serde(transparent)]
        #[schema(value_type = Uuid)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id; see [`new_id`](crate::new_id).
            #[allow(clippy::new_without_default)] // a default id would be a bug
            pub fn new() -> Self {
                Self(new_id())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

id! {
    /// An uploaded image.
    ImageId
}
id! {
    /// A task, which a client polls.
    TaskId
}
id! {
    /// A job: one unit of work.
    JobId
}
id! {
    /// A worker process, which holds leases by this id.
    WorkerId
}

/// A new id: a `UUIDv7` (RFC 9562, section 5.7) of the time in milliseconds and 74 random bits.
///
/// - Nobody can guess an id, not even from other ids of the same millisecond: its bits come from the operating
///   system's generator, for this id alone. Whoever has the id of a public image may read it.
/// - Ids sort by the millisecond of their creation; keyset pagination relies on that. Ids of one millisecond
///   have no order.
///
/// `Uuid::now_v7` is no substitute, and clippy rejects it: it counts up from one id to the next.
///
/// # Panics
///
/// If the system cannot provide random bytes: what an id that can be guessed protects is open to all.
pub fn new_id() -> Uuid {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    id_of(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// A new id of a millisecond since 1970.
fn id_of(millis: u64) -> Uuid {
    let random = secrets::random().unwrap_or_else(|error| panic!("{error}"));
    Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}

/// An installation: one database with its blob store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstallationId(pub Uuid);

impl fmt::Display for InstallationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Ids of one millisecond: enough that chance cannot hide a pattern.
    const COUNT: usize = 1 << 13;

    /// Random bits of an id: 12 in the group after the version, 62 after the variant.
    const BITS: u32 = 74;

    /// The random bits of an id, as a number.
    fn random_bits(id: Uuid) -> u128 {
        let id = id.as_u128();
        (id >> 64 & 0xfff) << 62 | id & (u128::MAX >> 66)
    }

    fn ids_of_one_millisecond() -> Vec<u128> {
        (0..COUNT).map(|_| random_bits(id_of(1_800_000_000_000))).collect()
    }

    #[test]
    fn new_ids_are_of_version_7_and_sort_by_time() {
        let id = ImageId::new().0;
        assert_eq!((id.get_version_num(), id.get_variant()), (7, uuid::Variant::RFC4122));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let made = id.get_timestamp().expect("a time").to_unix().0;
        assert!(made.abs_diff(now) < 60, "{made} is not {now}");
        assert!(id_of(1) < id_of(2) && id_of(2) < id_of(1 << 40));
    }

    /// Deviations of 6 sigma: by chance, one of these fails in 10 million runs.
    #[test]
    fn every_bit_of_an_id_is_unbiased_and_independent_of_the_id_before() {
        let ids = ids_of_one_millisecond();
        let is_half = |count: usize| count.abs_diff(COUNT / 2) < 6 * COUNT.isqrt() / 2 + 1;
        for bit in 0..BITS {
            let set = ids.iter().filter(|id| *id >> bit & 1 == 1).count();
            assert!(is_half(set), "bit {bit} is set in {set} of {COUNT} ids");
            let flipped = ids.windows(2).filter(|pair| (pair[0] ^ pair[1]) >> bit & 1 == 1).count();
            assert!(is_half(flipped), "bit {bit} differs from the id before in {flipped} ids");
        }
    }

    /// What a counter within the random bits would break: of ids that count up, all are close to another one,
    /// and all share their upper bits.
    #[test]
    fn an_id_tells_nothing_about_others_of_its_millisecond() {
        let mut ids = ids_of_one_millisecond();
        let upper: HashSet<u128> = ids.iter().map(|id| id >> (BITS - 42)).collect();
        assert!(upper.len() >= COUNT - 1, "{} of {COUNT} upper halves differ", upper.len());
        ids.sort_unstable();
        // The smallest of so many distances is about 2^(74 - 2 * 13).
        let nearest = ids.windows(2).map(|pair| pair[1] - pair[0]).min();
        assert!(nearest > Some(1 << 28), "two ids are {nearest:?} apart");
    }
}
