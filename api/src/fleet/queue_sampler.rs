//! Rates, from samples of what is queued and of what workers report as ended. Rows of jobs do not suffice: those
//! of a backfill are removed soon after they have ended.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use safelight_domain::{Status, WorkerId};
use safelight_queue::Queue;
use safelight_store::{JobCount, Jobs, RegisteredWorker, StoreError, Workers};
use safelight_telemetry::{DependencyHealth, NoAnswer};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::workers::list_workers;

/// Over how long rates are taken.
const WINDOW: Duration = Duration::from_mins(1);

/// Samples kept at most.
const MAX_SAMPLES: usize = 128;

/// How long the store may take for a sample.
const PATIENCE: Duration = Duration::from_secs(10);

/// A sample is good for so long.
const MAX_AGE: Duration = Duration::from_secs(1);

/// Net jobs per second below which a queue counts as stalled.
const STILL: f64 = 0.001;

/// One queue: how much is queued, and how fast it goes.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueReport {
    /// The queue.
    pub queue: Queue,
    /// Jobs that are queued, due or not.
    pub depth: u64,
    /// Those of them that are due.
    pub due: u64,
    /// Jobs that run.
    pub running: u64,
    /// Jobs that failed for good.
    pub failed: u64,
    /// How long the oldest due job has been due; 0 if none is.
    pub oldest_due_seconds: f64,
    /// Jobs that came, per second; `None` until enough was seen.
    pub rate_in: Option<f64>,
    /// Jobs that ended, per second; `None` until enough was seen.
    pub rate_out: Option<f64>,
    /// When the queue will be empty at these rates; `None` if it would never be, or they are not known.
    pub seconds_to_empty: Option<f64>,
}

/// Watches the queues.
pub struct QueueSampler {
    jobs: Arc<dyn Jobs>,
    workers: Arc<dyn Workers>,
    history: Mutex<History>,
    /// How often workers report ended jobs, and how often to take a sample.
    period: Duration,
}

impl QueueSampler {
    /// Watches workers that beat every `period`.
    pub fn new(jobs: Arc<dyn Jobs>, workers: Arc<dyn Workers>, period: Duration) -> Self {
        Self { jobs, workers, history: Mutex::default(), period }
    }

    /// The queues now. Takes a sample if the last one is old; requests at the same time share it.
    pub async fn read(&self) -> Result<Vec<QueueReport>, StoreError> {
        let mut history = self.history.lock().await;
        let max_age = MAX_AGE.min(self.period / 5);
        if history.samples.back().is_none_or(|last| last.at.elapsed() >= max_age) {
            // In this order, a job that ends between the two reads counts as ended one sample later.
            let workers = list_workers(&*self.workers).await?;
            let counts = self.jobs.job_counts().await?;
            history.add(Instant::now(), &counts, &workers);
        }
        Ok(history.reports(self.period * 2))
    }

    /// Takes samples periodically. Never ends.
    pub async fn run(&self) {
        let health = DependencyHealth::new("read the queues");
        loop {
            match timeout(PATIENCE, self.read()).await {
                Ok(Ok(_)) => health.recovered(),
                Ok(Err(error)) => {
                    health.failed(&error);
                }
                Err(_) => {
                    health.failed(&NoAnswer);
                }
            }
            tokio::time::sleep(self.period).await;
        }
    }
}

/// The samples of the last minute.
#[derive(Default)]
struct History {
    /// Oldest first.
    samples: VecDeque<Sample>,
    /// What each worker had ended, by queue, in the last sample.
    workers: HashMap<WorkerId, HashMap<Queue, u64>>,
    /// Jobs seen to end since the first sample.
    ended: HashMap<Queue, u64>,
}

struct Sample {
    at: Instant,
    figures: Vec<Figures>,
}

/// One queue at one time.
#[derive(Clone, Copy)]
struct Figures {
    queue: Queue,
    depth: u64,
    due: u64,
    running: u64,
    failed: u64,
    oldest_due_seconds: f64,
    /// Jobs seen to end since the first sample.
    ended: u64,
}

impl History {
    fn add(&mut self, at: Instant, counts: &[JobCount], workers: &[RegisteredWorker]) {
        let watched = self.samples.back().map(|last| at.duration_since(last.at));
        self.note_ended(watched, workers);
        let figures = Queue::all().map(|queue| {
            let of = |status| {
                counts.iter().find(|one| {
                    (one.kind, one.lane, one.status) == (queue.kind, queue.lane, status)
                })
            };
            let count = |status| of(status).map_or(0, |found| found.count);
            let queued = of(Status::Queued);
            Figures {
                queue,
                depth: count(Status::Queued),
                due: queued.map_or(0, |found| found.due),
                running: count(Status::Running),
                failed: count(Status::Failed),
                oldest_due_seconds: queued.map_or(0.0, |found| found.oldest_due_seconds),
                ended: self.ended.get(&queue).copied().unwrap_or(0),
            }
        });
        let figures = figures.collect();
        self.samples.push_back(Sample { at, figures });
        self.trim(at);
    }

    /// Adds what each worker has ended since the last sample, `watched` ago. By worker, so that a worker
    /// that stops does not reduce the sum.
    fn note_ended(&mut self, watched: Option<Duration>, workers: &[RegisteredWorker]) {
        let mut seen = HashMap::new();
        for worker in workers {
            let before = self.workers.get(&worker.beat.id);
            let mut now = HashMap::new();
            for slots in &worker.beat.slots {
                // This node has no queue for kinds that only newer nodes know.
                let (Ok(kind), Ok(lane)) = (slots.kind.parse(), slots.lane.parse()) else {
                    continue;
                };
                let queue = Queue { kind, lane };
                let base = match (before, watched) {
                    (Some(before), _) => before.get(&queue).copied().unwrap_or(0),
                    // Started since the last sample: all its jobs ended since then. Otherwise it was missing
                    // from the registry for a while, and it is unknown when they ended.
                    (None, Some(watched)) if is_new(worker, watched) => 0,
                    (None, _) => slots.ended,
                };
                *self.ended.entry(queue).or_default() += slots.ended.saturating_sub(base);
                now.insert(queue, slots.ended);
            }
            seen.insert(worker.beat.id, now);
        }
        self.workers = seen;
    }

    /// Keeps the window, and one sample before it as its start.
    fn trim(&mut self, now: Instant) {
        let is_older = |sample: Option<&Sample>, age| {
            sample.is_some_and(|sample| now.duration_since(sample.at) >= age)
        };
        while self.samples.len() > MAX_SAMPLES
            || is_older(self.samples.get(1), WINDOW)
            || is_older(self.samples.front(), WINDOW * 2)
        {
            self.samples.pop_front();
        }
    }

    /// The queues as last seen; with rates once they were watched for `enough`.
    fn reports(&self, enough: Duration) -> Vec<QueueReport> {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return Vec::new();
        };
        let watched = last.at.duration_since(first.at);
        let seconds = (watched >= enough).then_some(watched.as_secs_f64());
        let pairs = first.figures.iter().zip(&last.figures);
        pairs.map(|(first, last)| report(first, last, seconds)).collect()
    }
}

/// Whether a worker started within the last sample's time, give or take the age of its beat.
fn is_new(worker: &RegisteredWorker, watched: Duration) -> bool {
    worker.beat.uptime <= watched + worker.beat.period
}

fn report(first: &Figures, last: &Figures, seconds: Option<f64>) -> QueueReport {
    let rates = seconds.map(|seconds| {
        let open = |figures: &Figures| float(figures.depth + figures.running);
        let rate_out = float(last.ended.saturating_sub(first.ended)) / seconds;
        let rate_in = rate_out + (open(last) - open(first)) / seconds;
        (rate_in.max(0.0), rate_out)
    });
    QueueReport {
        queue: last.queue,
        depth: last.depth,
        due: last.due,
        running: last.running,
        failed: last.failed,
        oldest_due_seconds: rounded(last.oldest_due_seconds),
        rate_in: rates.map(|(rate_in, _)| rounded(rate_in)),
        rate_out: rates.map(|(_, rate_out)| rounded(rate_out)),
        seconds_to_empty: seconds_to_empty(last.depth, rates),
    }
}

fn seconds_to_empty(depth: u64, rates: Option<(f64, f64)>) -> Option<f64> {
    if depth == 0 {
        return Some(0.0);
    }
    let (rate_in, rate_out) = rates?;
    let net = rate_out - rate_in;
    (net > STILL).then(|| rounded(float(depth) / net))
}

#[allow(clippy::cast_precision_loss)] // exact up to 2^53 jobs
fn float(count: u64) -> f64 {
    count as f64
}

/// To milliseconds, or thousandths of a job per second.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use safelight_domain::{JobKind, Lane};
    use safelight_store::{Heartbeat, QueueSlots};

    use super::*;

    const QUEUE: Queue = Queue { kind: JobKind::Thumbnail, lane: Lane::Bulk };
    const PERIOD: Duration = Duration::from_secs(5);

    fn worker(id: WorkerId, uptime: u64, ended: u64) -> RegisteredWorker {
        let slots = |kind: &str| QueueSlots {
            kind: kind.to_owned(),
            lane: "bulk".to_owned(),
            slots: 1,
            busy: 0,
            ended,
            run_ms: 0,
        };
        let beat = Heartbeat {
            id,
            host: String::new(),
            pid: 1,
            version: String::new(),
            draining: false,
            kinds: Vec::new(),
            lanes: Vec::new(),
            concurrency: 1,
            slots: vec![slots("thumbnail"), slots("dream")],
            services: Vec::new(),
            period: PERIOD,
            uptime: Duration::from_secs(uptime),
        };
        let now = Utc::now();
        RegisteredWorker {
            beat,
            started_at: now,
            last_heartbeat_at: now,
            silent_for: Duration::ZERO,
        }
    }

    fn jobs(status: Status, count: u64) -> JobCount {
        let Queue { kind, lane } = QUEUE;
        JobCount { kind, lane, status, count, due: count, oldest_due_seconds: 1.5 }
    }

    /// A history with `samples` (second, queued jobs, workers), and its report after each of them.
    fn watch(samples: &[(u64, u64, &[RegisteredWorker])]) -> (History, Vec<QueueReport>) {
        let (mut history, started, mut seen) = (History::default(), Instant::now(), Vec::new());
        for (second, queued, workers) in samples {
            let counts = [jobs(Status::Queued, *queued), jobs(Status::Running, 2)];
            history.add(started + Duration::from_secs(*second), &counts, workers);
            let reports = history.reports(PERIOD * 2);
            assert_eq!(reports.len(), Queue::all().count(), "every queue has a report");
            let one = reports.into_iter().find(|one| one.queue == QUEUE);
            seen.push(one.expect("this queue"));
        }
        (history, seen)
    }

    fn rates(report: &QueueReport) -> (Option<f64>, Option<f64>, Option<f64>) {
        (report.rate_in, report.rate_out, report.seconds_to_empty)
    }

    #[test]
    fn rates_are_known_after_two_heartbeats() {
        let id = WorkerId::new();
        let (_, seen) = watch(&[
            (0, 1000, &[worker(id, 500, 70)]),
            (5, 950, &[worker(id, 505, 120)]),
            (10, 940, &[worker(id, 510, 170)]),
        ]);
        assert_eq!(rates(&seen[0]), (None, None, None));
        assert_eq!(rates(&seen[1]), (None, None, None));
        // In 10 s 100 jobs ended, but the queue shrank by only 60: so 40 were added.
        assert_eq!(rates(&seen[2]), (Some(4.0), Some(10.0), Some(156.667)));
        assert_eq!((seen[2].depth, seen[2].due, seen[2].running), (940, 940, 2));
    }

    #[test]
    fn joining_and_leaving_workers_do_not_distort_rates() {
        let (old, new, back) = (WorkerId::new(), WorkerId::new(), WorkerId::new());
        let (_, seen) = watch(&[
            (0, 500, &[worker(old, 900, 1_000_000)]),
            (5, 400, &[worker(old, 905, 1_000_100), worker(new, 4, 30)]),
            // The old worker is killed, and one that was silent for long reports again.
            (10, 300, &[worker(new, 9, 100), worker(back, 4000, 777_777)]),
            (20, 200, &[worker(new, 19, 200), worker(back, 4010, 777_877)]),
        ]);
        assert_eq!(seen[2].rate_out, Some(20.0));
        assert_eq!(seen[3].rate_out, Some(20.0));
        assert_eq!(seen[3].rate_in, Some(5.0));
    }

    #[test]
    fn queue_that_never_empties_has_no_time_to_empty() {
        let id = WorkerId::new();
        let (_, seen) = watch(&[
            (0, 10, &[worker(id, 500, 0)]),
            (10, 10, &[worker(id, 510, 10)]),
            (20, 0, &[worker(id, 520, 10)]),
        ]);
        assert_eq!(rates(&seen[1]), (Some(1.0), Some(1.0), None));
        assert_eq!(seen[2].seconds_to_empty, Some(0.0));
        // Ten jobs were cancelled, so no worker ended them. The rate in is 0, never negative.
        assert_eq!(seen[2].rate_in, Some(0.0));
    }

    #[test]
    fn old_samples_are_forgotten() {
        let id = WorkerId::new();
        let beat = [worker(id, 500, 0)];
        let samples: Vec<(u64, u64, &[RegisteredWorker])> =
            (0..100).map(|n| (n * 5, 1, beat.as_slice())).collect();
        let (mut history, _) = watch(&samples);
        assert_eq!(history.samples.len(), 13, "a minute");
        let last = history.samples.back().expect("some").at;
        history.add(last + WINDOW * 2, &[], &beat);
        assert_eq!(history.samples.len(), 1, "an outage is not averaged over");
        for n in 0..1000 {
            history.add(last + WINDOW * 2 + Duration::from_millis(n), &[], &beat);
        }
        assert_eq!(history.samples.len(), MAX_SAMPLES);
    }
}
