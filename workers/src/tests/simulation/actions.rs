//! What a schedule can do besides resuming a task. A new action needs a variant, a line in
//! [`Action::ALL`], and an arm in [`Action::apply`].

use std::time::Duration;

use safelight_domain::{ImageId, JobId, Lane, TaskId};
use safelight_store::DeletionRequest;
use uuid::Uuid;

use super::{
    client::{self, UploadPlan},
    process::{MaintenanceStep, ProcessState},
    world::World,
};

/// The most processes that run concurrently with a broker.
const FLEET_SIZE: usize = 3;

/// The most uploads in one simulation.
const MAX_UPLOADS: u128 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Upload,
    Relay,
    RescueLeases,
    RescueMessages,
    ExpireKeys,
    WatchClock,
    Deliver,
    PassTime,
    Start,
    DeliverTwice,
    LoseMessage,
    WipeBroker,
    LoseConnection,
    Kill,
    Freeze,
    Thaw,
    Terminate,
    SetClockForward,
    SetClockBack,
    Cancel,
    Retry,
    Republish,
    Delete,
}

impl Action {
    /// Every action with its weight, which the seed scales.
    pub const ALL: [(Self, u32); 23] = [
        (Self::Upload, 4),
        (Self::Relay, 8),
        (Self::RescueLeases, 4),
        (Self::RescueMessages, 3),
        (Self::ExpireKeys, 1),
        (Self::WatchClock, 2),
        (Self::Deliver, 16),
        (Self::PassTime, 8),
        (Self::Start, 3),
        (Self::DeliverTwice, 6),
        (Self::LoseMessage, 3),
        (Self::WipeBroker, 1),
        (Self::LoseConnection, 2),
        (Self::Kill, 2),
        (Self::Freeze, 3),
        (Self::Thaw, 3),
        (Self::Terminate, 1),
        (Self::SetClockForward, 1),
        (Self::SetClockBack, 1),
        (Self::Cancel, 1),
        (Self::Retry, 3),
        (Self::Republish, 1),
        (Self::Delete, 1),
    ];

    /// Whether it never happens in a system without faults.
    pub fn is_fault(self) -> bool {
        matches!(
            self,
            Self::DeliverTwice
                | Self::LoseMessage
                | Self::WipeBroker
                | Self::LoseConnection
                | Self::Kill
                | Self::Freeze
                | Self::Terminate
                | Self::SetClockForward
                | Self::SetClockBack
                | Self::Cancel
                | Self::Delete
        )
    }

    /// What a system without faults does while no task waits.
    pub fn when_idle(deliverable: bool) -> &'static [Self] {
        if deliverable {
            &[Self::Deliver]
        } else {
            &[
                Self::PassTime,
                Self::WatchClock,
                Self::Relay,
                Self::RescueLeases,
                Self::RescueMessages,
            ]
        }
    }

    pub async fn apply(self, world: &mut World) {
        match self {
            Self::Upload => upload(world),
            Self::Relay => world.run_maintenance(MaintenanceStep::Relay),
            Self::RescueLeases => world.run_maintenance(MaintenanceStep::RescueLeases),
            Self::RescueMessages => world.run_maintenance(MaintenanceStep::RescueMessages),
            Self::ExpireKeys => world.run_maintenance(MaintenanceStep::ExpireKeys),
            Self::WatchClock => world.run_maintenance(MaintenanceStep::WatchClock),
            Self::Deliver => deliver(world, false),
            Self::DeliverTwice => deliver(world, true),
            Self::PassTime => pass_time(world).await,
            Self::Start => start(world),
            Self::LoseMessage => lose_message(world),
            Self::WipeBroker => {
                world.note("the broker is wiped");
                world.shared.queues.lock().wipe();
            }
            Self::LoseConnection => lose_connection(world),
            Self::Kill => kill(world),
            Self::Freeze => freeze(world),
            Self::Thaw => thaw(world),
            Self::Terminate => terminate(world),
            Self::SetClockForward => set_clock(world, true),
            Self::SetClockBack => set_clock(world, false),
            Self::Cancel => send_request(world, TaskRequest::Cancel),
            Self::Retry => send_request(world, TaskRequest::Retry),
            Self::Republish => send_request(world, TaskRequest::Republish),
            Self::Delete => send_request(world, TaskRequest::Delete),
        }
    }
}

fn upload(world: &mut World) {
    const IDS: u128 = 10;
    let Some(process) =
        world.random_process(ProcessState::Running).filter(|_| world.next_id < IDS * MAX_UPLOADS)
    else {
        return;
    };
    let key = (world.rng.u32(..3) == 0).then(|| format!("key {}", world.rng.u32(..2)));
    let plan = UploadPlan {
        first_id: world.next_id,
        content: key.as_ref().map_or_else(|| world.rng.u8(..3), |key| key.as_bytes()[4]),
        key,
        lane: if world.rng.u32(..4) == 0 { Lane::Bulk } else { Lane::Interactive },
        max_attempts: world.config.max_attempts,
    };
    world.next_id += IDS;
    world.note(&format!("upload to process {process}, key {:?}", plan.key));
    let store = world.processes[process].parts.store.clone();
    tokio::spawn(client::upload(world.shared.clone(), store, plan));
}

fn deliver(world: &mut World, keep_copy: bool) {
    let deliverable = world.deliverable();
    let Some(&(message, consumer)) = world.rng.choice(&deliverable) else { return };
    let shared = world.shared.clone();
    let returned = {
        let mut queues = shared.queues.lock();
        let notice = queues.messages[message].notice;
        let to = queues.consumers[consumer].process;
        let suffix = if keep_copy { " and kept" } else { "" };
        world.note(&super::text::short(&format!("to process {to}{suffix}: {notice:?}")));
        queues.deliver(&shared, (message, consumer), keep_copy)
    };
    drop(returned);
}

async fn pass_time(world: &mut World) {
    let lease = world.config.lease_ms;
    let choices = [20, 200, 1000, lease / 3 + 1, lease + 1, 10_001];
    let time = Duration::from_millis(choices[world.rng.usize(..choices.len())]);
    world.note(&format!("{time:?} passes"));
    world.advance_time(time).await;
}

fn start(world: &mut World) {
    let max = if world.embedded { 1 } else { FLEET_SIZE };
    let living =
        world.processes.iter().filter(|process| process.state != ProcessState::Dead).count();
    if living < max {
        world.note(&format!("process {} starts", world.processes.len()));
        world.start();
    }
}

fn lose_message(world: &mut World) {
    let mut queues = world.shared.queues.lock();
    if !queues.messages.is_empty() {
        let index = world.rng.usize(..queues.messages.len());
        let lost = queues.messages.remove(index);
        world.note(&super::text::short(&format!("lost: {lost:?}")));
    }
}

fn lose_connection(world: &mut World) {
    let Some(process) = world.random_process(ProcessState::Running) else { return };
    if !world.embedded {
        world.note(&format!("process {process} loses its broker connection"));
        world.shared.queues.lock().disconnect(process);
    }
}

fn kill(world: &mut World) {
    let state = if world.rng.bool() { ProcessState::Running } else { ProcessState::Frozen };
    if let Some(process) = world.random_process(state) {
        world.note(&format!("process {process} is killed"));
        world.kill(process);
    }
}

fn freeze(world: &mut World) {
    if let Some(process) = world.random_process(ProcessState::Running) {
        world.note(&format!("process {process} is frozen"));
        world.processes[process].state = ProcessState::Frozen;
        // The broker may or may not detect it.
        if !world.embedded && world.rng.bool() {
            world.shared.queues.lock().disconnect(process);
        }
    }
}

fn thaw(world: &mut World) {
    if let Some(process) = world.random_process(ProcessState::Frozen) {
        world.note(&format!("process {process} continues"));
        world.processes[process].state = ProcessState::Running;
    }
}

fn terminate(world: &mut World) {
    if let Some(process) = world.random_process(ProcessState::Running) {
        world.note(&format!("process {process} receives SIGTERM"));
        world.processes[process].shutdown.cancel();
    }
}

/// What clients, operators and the dead letter service do to a task.
#[derive(Debug, Clone, Copy)]
enum TaskRequest {
    Cancel,
    Retry,
    Republish,
    Delete,
}

fn send_request(world: &mut World, request: TaskRequest) {
    let Some(process) = world.random_process(ProcessState::Running) else { return };
    let accepted = world.shared.promises(|promises| promises.accepted.clone());
    let Some(&task) = world.rng.choice(&accepted) else { return };
    world.note(&super::text::short(&format!("{request:?} {task:?} at process {process}")));
    let store = world.processes[process].parts.store.clone();
    // The ids after the task's id belong to its jobs, its image, and the deletion of the image.
    let id_after = |offset: u128| Uuid::from_u128(task.0.as_u128() + offset);
    let job = JobId(id_after(1));
    let deletion = DeletionRequest {
        image: ImageId(id_after(3)),
        task: TaskId(id_after(4)),
        job: JobId(id_after(5)),
        max_attempts: world.config.max_attempts,
        after: Duration::from_secs(2),
        presets: Vec::new(),
        trace: None,
    };
    tokio::spawn(async move {
        // The schedule also repeats failed requests.
        match request {
            TaskRequest::Cancel => drop(store.cancel(task).await),
            TaskRequest::Retry => drop(store.retry(&[task]).await),
            TaskRequest::Republish => drop(store.requeue_one(job, Duration::from_secs(5)).await),
            TaskRequest::Delete => drop(store.delete_image(&deletion).await),
        }
    });
}

/// By seconds, or by much: forward not as far as idempotency keys are remembered, back further than any schedule
/// waits.
fn set_clock(world: &mut World, forward: bool) {
    let most = match (world.rng.bool(), forward) {
        (true, _) => 60,
        (false, true) => 20 * 60,
        (false, false) => 7 * 86_400,
    };
    let time = Duration::from_secs(world.rng.u64(1..most));
    world.note(&format!(
        "the clock is set {} by {time:?}",
        if forward { "forward" } else { "back" }
    ));
    world.set_clock(time, forward);
}
