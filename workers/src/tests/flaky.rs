//! A database that becomes unavailable and recovers.

use std::{
    collections::HashSet,
    fmt::Debug,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use safelight_store::{
    StoreError,
    testing::{Call, FaultPlan, unreachable},
};

#[derive(Default)]
pub(crate) struct Flaky {
    /// While set, every call fails.
    pub unavailable: AtomicBool,
    /// Calls that failed because of it.
    pub refused: AtomicU32,
    /// As many settles yet to come are done, but their answer is lost.
    pub answers_to_lose: AtomicU32,
    /// A method whose calls never come to an end.
    pub hangs: Mutex<Option<&'static str>>,
    /// The methods that have returned at least once.
    pub called: Mutex<HashSet<&'static str>>,
}

#[async_trait]
impl FaultPlan for Flaky {
    async fn before(&self, call: Call<'_>) -> Result<(), StoreError> {
        if self.unavailable.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(unreachable());
        }
        if *self.hangs.lock().expect("not poisoned") == Some(call.method) {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn after(&self, call: Call<'_>, _: &(dyn Debug + Sync)) -> Result<(), StoreError> {
        self.called.lock().expect("not poisoned").insert(call.method);
        let less = |left: u32| left.checked_sub(1);
        let (set, get) = (Ordering::SeqCst, Ordering::SeqCst);
        if call.method == "settle" && self.answers_to_lose.fetch_update(set, get, less).is_ok() {
            return Err(unreachable());
        }
        Ok(())
    }
}
