//! Numbers between Rust and SQL, which have different types.

use std::{
    fmt::Display,
    time::{Duration, SystemTime},
};

use uuid::{Builder, Uuid};

use safelight_store::StoreError;

/// For sizes and counts, which never come near the limit.
pub fn to_i64(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

/// A duration in microseconds, rounded down; 100 years at most, so that adding it to a time never
/// overflows. Durations that people choose are shorter: [`ApiKey::LIFETIME`](safelight_domain::ApiKey::LIFETIME).
pub fn micros(duration: Duration) -> i64 {
    const CENTURY: i64 = 100 * 31_557_600 * 1_000_000;
    i64::try_from(duration.as_micros()).map_or(CENTURY, |micros| micros.min(CENTURY))
}

/// A duration from microseconds; zero if they are negative.
pub fn duration(micros: i64) -> Duration {
    Duration::from_micros(micros.try_into().unwrap_or(0))
}

/// Those of `rows` that this release can read. A newer release may have written others, which must not stop the rest.
pub fn readable<T>(
    rows: impl Iterator<Item = Result<T, StoreError>>,
) -> Result<Vec<T>, StoreError> {
    rows.filter(|row| match row {
        Err(StoreError::Corrupt(what)) => {
            tracing::debug!(%what, "left out a row that cannot be read");
            false
        }
        _ => true,
    })
    .collect()
}

/// A number from a row that must fit `T`.
pub fn from_sql<T, U>(number: T, column: &str) -> Result<U, StoreError>
where
    T: Copy + Display + TryInto<U>,
{
    number.try_into().map_err(|_| StoreError::Corrupt(format!("{column} is {number}")))
}

/// An id that sorts after those that were made `age` ago or earlier, by this machine's clock.
pub fn id_of_age(age: Duration) -> Uuid {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let made = since_epoch.saturating_sub(age);
    let bytes = [u8::MAX; 10];
    Builder::from_unix_timestamp_millis(made.as_millis().try_into().unwrap_or(u64::MAX), &bytes)
        .into_uuid()
}
