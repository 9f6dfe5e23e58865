//! The decoders of one worker: as many as pictures at once, used again for the next one.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use safelight_domain::{ErrorCode, Failure};
use safelight_telemetry::DependencyHealth;
use tokio::{sync::Semaphore, time::timeout};

use super::{
    DecoderLimits,
    process::Process,
    request::{Answer, Request},
};

/// Decoders beside those for the thumbnail slots, so that the quick look at a new upload's header
/// does not wait for the pictures that are being rendered.
const FOR_HEADERS: usize = 2;

/// A decoder that nobody has needed for this long is ended when another one comes back.
const IDLE: Duration = Duration::from_mins(2);

/// Decoders that may die, one after the other, before they have begun with the same picture.
const FALSE_STARTS: u32 = 3;

/// Idle and busy decoders. Dropping it ends the idle ones.
pub(super) struct Pool {
    limits: DecoderLimits,
    turns: Semaphore,
    /// The one used last is at the end, and used next.
    idle: Mutex<Vec<(Process, Instant)>>,
}

impl Pool {
    /// Starts no decoder before it is needed.
    pub fn new(limits: DecoderLimits, slots: usize) -> Self {
        Self { limits, turns: Semaphore::new(slots + FOR_HEADERS), idle: Mutex::default() }
    }

    /// Has a decoder answer. Dropping the future kills that decoder at once.
    pub async fn run(&self, request: &Request, picture: Bytes) -> Result<Answer, Failure> {
        if picture.len() as u64 > self.limits.memory_bytes {
            return Err(self.limits.too_much_memory());
        }
        // The semaphore is never closed.
        let _turn = self.turns.acquire().await;
        let mut why = None;
        for _ in 0..FALSE_STARTS {
            let mut decoder = self.take().await;
            match timeout(self.limits.wall(), decoder.begin(request, &picture)).await {
                Ok(Ok(())) => {
                    // The decoder has its own by now.
                    drop(picture);
                    return self.finish(decoder, request).await;
                }
                Ok(Err(_)) => why = Some(decoder.post_mortem(self.limits).await),
                Err(_) => {}
            }
        }
        // Too large to arrive is the picture's fault after all; anything else is not.
        Err(why.filter(|failure| failure.code == ErrorCode::DecoderOutOfMemory).unwrap_or_else(
            || Failure::new(ErrorCode::WorkerPanicked, "the worker's decoders do not start"),
        ))
    }

    async fn finish(&self, mut decoder: Process, request: &Request) -> Result<Answer, Failure> {
        let wall = self.limits.wall();
        match timeout(wall, decoder.answer(request)).await {
            Ok(Ok(answer)) => {
                self.put_back(decoder);
                answer
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "no answer from a decoder");
                Err(decoder.post_mortem(self.limits).await)
            }
            Err(_) => Err(Failure::new(
                ErrorCode::DecoderTimedOut,
                format!("decoding took longer than {} s", wall.as_secs()),
            )),
        }
    }

    /// An idle decoder that still lives, or a new one, as soon as the system allows one.
    async fn take(&self) -> Process {
        while let Some(mut decoder) = self.last_used() {
            if decoder.is_alive() {
                return decoder;
            }
        }
        let trouble = DependencyHealth::new("start a decoder");
        loop {
            match Process::start(self.limits) {
                Ok(decoder) => {
                    trouble.over();
                    return decoder;
                }
                Err(error) => tokio::time::sleep(trouble.failed(&error)).await,
            }
        }
    }

    fn last_used(&self) -> Option<Process> {
        self.idle().pop().map(|(decoder, _)| decoder)
    }

    fn put_back(&self, decoder: Process) {
        let mut idle = self.idle();
        idle.retain(|(_, since)| since.elapsed() < IDLE);
        idle.push((decoder, Instant::now()));
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Process, Instant)>> {
        // Nothing can panic half-way through a change of the list.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
