//! A worker's current and finished work by queue, for its heartbeats and its metrics.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Instant,
};

use metrics::gauge;
use safelight_domain::{JobKind, Lane};
use safelight_queue::Queue;
use safelight_store::QueueSlots;

use super::{options::WorkerOptions, slots::Reserve};
use crate::jobs;

/// Figures of every queue that a worker serves.
pub(super) struct Stats(Vec<Figures>);

struct Figures {
    queue: Queue,
    slots: u32,
    busy: AtomicU32,
    ended: AtomicU64,
    run_ms: AtomicU64,
}

/// An attempt that runs, until it is dropped.
pub(super) struct Running<'a> {
    figures: Option<&'a Figures>,
    began: Instant,
}

impl Stats {
    /// The stats of a new worker with these options.
    pub fn new(options: &WorkerOptions, reserve: Reserve) -> Self {
        let queues = jobs::queues(&options.kinds, &options.lanes).into_iter().map(|queue| {
            let slots = jobs::slots(queue.kind, options.concurrency);
            let slots = reserve.slots(queue.lane, &options.lanes, slots);
            Figures {
                queue,
                slots: u32::try_from(slots).unwrap_or(u32::MAX),
                busy: AtomicU32::new(0),
                ended: AtomicU64::new(0),
                run_ms: AtomicU64::new(0),
            }
        });
        let stats = Self(queues.collect());
        for figures in &stats.0 {
            figures.gauge("total").set(figures.slots);
            figures.gauge("busy").set(0);
        }
        stats
    }

    /// Records the start of an attempt.
    pub fn begin(&self, kind: JobKind, lane: Lane) -> Running<'_> {
        let figures = self.of(kind, lane);
        if let Some(figures) = figures {
            figures.busy.fetch_add(1, Ordering::Relaxed);
            figures.gauge("busy").increment(1);
        }
        Running { figures, began: Instant::now() }
    }

    /// Records that a job has ended, successfully or not.
    pub fn ended(&self, kind: JobKind, lane: Lane) {
        if let Some(figures) = self.of(kind, lane) {
            figures.ended.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All figures now.
    pub fn snapshot(&self) -> Vec<QueueSlots> {
        let now = |figures: &Figures| QueueSlots {
            kind: figures.queue.kind.to_string(),
            lane: figures.queue.lane.to_string(),
            slots: figures.slots,
            busy: figures.busy.load(Ordering::Relaxed),
            ended: figures.ended.load(Ordering::Relaxed),
            run_ms: figures.run_ms.load(Ordering::Relaxed),
        };
        self.0.iter().map(now).collect()
    }

    fn of(&self, kind: JobKind, lane: Lane) -> Option<&Figures> {
        self.0.iter().find(|figures| figures.queue == Queue { kind, lane })
    }
}

impl Figures {
    fn gauge(&self, state: &'static str) -> metrics::Gauge {
        let Queue { kind, lane } = self.queue;
        gauge!("safelight_worker_slots", "kind" => kind.as_str(), "lane" => lane.as_str(), "state" => state)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let Some(figures) = self.figures else { return };
        figures.busy.fetch_sub(1, Ordering::Relaxed);
        figures.gauge("busy").decrement(1);
        let took = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        figures.run_ms.fetch_add(took, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_count_busy_slots_and_ended_jobs() {
        let options = WorkerOptions {
            kinds: vec![JobKind::Thumbnail],
            lanes: Lane::ALL.to_vec(),
            concurrency: 3,
        };
        let stats = Stats::new(&options, Reserve { percent: 25 });
        let first = stats.begin(JobKind::Thumbnail, Lane::Bulk);
        let second = stats.begin(JobKind::Thumbnail, Lane::Bulk);
        // This worker runs no write jobs, so this one is not counted.
        drop(stats.begin(JobKind::Write, Lane::Bulk));
        drop(first);
        stats.ended(JobKind::Thumbnail, Lane::Bulk);
        let snapshot = stats.snapshot();
        let counts = |lane: Lane| {
            let slots = snapshot.iter().find(|slots| slots.lane == lane.as_str()).expect("served");
            (slots.kind.as_str(), slots.slots, slots.busy, slots.ended)
        };
        assert_eq!(snapshot.len(), 2);
        assert_eq!(counts(Lane::Bulk), ("thumbnail", 2, 1, 1));
        assert_eq!(counts(Lane::Interactive), ("thumbnail", 3, 0, 0));
        drop(second);
        assert!(stats.snapshot().iter().all(|slots| slots.busy == 0));
    }
}
