//! The real store, failing on demand.

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

/// What goes wrong.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Fault {
    /// Nothing.
    None,
    /// No call is answered.
    Away,
    /// Calls wait until this is over.
    Hangs,
    /// The next upload is recorded, but the connection breaks before the answer.
    AcceptUnheard,
    /// Uploads are not recorded, and the database says so.
    AcceptRefused,
}

/// A [`Fault`], held as a number so that tests can change it.
pub struct Flaky(pub Arc<AtomicU8>);

impl Flaky {
    fn has(&self, fault: Fault) -> bool {
        self.0.load(Ordering::SeqCst) == fault as u8
    }
}

#[async_trait]
impl FaultPlan for Flaky {
    async fn before(&self, call: Call<'_>) -> Result<(), StoreError> {
        while self.has(Fault::Hangs) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if self.has(Fault::Away) {
            return Err(unreachable());
        }
        if call.method == "accept" && self.has(Fault::AcceptRefused) {
            return Err(StoreError::Corrupt("refused".to_owned()));
        }
        Ok(())
    }

    async fn after(&self, call: Call<'_>, _: &(dyn Debug + Sync)) -> Result<(), StoreError> {
        if call.method == "accept" && self.has(Fault::AcceptUnheard) {
            self.0.store(Fault::None as u8, Ordering::SeqCst);
            return Err(unreachable());
        }
        Ok(())
    }
}
