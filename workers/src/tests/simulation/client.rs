//! An upload, as the API handles it once the bytes are stored.

use std::{sync::Arc, time::Duration};

use safelight_domain::{
    ContentHash, ImageFormat, ImageId, JobId, JobKind, Labels, Lane, TaskId, Visibility,
};
use safelight_store::{Accepted, DynStore, IdempotencyKey, KeyState, KeyTicket, NewUpload};
use uuid::Uuid;

use super::shared::Shared;

/// How long an upload that never completes keeps its key reserved.
const RESERVATION: Duration = Duration::from_secs(20);

/// An upload that the schedule chose.
pub(super) struct UploadPlan {
    /// The ids of the upload count up from this number.
    pub first_id: u128,
    pub key: Option<String>,
    pub content: u8,
    pub lane: Lane,
    pub max_attempts: u32,
}

pub(super) async fn upload(shared: Arc<Shared>, store: DynStore, plan: UploadPlan) {
    let ticket = match &plan.key {
        None => None,
        Some(key) => match reserve(&shared, &store, key).await {
            Some(ticket) => Some(ticket),
            None => return,
        },
    };
    let upload = new_upload(&plan, ticket.clone());
    if let Some(key) = &plan.key {
        shared.promises(|promises| promises.attempted.push((key.clone(), upload.task)));
    }
    let accepted = match store.accept(&upload).await {
        Err(error) if error.is_unavailable() => store.accept(&upload).await,
        result => result,
    };
    if let Ok(Accepted::Yes(_)) = accepted {
        shared.promises(|promises| promises.accepted.push(upload.task));
        if let Some(key) = plan.key {
            record_response(&shared, &key, upload.task);
        }
    } else if let Some(ticket) = ticket {
        let _ = store.release_key(&ticket).await;
    }
}

/// Reserves the key; `None` if the client gets its response without an upload.
async fn reserve(shared: &Shared, store: &DynStore, key: &str) -> Option<KeyTicket> {
    let wanted = IdempotencyKey { owner: safelight_domain::Owner::local(), key: key.to_owned() };
    match store.reserve_key(&wanted, RESERVATION).await {
        Ok(KeyState::Reserved(ticket)) => return Some(ticket),
        Ok(KeyState::Used { task, .. }) => {
            record_response(shared, key, task);
            shared.promises(|promises| promises.accepted.push(task));
        }
        Ok(KeyState::InFlight) | Err(_) => {}
    }
    None
}

/// Records that a client received this task, which must be the same for every request with the key.
fn record_response(shared: &Shared, key: &str, task: TaskId) {
    let first = shared.promises(|promises| *promises.keys.entry(key.to_owned()).or_insert(task));
    if first != task {
        shared.report_violation(format!(
            "key {key} was answered with task {first} and with task {task}"
        ));
    }
}

fn new_upload(plan: &UploadPlan, ticket: Option<KeyTicket>) -> NewUpload {
    let mut next = plan.first_id;
    let mut id = || {
        next += 1;
        Uuid::from_u128(next - 1)
    };
    let sha256 = ContentHash::of(&[plan.content]);
    NewUpload {
        owner: safelight_domain::Owner::local(),
        quota: safelight_domain::Quota::default(),
        task: TaskId(id()),
        jobs: JobKind::OF_NEW_IMAGE.map(|kind| (JobId(id()), kind)).to_vec(),
        image: ImageId(id()),
        lane: plan.lane,
        sha256,
        bytes: 1,
        format: ImageFormat::Png,
        labels: Labels { visibility: Some(Visibility::Public), ..Labels::default() },
        max_attempts: plan.max_attempts,
        key: ticket.map(|ticket| (ticket, sha256)),
        trace: None,
    }
}
