//! The contract suite of [`Store`](safelight_store::Store), run on every backend.
//!
//! Each promise is one function and runs once per backend. Where time matters the tests use a duration of
//! zero, which ends immediately, and of an hour, which never ends during a test.

mod access;
mod backfill;
mod batches;
mod claim;
mod clock;
mod control;
mod deletion;
mod installation;
mod keys;
mod lifecycle;
mod outbox;
mod reading;
mod rendition;
mod servers;
mod settle;
mod test_store;
mod upload;
mod workers;

/// Creates one test per promise and backend.
macro_rules! promises {
    ($($promise:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() -> anyhow::Result<()> {
                let store = $crate::contract::store::test_store::TestStore::sqlite().await?;
                super::$promise(store).await
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() -> anyhow::Result<()> {
                let store = $crate::contract::store::test_store::TestStore::postgres().await?;
                super::$promise(store).await
            })+
        }
    };
}

use promises;
