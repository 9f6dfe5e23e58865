//! Clients that read without end and forgive nothing: every answer that is not the expected bytes is
//! a failure, and nothing is asked for twice.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use tokio::task::JoinSet;

use crate::{client::Client, wait::eventually};

/// Running clients.
pub struct Reads {
    clients: JoinSet<()>,
    shared: Arc<Shared>,
}

struct Shared {
    /// What is read, and what it must be.
    expected: Vec<(String, Bytes)>,
    enough: AtomicBool,
    done: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Reads {
    /// Starts `clients` of them, which read each of `expected` (path and content) in turn from the
    /// server at `url`.
    pub fn start(clients: usize, url: &str, expected: &[(String, Bytes)]) -> Result<Self> {
        let shared = Arc::new(Shared {
            expected: expected.to_vec(),
            enough: AtomicBool::new(false),
            done: AtomicUsize::new(0),
            failures: Mutex::default(),
        });
        let client = Client::new(url)?;
        let mut reads = Self { clients: JoinSet::new(), shared };
        for number in 0..clients {
            reads.clients.spawn(read_without_end(reads.shared.clone(), client.clone(), number));
        }
        Ok(reads)
    }

    /// How many reads have ended, whatever their answer.
    pub fn done(&self) -> usize {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// Waits until `count` more have ended.
    pub async fn more(&self, count: usize) -> Result<()> {
        let wanted = self.done() + count;
        let outcome = eventually("the reads have ended", async || Ok(self.done() >= wanted)).await;
        outcome.with_context(|| format!("{} of {wanted} reads have ended", self.done()))
    }

    /// Ends them; fails if a single read has. Answers how many there were.
    pub async fn stop(mut self) -> Result<usize> {
        self.shared.enough.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.context("a client died")?;
        }
        let failures = self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, done) = (failures.len(), self.done());
        ensure!(count == 0, "{count} of {done} reads failed, the first: {}", failures[0]);
        Ok(done)
    }
}

async fn read_without_end(shared: Arc<Shared>, client: Client, number: usize) {
    let mut turn = number;
    while !shared.enough.load(Ordering::Relaxed) {
        let (path, expected) = &shared.expected[turn % shared.expected.len()];
        let failure = match client.bytes(path).await {
            Ok(bytes) if bytes == *expected => None,
            Ok(bytes) => Some(format!("{path}: {} bytes, not those", bytes.len())),
            Err(error) => Some(format!("{path}: {error:?}")),
        };
        if let Some(failure) = failure {
            shared.failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
        }
        shared.done.fetch_add(1, Ordering::Relaxed);
        turn += 1;
    }
}
