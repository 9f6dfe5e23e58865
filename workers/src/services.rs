//! The background services that run beside every worker. Their settings are made here from the configuration.

use std::time::Duration;

use crate::{
    backfill::BackfillCoordinator,
    maintenance::{
        Service,
        clock_watch::ClockWatch,
        dead_letters::DeadLetters,
        installation_watch::InstallationWatch,
        janitor::{
            discarded::DiscardedImages, quarantine::QuarantinedObjects, staged::StagedBytes,
            trash::Trash, unfinished::UnfinishedWrites,
        },
        outbox_relay::{OutboxRelay, RelaySettings},
        pruning::{ExpiredKeys, OldTasks, SilentWorkers},
        rescuer::{LeaseRescuer, MessageRescuer},
    },
    parts::WorkerParts,
    removal::{Purger, Quarantine},
    retry_policy::RetryPolicy,
};

/// All background services.
pub fn services(parts: &WorkerParts) -> Vec<Box<dyn Service>> {
    let WorkerParts { config, store, queue, blobs, outbox_signal, .. } = parts;
    let (store, blobs) = (|| store.clone(), || blobs.clone());
    let staged_grace = Duration::from_millis(config.staged_grace_ms);
    let task_age = Duration::from_hours(config.task_keep_days.saturating_mul(24));
    vec![
        outbox_relay(parts),
        Box::new(clock_watch(parts)),
        Box::new(lease_rescuer(parts)),
        Box::new(message_rescuer(parts)),
        Box::new(DeadLetters::new(store(), queue.clone())),
        Box::new(BackfillCoordinator::new(
            store(),
            blobs(),
            parts.installation_guard(),
            outbox_signal.clone(),
            config,
        )),
        Box::new(InstallationWatch::new(parts.installation_guard())),
        Box::new(StagedBytes::new(store(), blobs(), parts.installation_guard(), staged_grace)),
        Box::new(UnfinishedWrites::new(blobs(), staged_grace)),
        Box::new(trash(parts)),
        Box::new(quarantined_objects(parts)),
        Box::new(discarded_images(parts)),
        Box::new(expired_keys(parts)),
        Box::new(OldTasks::new(store(), task_age)),
        Box::new(SilentWorkers::new(store())),
    ]
}

/// The relay alone, for a process that accepts uploads and runs no jobs.
pub fn outbox_relay(parts: &WorkerParts) -> Box<dyn Service> {
    Box::new(relay(parts))
}

pub(crate) fn relay(parts: &WorkerParts) -> OutboxRelay {
    let WorkerParts { config, store, queue, outbox_signal, .. } = parts;
    let settings = RelaySettings {
        poll: Duration::from_millis(config.relay_poll_ms),
        publish_ahead: config.publish_ahead,
        messaging_system: config.queue_url.system(),
    };
    OutboxRelay::new(store.clone(), queue.clone(), outbox_signal.clone(), settings)
}

pub(crate) fn clock_watch(parts: &WorkerParts) -> ClockWatch {
    let WorkerParts { config, store, outbox_signal, .. } = parts;
    ClockWatch::new(store.clone(), outbox_signal.clone(), config)
}

pub(crate) fn lease_rescuer(parts: &WorkerParts) -> LeaseRescuer {
    let WorkerParts { config, store, outbox_signal, .. } = parts;
    let retries = RetryPolicy::from_ms(config.backoff_base_ms, config.backoff_cap_ms);
    let lease = Duration::from_millis(config.lease_ms);
    LeaseRescuer::new(store.clone(), outbox_signal.clone(), retries, lease)
}

pub(crate) fn message_rescuer(parts: &WorkerParts) -> MessageRescuer {
    let WorkerParts { config, store, queue, outbox_signal, .. } = parts;
    let after = Duration::from_millis(config.republish_after_ms);
    MessageRescuer::new(store.clone(), queue.clone(), outbox_signal.clone(), after)
}

fn trash(parts: &WorkerParts) -> Trash {
    Trash::new(parts.remover(), Duration::from_millis(parts.config.staged_grace_ms))
}

pub(crate) fn quarantined_objects(parts: &WorkerParts) -> QuarantinedObjects {
    let WorkerParts { config, store, blobs, .. } = parts;
    let keep = Duration::from_millis(config.quarantine_ms);
    let quarantine = Quarantine::new(store.clone(), blobs.clone(), keep);
    let grace = Duration::from_millis(config.staged_grace_ms);
    QuarantinedObjects::new(quarantine, blobs.clone(), parts.installation_guard(), keep, grace)
}

pub(crate) fn discarded_images(parts: &WorkerParts) -> DiscardedImages {
    let WorkerParts { config, store, .. } = parts;
    let purger = Purger::new(&config.purge_urls, &config.presets, config.unknown_after());
    DiscardedImages::new(store.clone(), parts.remover(), purger)
}

pub(crate) fn expired_keys(parts: &WorkerParts) -> ExpiredKeys {
    let max_age = Duration::from_secs(parts.config.idempotency_keep_hours.saturating_mul(3600));
    ExpiredKeys::new(parts.store.clone(), max_age)
}
