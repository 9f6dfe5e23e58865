//! The background services that run beside every worker.

use crate::{
    backfill::BackfillCoordinator,
    maintenance::{
        Service,
        dead_letters::DeadLetters,
        janitor::{discarded::DiscardedImages, staged::StagedBytes, trash::Trash},
        outbox_relay::OutboxRelay,
        pruning::{ExpiredKeys, OldTasks, SilentWorkers},
        rescuer::{LeaseRescuer, MessageRescuer},
    },
    parts::WorkerParts,
    removal::Remover,
};

/// All background services.
pub fn services(parts: &WorkerParts) -> Vec<Box<dyn Service>> {
    let WorkerParts { config, store, queue, blobs, outbox_signal, .. } = parts;
    let (store, queue) = (|| store.clone(), || queue.clone());
    let (blobs, signal) = (|| blobs.clone(), || outbox_signal.clone());
    let remover = || Remover::new(store(), blobs());
    vec![
        outbox_relay(parts),
        Box::new(LeaseRescuer::new(store(), signal(), config)),
        Box::new(MessageRescuer::new(store(), queue(), signal(), config)),
        Box::new(DeadLetters::new(store(), queue())),
        Box::new(BackfillCoordinator::new(store(), blobs(), signal(), config)),
        Box::new(StagedBytes::new(store(), blobs(), config)),
        Box::new(Trash::new(remover(), config)),
        Box::new(DiscardedImages::new(store(), remover(), config)),
        Box::new(ExpiredKeys::new(store(), config)),
        Box::new(OldTasks::new(store(), config)),
        Box::new(SilentWorkers::new(store())),
    ]
}

/// The relay alone, for a process that accepts uploads and runs no jobs.
pub fn outbox_relay(parts: &WorkerParts) -> Box<dyn Service> {
    let (store, queue) = (parts.store.clone(), parts.queue.clone());
    Box::new(OutboxRelay::new(store, queue, parts.outbox_signal.clone(), &parts.config))
}
