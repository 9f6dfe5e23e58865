//! One simulated deployment, from its seed to its final audit.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use safelight_blobs::Blobs;
use safelight_config::Config;
use safelight_queue::OutboxSignal;
use safelight_store::{DynStore, testing::FaultyStore};
use safelight_store_sql::sqlite::{Clock, SqliteStore};

use super::{
    actions::Action,
    audit::Audit,
    broker::SimulatedBroker,
    odds::Odds,
    process::{MaintenanceStep, Process, ProcessState},
    scheduler::{Decision, Ending, WaitPoint, Waiting},
    shared::{ScheduledFaults, Shared},
};
use crate::WorkerParts;

/// A system without faults must become idle within this number of steps; it needs far fewer.
const MAX_STEPS_WITHOUT_FAULTS: usize = 4000;

/// After this many yields every task under test waits again.
const YIELDS: usize = 6;

pub(super) struct World {
    pub rng: Rng,
    pub shared: Arc<Shared>,
    pub processes: Vec<Process>,
    /// One process with an in-process queue, instead of several with a broker.
    pub embedded: bool,
    pub config: Arc<Config>,
    pub odds: Odds,
    pub next_id: u128,
    pub audit: Audit,
    blobs: Blobs,
    store: DynStore,
    clock: Arc<AtomicI64>,
    started_at: i64,
}

/// The totals of a simulation.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Report {
    pub steps: usize,
    pub tasks: usize,
    pub failed: usize,
}

impl World {
    pub async fn new(seed: u64, database: PathBuf, config: &Config, blobs: Blobs) -> Self {
        let mut rng = Rng::with_seed(seed);
        // The jitter of the product uses the generator of this thread.
        fastrand::seed(rng.u64(..));
        let started_at = 1_800_000_000_000_000;
        let clock = Arc::new(AtomicI64::new(started_at));
        let store = SqliteStore::open_simulated(&database, Clock::manual(clock.clone())).await;
        let audit = Audit::open(&database).await;
        let config = Config { max_attempts: rng.u32(1..=4), ..config.clone() };
        let mut world = Self {
            embedded: rng.u32(..3) == 0,
            odds: Odds::draw(&mut rng),
            rng,
            shared: Arc::default(),
            processes: Vec::new(),
            config: Arc::new(config),
            next_id: 1,
            audit,
            blobs,
            store: Arc::new(store.expect("open the database")),
            clock,
            started_at,
        };
        world.start();
        world
    }

    /// Runs the schedule, then lets the system finish its work without faults, and audits the result.
    pub async fn run(&mut self) -> Result<Report, String> {
        self.run_until_idle().await;
        let mut report = Report::default();
        for _ in 0..self.odds.steps {
            self.step().await?;
        }
        self.note("no more faults from here on");
        self.stop_faults();
        while !self.is_idle() {
            report.steps += 1;
            if report.steps > MAX_STEPS_WITHOUT_FAULTS {
                return Err(format!(
                    "never idle:\n{}",
                    self.audit.describe_unfinished().join("\n")
                ));
            }
            self.step_without_faults().await?;
        }
        let promises = self.shared.promises(|promises| promises.clone());
        let (messages, unacknowledged) = {
            let queues = self.shared.queues.lock();
            (queues.messages.len(), queues.unacknowledged.len())
        };
        self.audit.check_final_state(&promises, messages + unacknowledged).await?;
        (report.tasks, report.failed) = self.audit.task_counts();
        report.steps += self.odds.steps;
        Ok(report)
    }

    /// One step of the schedule: resumes a waiting task, or performs an action.
    async fn step(&mut self) -> Result<(), String> {
        let runnable = self.runnable();
        if !runnable.is_empty() && self.rng.u32(..100) < self.odds.resume_percent {
            let index = runnable[self.rng.usize(..runnable.len())];
            return self.resume(index, true).await;
        }
        let action = self.odds.choose_action(&mut self.rng);
        self.perform(action).await
    }

    async fn step_without_faults(&mut self) -> Result<(), String> {
        let runnable = self.runnable();
        if !runnable.is_empty() {
            let index = runnable[self.rng.usize(..runnable.len())];
            return self.resume(index, false).await;
        }
        let deliverable = !self.deliverable().is_empty();
        for action in Action::when_idle(deliverable) {
            self.perform(*action).await?;
        }
        Ok(())
    }

    async fn perform(&mut self, action: Action) -> Result<(), String> {
        action.apply(self).await;
        self.run_until_idle().await;
        self.note_ended_processes();
        self.shared.violation().map_or(Ok(()), Err)
    }

    /// Resumes a waiting task, and checks the acknowledgement or the store call that follows.
    async fn resume(&mut self, index: usize, faults: bool) -> Result<(), String> {
        let task = self.shared.scheduler.take(index);
        let decision = self.decide(&task, faults);
        self.note(&format!("process {} {}: {decision:?}", task.process, task.label));
        let (point, label, process) = (task.point, task.label.clone(), task.process);
        if let (WaitPoint::Ack(tag), Decision::Proceed) = (point, decision) {
            let job = self.shared.queues.lock().last_message_of_job(tag);
            if let Some(job) = job {
                self.audit.check_acknowledgement(job, self.processes[process].worker)?;
            }
        }
        task.resume(decision);
        if let (WaitPoint::Call(method), Decision::Proceed) = (point, decision) {
            self.shared.scheduler.call_finished.notified().await;
            self.run_until_idle().await;
            let shared = self.shared.clone();
            let confirmed =
                |job, generation| shared.queues.lock().confirmed.contains(&(job, generation));
            self.audit.check_call(method, &label, confirmed).await?;
        }
        self.run_until_idle().await;
        self.note_ended_processes();
        self.shared.violation().map_or(Ok(()), Err)
    }

    fn decide(&mut self, task: &Waiting, faults: bool) -> Decision {
        let fails = faults && self.rng.u32(..100) < self.odds.failure_percent;
        match task.point {
            WaitPoint::EndAttempt if faults => {
                Decision::EndAttempt(self.odds.choose_ending(&mut self.rng))
            }
            WaitPoint::EndAttempt => Decision::EndAttempt(Ending::Success),
            WaitPoint::Publish(count) if fails => match self.rng.usize(..=count + 1) {
                published if published <= count => Decision::FailAfter(published),
                _ => Decision::Fail,
            },
            _ if fails => Decision::Fail,
            _ => Decision::Proceed,
        }
    }

    /// The indices of the waiting tasks whose process runs.
    fn runnable(&self) -> Vec<usize> {
        let runs = |task: &Waiting| self.processes[task.process].state == ProcessState::Running;
        self.shared.scheduler.matching(runs)
    }

    pub fn deliverable(&self) -> Vec<(usize, usize)> {
        let is_alive = |process: usize| self.processes[process].state != ProcessState::Dead;
        self.shared.queues.lock().deliverable(is_alive)
    }

    /// Runs all tasks until each waits for the schedule, for time or for another task.
    pub async fn run_until_idle(&self) {
        for _ in 0..YIELDS {
            tokio::task::yield_now().await;
        }
    }

    pub fn start(&mut self) {
        let process = self.processes.len();
        let shared = self.shared.clone();
        let parts = WorkerParts {
            config: self.config.clone(),
            store: Arc::new(FaultyStore {
                inner: self.store.clone(),
                plan: ScheduledFaults { shared: shared.clone(), process },
            }),
            queue: Arc::new(SimulatedBroker { shared, process, survives_restart: !self.embedded }),
            blobs: self.blobs.clone(),
            shared_cache: None,
            outbox_signal: OutboxSignal::default(),
        };
        self.processes.push(Process::start(&self.shared, process, parts));
    }

    /// Ends a process; all its state in memory is lost.
    pub fn kill(&mut self, process: usize) {
        self.processes[process].state = ProcessState::Dead;
        let mut queues = self.shared.queues.lock();
        if self.embedded {
            queues.wipe();
        } else {
            queues.disconnect(process);
        }
    }

    /// Treats processes that have exited like killed ones.
    fn note_ended_processes(&mut self) {
        for process in 0..self.processes.len() {
            if self.processes[process].state == ProcessState::Running
                && self.processes[process].has_ended()
            {
                self.note(&format!("process {process} has exited"));
                self.kill(process);
            }
        }
    }

    /// Resumes frozen processes, and starts a process if none is left.
    fn stop_faults(&mut self) {
        for process in &mut self.processes {
            if process.state == ProcessState::Frozen {
                process.state = ProcessState::Running;
            }
        }
        let can_work = |process: &Process| {
            process.state == ProcessState::Running && !process.shutdown.is_cancelled()
        };
        for process in 0..self.processes.len() {
            // A process that shuts down would take long to end.
            if self.processes[process].state == ProcessState::Running
                && !can_work(&self.processes[process])
            {
                self.kill(process);
            }
        }
        if !self.processes.iter().any(can_work) {
            self.start();
        }
    }

    fn is_idle(&self) -> bool {
        let queues = self.shared.queues.lock();
        self.audit.unfinished() == 0
            && queues.messages.is_empty()
            && queues.unacknowledged.is_empty()
            && self.runnable().is_empty()
    }

    /// A random process in this state, if there is one.
    pub fn random_process(&mut self, state: ProcessState) -> Option<usize> {
        let candidates: Vec<usize> = (0..self.processes.len())
            .filter(|&process| self.processes[process].state == state)
            .collect();
        self.rng.choice(candidates)
    }

    pub fn run_maintenance(&mut self, step: MaintenanceStep) {
        if let Some(process) = self.random_process(ProcessState::Running) {
            self.note(&format!("process {process} {step:?}"));
            self.processes[process].run_maintenance(step);
        }
    }

    /// Advances the clock of the database and that of all processes.
    pub async fn advance_time(&mut self, time: Duration) {
        self.set_clock(time, true);
        tokio::time::advance(time).await;
    }

    /// Sets only the clock of the database, forward or back by `time`.
    pub fn set_clock(&mut self, time: Duration, forward: bool) {
        let micros = i64::try_from(time.as_micros()).expect("a short time");
        self.clock.fetch_add(if forward { micros } else { -micros }, Ordering::SeqCst);
    }

    pub fn note(&self, what: &str) {
        let millis = (self.clock.load(Ordering::SeqCst) - self.started_at) / 1000;
        self.shared.note(format!("{millis:>9} {what}"));
    }
}
