//! Clients that read continuously without retries: every response other than the expected bytes is a failure.

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
    /// The paths to read, and the expected bytes.
    expected: Vec<(String, Bytes)>,
    stop: AtomicBool,
    done: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Reads {
    /// Starts `clients` clients. Each reads all of `expected` (path and content) in turn from the server at
    /// `url`.
    pub fn start(clients: usize, url: &str, expected: &[(String, Bytes)]) -> Result<Self> {
        let shared = Arc::new(Shared {
            expected: expected.to_vec(),
            stop: AtomicBool::new(false),
            done: AtomicUsize::new(0),
            failures: Mutex::default(),
        });
        let client = Client::new(url)?;
        let mut reads = Self { clients: JoinSet::new(), shared };
        for number in 0..clients {
            reads.clients.spawn(read_until_stopped(reads.shared.clone(), client.clone(), number));
        }
        Ok(reads)
    }

    /// The number of reads that have ended, including failures.
    pub fn done(&self) -> usize {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// Waits until `count` more reads have ended.
    pub async fn wait_for_more(&self, count: usize) -> Result<()> {
        let wanted = self.done() + count;
        let outcome = eventually("the reads have ended", async || Ok(self.done() >= wanted)).await;
        outcome.with_context(|| format!("{} of {wanted} reads have ended", self.done()))
    }

    /// Stops the clients; fails if any read failed. Returns the number of reads.
    pub async fn stop(mut self) -> Result<usize> {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.context("a client died")?;
        }
        let failures = self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, done) = (failures.len(), self.done());
        ensure!(count == 0, "{count} of {done} reads failed, the first: {}", failures[0]);
        Ok(done)
    }
}

async fn read_until_stopped(shared: Arc<Shared>, client: Client, number: usize) {
    let mut turn = number;
    while !shared.stop.load(Ordering::Relaxed) {
        let (path, expected) = &shared.expected[turn % shared.expected.len()];
        let failure = match client.bytes(path).await {
            Ok(bytes) if bytes == *expected => None,
            Ok(bytes) => Some(format!("{path}: {} unexpected bytes", bytes.len())),
            Err(error) => Some(format!("{path}: {error:?}")),
        };
        if let Some(failure) = failure {
            shared.failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
        }
        shared.done.fetch_add(1, Ordering::Relaxed);
        turn += 1;
    }
}
