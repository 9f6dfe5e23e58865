//! The pool of a worker's decoder processes.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use safelight_domain::{ErrorCode, Failure};
use safelight_telemetry::DependencyHealth;
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    limits::DecoderLimits,
    process::Process,
    request::{Request, Response},
};

/// Decoders in addition to those for the thumbnail slots, so that reading the header of a new upload does not
/// wait for the pictures that are being rendered.
const EXTRA_FOR_HEADERS: usize = 2;

/// A decoder idle for this long is stopped when another one is returned.
const MAX_IDLE: Duration = Duration::from_mins(2);

/// Number of decoders to try until one receives the picture.
const MAX_STARTS: u32 = 3;

/// Idle and busy decoders. Dropping the pool stops the idle ones.
pub(super) struct Pool {
    limits: DecoderLimits,
    permits: Semaphore,
    /// Ordered by last use; the last entry is used next.
    idle: Mutex<Vec<(Process, Instant)>>,
}

impl Pool {
    /// Decoders are started on demand.
    pub fn new(limits: DecoderLimits, slots: usize) -> Self {
        Self { limits, permits: Semaphore::new(slots + EXTRA_FOR_HEADERS), idle: Mutex::default() }
    }

    /// Runs a request on a decoder. Dropping the future kills that decoder immediately.
    pub async fn run(&self, request: &Request, picture: Bytes) -> Result<Response, Failure> {
        if picture.len() as u64 > self.limits.memory_bytes {
            return Err(self.limits.too_much_memory());
        }
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await;
        let mut death = None;
        for _ in 0..MAX_STARTS {
            let mut decoder = self.take().await;
            match timeout(self.limits.wall(), decoder.send(request, &picture)).await {
                Ok(Ok(())) => {
                    // The decoder has its own copy now.
                    drop(picture);
                    return self.finish(decoder, request).await;
                }
                Ok(Err(_)) => death = Some(decoder.post_mortem(self.limits).await),
                Err(_) => {}
            }
        }
        // If the decoder ran out of memory, the picture is too large to be received; the picture does not
        // cause any other failure before it is received.
        Err(death.filter(|failure| failure.code == ErrorCode::DecoderOutOfMemory).unwrap_or_else(
            || Failure::new(ErrorCode::WorkerPanicked, "the worker's decoders do not start"),
        ))
    }

    async fn finish(&self, mut decoder: Process, request: &Request) -> Result<Response, Failure> {
        let wall = self.limits.wall();
        match timeout(wall, decoder.receive(request)).await {
            Ok(Ok(response)) => {
                self.return_to_pool(decoder);
                response
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "no response from a decoder");
                Err(decoder.post_mortem(self.limits).await)
            }
            Err(_) => Err(Failure::new(
                ErrorCode::DecoderTimedOut,
                format!("decoding took longer than {} s", wall.as_secs()),
            )),
        }
    }

    /// Takes an idle decoder, or starts one and retries until the system allows it.
    async fn take(&self) -> Process {
        while let Some(mut decoder) = self.last_used() {
            if decoder.is_alive() {
                return decoder;
            }
        }
        let health = DependencyHealth::new("start a decoder");
        loop {
            match Process::start(self.limits) {
                Ok(decoder) => {
                    health.recovered();
                    return decoder;
                }
                Err(error) => tokio::time::sleep(health.failed(&error)).await,
            }
        }
    }

    fn last_used(&self) -> Option<Process> {
        self.idle().pop().map(|(decoder, _)| decoder)
    }

    fn return_to_pool(&self, decoder: Process) {
        let mut idle = self.idle();
        idle.retain(|(_, since)| since.elapsed() < MAX_IDLE);
        idle.push((decoder, Instant::now()));
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Process, Instant)>> {
        // No panic can leave the list half-changed.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
