//! A client's upload, as the API carries it out once the bytes are stored.

use std::{sync::Arc, time::Duration};

use safelight_domain::{ContentHash, ImageFormat, ImageId, JobId, JobKind, Labels, Lane, TaskId};
use safelight_store::{Accepted, DynStore, IdempotencyKey, KeyState, KeyTicket, NewUpload};
use uuid::Uuid;

use super::shared::Shared;

/// How long a key stays reserved for an upload of which nothing is heard.
const HOLD: Duration = Duration::from_secs(20);

/// What the schedule chose.
pub(super) struct Plan {
    /// The first of the numbers that become ids.
    pub first_id: u128,
    pub key: Option<String>,
    pub content: u8,
    pub lane: Lane,
    pub max_attempts: u32,
}

pub(super) async fn upload(shared: Arc<Shared>, store: DynStore, plan: Plan) {
    let ticket = match &plan.key {
        None => None,
        Some(key) => match reserve(&shared, &store, key).await {
            Some(ticket) => Some(ticket),
            None => return,
        },
    };
    let upload = new_upload(&plan, ticket.clone());
    if let Some(key) = &plan.key {
        shared.promises(|told| told.tried.push((key.clone(), upload.task)));
    }
    let accepted = match store.accept(&upload).await {
        Err(error) if error.is_unavailable() => store.accept(&upload).await,
        answered => answered,
    };
    if let Ok(Accepted::Yes(_)) = accepted {
        shared.promises(|told| told.accepted.push(upload.task));
        if let Some(key) = plan.key {
            answered(&shared, &key, upload.task);
        }
    } else if let Some(ticket) = ticket {
        let _ = store.release_key(&ticket).await;
    }
}

/// The right to upload under the key; `None` if the client is answered without an upload.
async fn reserve(shared: &Shared, store: &DynStore, key: &str) -> Option<KeyTicket> {
    let wanted = IdempotencyKey { owner: safelight_domain::Owner::local(), key: key.to_owned() };
    match store.reserve_key(&wanted, HOLD).await {
        Ok(KeyState::Reserved(ticket)) => return Some(ticket),
        Ok(KeyState::Used { task, .. }) => {
            answered(shared, key, task);
            shared.promises(|told| told.accepted.push(task));
        }
        Ok(KeyState::InFlight) | Err(_) => {}
    }
    None
}

/// A client was answered with this task.
fn answered(shared: &Shared, key: &str, task: TaskId) {
    let first = shared.promises(|told| *told.keys.entry(key.to_owned()).or_insert(task));
    if first != task {
        shared.wrong(format!("key {key} stands for task {first} and for task {task}"));
    }
}

fn new_upload(plan: &Plan, ticket: Option<KeyTicket>) -> NewUpload {
    let mut next = plan.first_id;
    let mut id = || {
        next += 1;
        Uuid::from_u128(next - 1)
    };
    let sha256 = ContentHash::of(&[plan.content]);
    NewUpload {
        owner: safelight_domain::Owner::local(),
        visibility: safelight_domain::Visibility::Public,
        quota: safelight_domain::Quota::default(),
        task: TaskId(id()),
        jobs: [JobKind::Write, JobKind::Thumbnail].map(|kind| (JobId(id()), kind)).to_vec(),
        image: ImageId(id()),
        lane: plan.lane,
        sha256,
        bytes: 1,
        format: ImageFormat::Png,
        labels: Labels::default(),
        max_attempts: plan.max_attempts,
        key: ticket.map(|ticket| (ticket, sha256)),
        trace: None,
    }
}
