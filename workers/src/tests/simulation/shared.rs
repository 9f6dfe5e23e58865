//! What the tasks under test and the schedule share, and the gate before the store.

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use safelight_domain::TaskId;
use safelight_store::{
    StoreError,
    testing::{Call, FaultPlan, unreachable},
};

use super::{
    broker::Queues,
    text::short,
    turnstile::{Spot, Turnstile, Verdict},
};

#[derive(Default)]
pub(super) struct Shared {
    pub turnstile: Turnstile,
    pub queues: Queues,
    promises: Mutex<Promises>,
    notes: Mutex<Notes>,
}

/// What clients were told.
#[derive(Default, Clone)]
pub(super) struct Promises {
    /// Tasks whose upload was answered with 202.
    pub accepted: Vec<TaskId>,
    /// The task that each idempotency key was first answered with.
    pub keys: HashMap<String, TaskId>,
    /// Every task that was tried under a key.
    pub tried: Vec<(String, TaskId)>,
}

#[derive(Default)]
struct Notes {
    trace: Vec<String>,
    wrong: Option<String>,
}

impl Shared {
    pub fn promises<T>(&self, change: impl FnOnce(&mut Promises) -> T) -> T {
        change(&mut self.promises.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn note(&self, line: String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).trace.push(line);
    }

    /// Notes that something is as it must never be.
    pub fn wrong(&self, what: String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).wrong.get_or_insert(what);
    }

    pub fn is_wrong(&self) -> Option<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).wrong.clone()
    }

    pub fn trace(&self) -> Vec<String> {
        std::mem::take(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner).trace)
    }
}

/// One process's way to the store.
pub(super) struct Turn {
    pub shared: Arc<Shared>,
    pub process: usize,
}

#[async_trait]
impl FaultPlan for Turn {
    async fn before(&self, call: Call<'_>) -> Result<(), StoreError> {
        let label = short(&format!("{call:?}"));
        let spot = Spot::Call(call.method);
        match self.shared.turnstile.pass(self.process, spot, label).await {
            Verdict::Fail => Err(unreachable()),
            _ => Ok(()),
        }
    }

    async fn after(&self, call: Call<'_>, answer: &(dyn Debug + Sync)) -> Result<(), StoreError> {
        let label = short(&format!("answer to {}: {answer:?}", call.method));
        if label.contains(": Err(") {
            self.shared.wrong(label.clone());
        }
        self.shared.turnstile.call_over.notify_one();
        match self.shared.turnstile.pass(self.process, Spot::Answer, label).await {
            Verdict::Fail => Err(unreachable()),
            _ => Ok(()),
        }
    }
}
