//! Faults of the database: unavailable, hanging, or losing a response.

use std::{
    collections::HashMap,
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
pub(crate) struct DatabaseFaults {
    /// While set, every call fails.
    pub unavailable: AtomicBool,
    /// The number of calls that failed while `unavailable` was set.
    pub rejected_calls: AtomicU32,
    /// This many of the next settles succeed, but their responses are lost.
    pub settle_responses_to_lose: AtomicU32,
    /// A method whose calls never return.
    pub hanging_method: Mutex<Option<&'static str>>,
    /// How often each method has returned.
    pub finished_calls: Mutex<HashMap<&'static str, u32>>,
}

#[async_trait]
impl FaultPlan for DatabaseFaults {
    async fn before(&self, call: Call<'_>) -> Result<(), StoreError> {
        if self.unavailable.load(Ordering::SeqCst) {
            self.rejected_calls.fetch_add(1, Ordering::SeqCst);
            return Err(unreachable());
        }
        if *self.hanging_method.lock().expect("not poisoned") == Some(call.method) {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn after(&self, call: Call<'_>, _: &(dyn Debug + Sync)) -> Result<(), StoreError> {
        *self.finished_calls.lock().expect("not poisoned").entry(call.method).or_default() += 1;
        let decrement = |left: u32| left.checked_sub(1);
        let (set, get) = (Ordering::SeqCst, Ordering::SeqCst);
        if call.method == "settle"
            && self.settle_responses_to_lose.fetch_update(set, get, decrement).is_ok()
        {
            return Err(unreachable());
        }
        Ok(())
    }
}
