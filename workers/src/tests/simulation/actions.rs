//! What can happen beside the tasks under test going on. To add something: a variant, its line in
//! [`Action::ALL`], and its arm in [`Action::take`].

use std::time::Duration;

use safelight_domain::{ImageId, JobId, Lane, TaskId};
use safelight_store::DeletionRequest;
use uuid::Uuid;

use super::{
    client::{self, Plan},
    process::{Chore, Life},
    world::World,
};

/// Processes at once, in a fleet.
const FLEET: usize = 3;

/// Uploads in one simulation.
const UPLOADS: u128 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Upload,
    Relay,
    RescueLeases,
    RescueMessages,
    ExpireKeys,
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
    Cancel,
    Retry,
    Republish,
    Delete,
}

impl Action {
    /// Every action, with its usual weight.
    pub const ALL: [(Self, u32); 21] = [
        (Self::Upload, 4),
        (Self::Relay, 8),
        (Self::RescueLeases, 4),
        (Self::RescueMessages, 3),
        (Self::ExpireKeys, 1),
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
        (Self::Cancel, 1),
        (Self::Retry, 3),
        (Self::Republish, 1),
        (Self::Delete, 1),
    ];

    /// Whether a system in which nothing fails would never see it.
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
                | Self::Cancel
                | Self::Delete
        )
    }

    /// What a system without faults does when no task waits.
    pub fn calm(deliverable: bool) -> &'static [Self] {
        if deliverable {
            &[Self::Deliver]
        } else {
            &[Self::PassTime, Self::Relay, Self::RescueLeases, Self::RescueMessages]
        }
    }

    pub async fn take(self, world: &mut World) {
        match self {
            Self::Upload => upload(world),
            Self::Relay => world.chore(Chore::Relay),
            Self::RescueLeases => world.chore(Chore::Leases),
            Self::RescueMessages => world.chore(Chore::Messages),
            Self::ExpireKeys => world.chore(Chore::Keys),
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
            Self::SetClockForward => set_clock_forward(world),
            Self::Cancel => by_hand(world, ByHand::Cancel),
            Self::Retry => by_hand(world, ByHand::Retry),
            Self::Republish => by_hand(world, ByHand::Republish),
            Self::Delete => by_hand(world, ByHand::Delete),
        }
    }
}

fn upload(world: &mut World) {
    const IDS: u128 = 10;
    let Some(process) = world.any(Life::Running).filter(|_| world.next_id < IDS * UPLOADS) else {
        return;
    };
    let key = (world.rng.u32(..3) == 0).then(|| format!("key {}", world.rng.u32(..2)));
    let plan = Plan {
        first_id: world.next_id,
        content: key.as_ref().map_or_else(|| world.rng.u8(..3), |key| key.as_bytes()[4]),
        key,
        lane: if world.rng.u32(..4) == 0 { Lane::Bulk } else { Lane::Interactive },
        max_attempts: world.config.max_attempts,
    };
    world.next_id += IDS;
    world.note(&format!("an upload to process {process}, key {:?}", plan.key));
    let store = world.processes[process].parts.store.clone();
    tokio::spawn(client::upload(world.shared.clone(), store, plan));
}

fn deliver(world: &mut World, doubled: bool) {
    let deliverable = world.deliverable();
    let Some(&(message, consumer)) = world.rng.choice(&deliverable) else { return };
    let shared = world.shared.clone();
    let returned = {
        let mut queues = shared.queues.lock();
        let notice = queues.messages[message].notice;
        let to = queues.consumers[consumer].process;
        let words = if doubled { " and kept" } else { "" };
        world.note(&super::text::short(&format!("to process {to}{words}: {notice:?}")));
        queues.deliver(&shared, (message, consumer), doubled)
    };
    drop(returned);
}

async fn pass_time(world: &mut World) {
    let lease = world.config.lease_ms;
    let choices = [20, 200, 1000, lease / 3 + 1, lease + 1, 10_001];
    let time = Duration::from_millis(choices[world.rng.usize(..choices.len())]);
    world.note(&format!("{time:?} pass"));
    world.pass(time).await;
}

fn start(world: &mut World) {
    let most = if world.embedded { 1 } else { FLEET };
    let living = world.processes.iter().filter(|one| one.life != Life::Dead).count();
    if living < most {
        world.note(&format!("process {} starts", world.processes.len()));
        world.start();
    }
}

fn lose_message(world: &mut World) {
    let mut queues = world.shared.queues.lock();
    if !queues.messages.is_empty() {
        let lost = world.rng.usize(..queues.messages.len());
        let lost = queues.messages.remove(lost);
        world.note(&super::text::short(&format!("lost: {lost:?}")));
    }
}

fn lose_connection(world: &mut World) {
    let Some(process) = world.any(Life::Running) else { return };
    if !world.embedded {
        world.note(&format!("process {process} loses the broker"));
        world.shared.queues.lock().disconnect(process);
    }
}

fn kill(world: &mut World) {
    let life = if world.rng.bool() { Life::Running } else { Life::Frozen };
    if let Some(process) = world.any(life) {
        world.note(&format!("process {process} is killed"));
        world.kill(process);
    }
}

fn freeze(world: &mut World) {
    if let Some(process) = world.any(Life::Running) {
        world.note(&format!("process {process} is stopped"));
        world.processes[process].life = Life::Frozen;
        // The broker may notice, or not.
        if !world.embedded && world.rng.bool() {
            world.shared.queues.lock().disconnect(process);
        }
    }
}

fn thaw(world: &mut World) {
    if let Some(process) = world.any(Life::Frozen) {
        world.note(&format!("process {process} goes on"));
        world.processes[process].life = Life::Running;
    }
}

fn terminate(world: &mut World) {
    if let Some(process) = world.any(Life::Running) {
        world.note(&format!("process {process} is told to end"));
        world.processes[process].shutdown.cancel();
    }
}

/// What clients, operators and dead letters ask of a task.
#[derive(Debug, Clone, Copy)]
enum ByHand {
    Cancel,
    Retry,
    Republish,
    Delete,
}

fn by_hand(world: &mut World, what: ByHand) {
    let Some(process) = world.any(Life::Running) else { return };
    let accepted = world.shared.promises(|told| told.accepted.clone());
    let Some(&task) = world.rng.choice(&accepted) else { return };
    world.note(&super::text::short(&format!("{what:?} {task:?} at process {process}")));
    let store = world.processes[process].parts.store.clone();
    // The numbers after a task's are those of its jobs, of its image, and of the deletion of that.
    let number = |after: u128| Uuid::from_u128(task.0.as_u128() + after);
    let job = JobId(number(1));
    let deletion = DeletionRequest {
        image: ImageId(number(3)),
        task: TaskId(number(4)),
        job: JobId(number(5)),
        max_attempts: world.config.max_attempts,
        after: Duration::from_secs(2),
        presets: Vec::new(),
        trace: None,
    };
    tokio::spawn(async move {
        // Whoever gets no answer asks again when the schedule says so.
        match what {
            ByHand::Cancel => drop(store.cancel(task).await),
            ByHand::Retry => drop(store.retry(&[task]).await),
            ByHand::Republish => drop(store.republish(job, Duration::from_secs(5)).await),
            ByHand::Delete => drop(store.delete_image(&deletion).await),
        }
    });
}

fn set_clock_forward(world: &mut World) {
    let time = Duration::from_secs(world.rng.u64(1..60));
    world.note(&format!("the clock is set {time:?} forward"));
    world.jump(time);
}
