//! One simulated Safelight, from its seed to its audit.

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
    process::{Chore, Life, Process},
    shared::{Shared, Turn},
    turnstile::{Ending, Spot, Verdict, Waiting},
};
use crate::WorkerParts;

/// Steps that a system without faults may take until it is quiet; far more than it needs.
const PATIENCE: usize = 4000;

/// A task under test reaches its next stop within a few turns of the runtime.
const TURNS: usize = 6;

pub(super) struct World {
    pub rng: Rng,
    pub shared: Arc<Shared>,
    pub processes: Vec<Process>,
    /// One process with an in-process queue, not many with a broker.
    pub embedded: bool,
    pub config: Arc<Config>,
    pub odds: Odds,
    pub next_id: u128,
    pub audit: Audit,
    blobs: Blobs,
    store: DynStore,
    clock: Arc<AtomicI64>,
    began: i64,
}

/// What a simulation came to.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Report {
    pub steps: usize,
    pub tasks: usize,
    pub failed: usize,
}

impl World {
    pub async fn new(seed: u64, database: PathBuf, config: &Config, blobs: Blobs) -> Self {
        let mut rng = Rng::with_seed(seed);
        // The product's jitter, on this thread.
        fastrand::seed(rng.u64(..));
        let began = 1_800_000_000_000_000;
        let clock = Arc::new(AtomicI64::new(began));
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
            began,
        };
        world.start();
        world
    }

    /// Runs the schedule, then lets the system come to rest without faults.
    pub async fn run(&mut self) -> Result<Report, String> {
        self.stand_still().await;
        let mut report = Report::default();
        for _ in 0..self.odds.steps {
            self.step().await?;
        }
        self.note("no more faults from here");
        self.heal();
        while !self.is_quiet() {
            report.steps += 1;
            if report.steps > PATIENCE {
                return Err(format!("never quiet:\n{}", self.audit.story().join("\n")));
            }
            self.calm_step().await?;
        }
        let promises = self.shared.promises(|told| told.clone());
        let (messages, unsettled) = {
            let queues = self.shared.queues.lock();
            (queues.messages.len(), queues.unsettled.len())
        };
        self.audit.finish(&promises, messages + unsettled).await?;
        (report.tasks, report.failed) = self.audit.ended();
        report.steps += self.odds.steps;
        Ok(report)
    }

    /// One step of the schedule: a waiting task is let through, or something else happens.
    async fn step(&mut self) -> Result<(), String> {
        let places = self.places();
        if !places.is_empty() && self.rng.u32(..100) < self.odds.eagerness {
            let place = places[self.rng.usize(..places.len())];
            return self.let_through(place, true).await;
        }
        let action = self.odds.action(&mut self.rng);
        self.act(action).await
    }

    /// One step of a system in which nothing fails.
    async fn calm_step(&mut self) -> Result<(), String> {
        let places = self.places();
        if !places.is_empty() {
            let place = places[self.rng.usize(..places.len())];
            return self.let_through(place, false).await;
        }
        let deliverable = !self.deliverable().is_empty();
        for action in Action::calm(deliverable) {
            self.act(*action).await?;
        }
        Ok(())
    }

    async fn act(&mut self, action: Action) -> Result<(), String> {
        action.take(self).await;
        self.stand_still().await;
        self.note_ended_processes();
        self.shared.is_wrong().map_or(Ok(()), Err)
    }

    async fn let_through(&mut self, place: usize, faults: bool) -> Result<(), String> {
        let one = self.shared.turnstile.take(place);
        let verdict = self.verdict(&one, faults);
        self.note(&format!("process {} {}: {verdict:?}", one.process, one.label));
        let (spot, label, process) = (one.spot, one.label.clone(), one.process);
        if let (Spot::Ack(tag), Verdict::Go) = (spot, verdict) {
            let job = self.shared.queues.lock().last_of_its_job(tag);
            if let Some(job) = job {
                self.audit.acknowledged(job, self.processes[process].worker)?;
            }
        }
        one.go(verdict);
        if let (Spot::Call(method), Verdict::Go) = (spot, verdict) {
            self.shared.turnstile.call_over.notified().await;
            self.stand_still().await;
            let shared = self.shared.clone();
            let confirmed =
                |job, generation| shared.queues.lock().confirmed.contains(&(job, generation));
            self.audit.look(method, &label, confirmed).await?;
        }
        self.stand_still().await;
        self.note_ended_processes();
        self.shared.is_wrong().map_or(Ok(()), Err)
    }

    fn verdict(&mut self, one: &Waiting, faults: bool) -> Verdict {
        let fails = faults && self.rng.u32(..100) < self.odds.failure;
        match one.spot {
            Spot::End if faults => Verdict::End(self.odds.ending(&mut self.rng)),
            Spot::End => Verdict::End(Ending::Success),
            Spot::Publish(count) if fails => match self.rng.usize(..=count + 1) {
                part if part <= count => Verdict::Partly(part),
                _ => Verdict::Fail,
            },
            _ if fails => Verdict::Fail,
            _ => Verdict::Go,
        }
    }

    /// Everybody who waits in a process that runs.
    fn places(&self) -> Vec<usize> {
        let runs = |one: &Waiting| self.processes[one.process].life == Life::Running;
        self.shared.turnstile.places(runs)
    }

    pub fn deliverable(&self) -> Vec<(usize, usize)> {
        let lives = |process: usize| self.processes[process].life != Life::Dead;
        self.shared.queues.lock().deliverable(lives)
    }

    /// Lets all tasks run until each waits for the schedule, for time or for another.
    pub async fn stand_still(&self) {
        for _ in 0..TURNS {
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
                plan: Turn { shared: shared.clone(), process },
            }),
            queue: Arc::new(SimulatedBroker { shared, process, survives_restart: !self.embedded }),
            blobs: self.blobs.clone(),
            shared_cache: None,
            outbox_signal: OutboxSignal::default(),
        };
        self.processes.push(Process::start(&self.shared, process, parts));
    }

    /// The process and all that only it knew is gone.
    pub fn kill(&mut self, process: usize) {
        self.processes[process].life = Life::Dead;
        let mut queues = self.shared.queues.lock();
        if self.embedded {
            queues.wipe();
        } else {
            queues.disconnect(process);
        }
    }

    /// Processes that have ended by themselves are as gone as others.
    fn note_ended_processes(&mut self) {
        for process in 0..self.processes.len() {
            if self.processes[process].life == Life::Running && self.processes[process].is_over() {
                self.note(&format!("process {process} has ended"));
                self.kill(process);
            }
        }
    }

    /// Wakes frozen processes, and starts a process if there is none.
    fn heal(&mut self) {
        for process in &mut self.processes {
            if process.life == Life::Frozen {
                process.life = Life::Running;
            }
        }
        let fit = |one: &Process| one.life == Life::Running && !one.shutdown.is_cancelled();
        for process in 0..self.processes.len() {
            // What is about to end would have to be waited for.
            if self.processes[process].life == Life::Running && !fit(&self.processes[process]) {
                self.kill(process);
            }
        }
        if !self.processes.iter().any(fit) {
            self.start();
        }
    }

    fn is_quiet(&self) -> bool {
        let queues = self.shared.queues.lock();
        self.audit.unfinished() == 0
            && queues.messages.is_empty()
            && queues.unsettled.is_empty()
            && self.places().is_empty()
    }

    /// A process in this state, if there is one.
    pub fn any(&mut self, life: Life) -> Option<usize> {
        let fitting: Vec<usize> =
            (0..self.processes.len()).filter(|&one| self.processes[one].life == life).collect();
        self.rng.choice(fitting)
    }

    pub fn chore(&mut self, chore: Chore) {
        if let Some(process) = self.any(Life::Running) {
            self.note(&format!("process {process} {chore:?}"));
            self.processes[process].chore(chore);
        }
    }

    /// Time goes by for everybody.
    pub async fn pass(&mut self, time: Duration) {
        self.jump(time);
        tokio::time::advance(time).await;
    }

    /// The database's clock is set forward.
    pub fn jump(&mut self, time: Duration) {
        let micros = i64::try_from(time.as_micros()).expect("a short time");
        self.clock.fetch_add(micros, Ordering::SeqCst);
    }

    pub fn note(&self, what: &str) {
        let since = Duration::from_micros(
            (self.clock.load(Ordering::SeqCst) - self.began).try_into().unwrap_or_default(),
        );
        self.shared.note(format!("{:>9.3} {what}", since.as_secs_f64()));
    }
}
