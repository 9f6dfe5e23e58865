//! The real store, with faults that a test switches on and off.

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use safelight_store::{
    StoreError,
    testing::{Call, FaultPlan, unreachable},
};

/// A fault of the store.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Fault {
    /// No fault.
    None,
    /// Every call fails as unavailable.
    Unavailable,
    /// Calls wait until the fault ends.
    Hangs,
    /// The next upload is recorded, but its response is lost.
    AcceptResponseLost,
    /// Uploads are not recorded, and the store returns an error.
    AcceptFails,
}

/// The current [`Fault`], as a number that tests can change.
pub struct FaultSwitch(pub Arc<AtomicU8>);

impl FaultSwitch {
    fn has(&self, fault: Fault) -> bool {
        self.0.load(Ordering::SeqCst) == fault as u8
    }
}

#[async_trait]
impl FaultPlan for FaultSwitch {
    async fn before(&self, call: Call<'_>) -> Result<(), StoreError> {
        while self.has(Fault::Hangs) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if self.has(Fault::Unavailable) {
            return Err(unreachable());
        }
        if call.method == "accept" && self.has(Fault::AcceptFails) {
            return Err(StoreError::Corrupt("rejected".to_owned()));
        }
        Ok(())
    }

    async fn after(&self, call: Call<'_>, _: &(dyn Debug + Sync)) -> Result<(), StoreError> {
        if call.method == "accept" && self.has(Fault::AcceptResponseLost) {
            self.0.store(Fault::None as u8, Ordering::SeqCst);
            return Err(unreachable());
        }
        Ok(())
    }
}
