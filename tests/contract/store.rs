//! What every [`Store`](safelight_store::Store) promises, on each of its backends.
//!
//! One function per promise; the test's name ends with the backend that it ran on. Where time
//! matters the tests use durations of zero, which are over at once, and of an hour, which never are.

mod access;
mod backfill;
mod claim;
mod control;
mod deletion;
mod fixture;
mod keys;
mod lifecycle;
mod outbox;
mod reading;
mod rendition;
mod settle;
mod together;
mod upload;
mod workers;

/// Makes a test of each promise for each backend.
macro_rules! promises {
    ($($promise:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() -> anyhow::Result<()> {
                super::$promise($crate::contract::store::fixture::Fixture::sqlite().await?).await
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() -> anyhow::Result<()> {
                super::$promise($crate::contract::store::fixture::Fixture::postgres().await?).await
            })+
        }
    };
}

use promises;
