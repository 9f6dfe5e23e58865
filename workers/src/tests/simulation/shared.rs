//! State that the tasks under test and the schedule share, and the fault plan of the store.

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
    scheduler::{Decision, Scheduler, WaitPoint},
    text::short,
};

#[derive(Default)]
pub(super) struct Shared {
    pub scheduler: Scheduler,
    pub queues: Queues,
    promises: Mutex<Promises>,
    notes: Mutex<Notes>,
}

/// The responses that clients received.
#[derive(Default, Clone)]
pub(super) struct Promises {
    /// Tasks whose upload was answered with 202.
    pub accepted: Vec<TaskId>,
    /// The task in the first response to each idempotency key.
    pub keys: HashMap<String, TaskId>,
    /// Every upload that was sent with a key: the key, and the task that it would create.
    pub attempted: Vec<(String, TaskId)>,
}

#[derive(Default)]
struct Notes {
    trace: Vec<String>,
    violation: Option<String>,
}

impl Shared {
    pub fn promises<T>(&self, change: impl FnOnce(&mut Promises) -> T) -> T {
        change(&mut self.promises.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn note(&self, line: String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).trace.push(line);
    }

    /// Records a broken promise; the schedule then stops.
    pub fn report_violation(&self, what: String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).violation.get_or_insert(what);
    }

    pub fn violation(&self) -> Option<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).violation.clone()
    }

    pub fn trace(&self) -> Vec<String> {
        std::mem::take(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner).trace)
    }
}

/// Lets the schedule decide how each store call of a process ends.
pub(super) struct ScheduledFaults {
    pub shared: Arc<Shared>,
    pub process: usize,
}

#[async_trait]
impl FaultPlan for ScheduledFaults {
    async fn before(&self, call: Call<'_>) -> Result<(), StoreError> {
        let label = short(&format!("{call:?}"));
        let point = WaitPoint::Call(call.method);
        match self.shared.scheduler.wait_for_turn(self.process, point, label).await {
            Decision::Fail => Err(unreachable()),
            _ => Ok(()),
        }
    }

    async fn after(&self, call: Call<'_>, answer: &(dyn Debug + Sync)) -> Result<(), StoreError> {
        let label = short(&format!("answer to {}: {answer:?}", call.method));
        if label.contains(": Err(") {
            self.shared.report_violation(label.clone());
        }
        self.shared.scheduler.call_finished.notify_one();
        match self.shared.scheduler.wait_for_turn(self.process, WaitPoint::Response, label).await {
            Decision::Fail => Err(unreachable()),
            _ => Ok(()),
        }
    }
}
