//! The pool of a worker's decoder processes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use safelight_domain::{ErrorCode, Failure, Owner};
use safelight_telemetry::DependencyHealth;
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    idle::IdleDecoders,
    limits::DecoderLimits,
    process::Process,
    request::{Request, Response},
};

/// Decoders in addition to those for the thumbnail slots, so that reading the header of a new upload does not
/// wait for the pictures that are being rendered.
const EXTRA_FOR_HEADERS: usize = 2;

/// Number of decoders to try until one receives the picture.
const MAX_STARTS: u32 = 3;

/// Idle and busy decoders. Dropping the pool stops the idle ones.
pub(super) struct Pool {
    limits: DecoderLimits,
    permits: Semaphore,
    idle: Mutex<IdleDecoders<Process>>,
}

impl Pool {
    /// Decoders are started on demand.
    pub fn new(limits: DecoderLimits, slots: usize) -> Self {
        Self { limits, permits: Semaphore::new(slots + EXTRA_FOR_HEADERS), idle: Mutex::default() }
    }

    /// Runs a request on a decoder that has read no picture of another owner. Dropping the future kills that
    /// decoder immediately.
    pub async fn run(
        &self,
        request: &Request,
        picture: Bytes,
        owner: &Owner,
    ) -> Result<Response, Failure> {
        if picture.len() as u64 > self.limits.memory_bytes {
            return Err(self.limits.too_much_memory());
        }
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await;
        let mut death = None;
        for _ in 0..MAX_STARTS {
            let mut decoder = self.take(owner).await;
            match timeout(self.limits.wall(), decoder.send(request, &picture)).await {
                Ok(Ok(())) => {
                    // The decoder has its own copy now.
                    drop(picture);
                    self.prepare(owner);
                    return self.finish(decoder, request, owner).await;
                }
                Ok(Err(_)) => death = Some(decoder.post_mortem(self.limits).await),
                Err(_) => {}
            }
        }
        let is_known = |failure: &Failure| {
            // If the decoder ran out of memory, the picture is too large to be received; the picture does not
            // cause any other failure before it is received.
            matches!(failure.code, ErrorCode::DecoderOutOfMemory | ErrorCode::DecoderKilled)
        };
        Err(death.filter(is_known).unwrap_or_else(|| {
            Failure::new(ErrorCode::WorkerPanicked, "the worker's decoders do not start")
        }))
    }

    async fn finish(
        &self,
        mut decoder: Process,
        request: &Request,
        owner: &Owner,
    ) -> Result<Response, Failure> {
        let wall = self.limits.wall();
        match timeout(wall, decoder.receive(request)).await {
            Ok(Ok(response)) => {
                self.return_to_pool(decoder, owner);
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
    async fn take(&self, owner: &Owner) -> Process {
        while let Some(mut decoder) = self.take_idle(owner) {
            if decoder.is_alive() {
                return decoder;
            }
        }
        // In place of one that another owner has used.
        self.idle().shrink_to(self.permits.available_permits());
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

    fn take_idle(&self, owner: &Owner) -> Option<Process> {
        self.idle().take(owner)
    }

    /// Starts a decoder for the next owner, so that it need not wait. While there is one owner, it costs nothing.
    fn prepare(&self, owner: &Owner) {
        {
            let mut idle = self.idle();
            if !idle.needs_unused(owner) {
                return;
            }
            idle.shrink_to(self.permits.available_permits());
        }
        // Without the lock, which others need. On an error, the next picture tries again, and reports it.
        let Ok(decoder) = Process::start(self.limits) else { return };
        let mut idle = self.idle();
        if idle.needs_unused(owner) {
            idle.put(decoder, None);
        }
    }

    fn return_to_pool(&self, decoder: Process, owner: &Owner) {
        let mut idle = self.idle();
        idle.put(decoder, Some(owner.clone()));
        // In addition to those with a permit, one may be prepared. The permit of this one is still taken.
        idle.shrink_to(self.permits.available_permits() + 2);
    }

    fn idle(&self) -> MutexGuard<'_, IdleDecoders<Process>> {
        // No panic can leave the list half-changed.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
