//! Where pictures are decoded: in child processes, so that one which crashes, hangs or bloats its
//! decoder costs its own attempt and nothing else.
//!
//! ```text
//! worker                                            decoder (this program, `safelight decoder`)
//!   takes an idle decoder, or starts one ──────────▶ bounds its memory, gives up its rights
//!   request: header, the picture's bytes ──────────▶ reads them; bounds its processor time
//!            ◀─────────────────────────────── begun  from here on a death is the picture's
//!            ◀─ answer: facts, renditions, or a failure
//!   puts it back for the next picture                 waits; ends when the worker does
//! ```
//!
//! A decoder that dies or takes too long is replaced; so is one whose work nobody waits for any more.

mod child;
mod limits;
#[cfg(feature = "fail-points")]
mod poison;
mod pool;
mod process;
mod protocol;
mod request;
#[cfg(target_os = "linux")]
mod sandbox;
mod thread;

use std::{any::Any, sync::Arc};

use bytes::Bytes;
use safelight_domain::{ErrorCode, Failure, ImageFacts, Lane, Presets};
use safelight_imaging::{Limits, Renditions};
use tokio_util::sync::CancellationToken;

pub use child::run;
pub use limits::DecoderLimits;

use self::{
    pool::Pool,
    request::{Answer, Request},
};

/// How far decoding steps back, in nice levels: about a tenth of a busy processor's time is left to
/// it while requests want the rest. Receipts go before pictures.
const NICENESS: i32 = 10;

/// The same for backfills: they get what is left by everybody else.
const BULK_NICENESS: i32 = 19;

/// How far decoding steps back for a lane.
const fn niceness(lane: Lane) -> i32 {
    match lane {
        Lane::Interactive => NICENESS,
        Lane::Bulk => BULK_NICENESS,
    }
}

/// What one attempt has to do with its decoding.
pub struct Attempt {
    /// The right to use one processor, whatever it is. Work that cannot be aborted holds a share of it,
    /// so that it still counts when it outlives its attempt.
    pub slot: Arc<dyn Any + Send + Sync>,
    /// Who waits for the result: a backfill's pictures are decoded at a lower priority.
    pub lane: Lane,
    /// Cancelled once nobody wants the result any more.
    pub stop: CancellationToken,
}

/// How pictures are decoded.
#[derive(Debug, Clone, Copy)]
pub struct DecoderOptions {
    /// What a picture may cost.
    pub limits: Limits,
    /// Processor time for each picture, in seconds.
    pub cpu_seconds: u64,
    /// In processes of their own; otherwise inside this process.
    pub isolate: bool,
    /// Those processes give up all rights that decoding does not need.
    pub sandbox: bool,
}

/// Decodes pictures.
pub struct Decoder {
    limits: Limits,
    /// `None`: inside this process.
    pool: Option<Pools>,
}

/// Decoders by lane: one that has stepped back cannot come forward again.
struct Pools {
    interactive: Pool,
    bulk: Pool,
}

impl Decoder {
    /// For as many pictures at once as there are thumbnail slots.
    pub fn new(options: DecoderOptions, slots: usize) -> Self {
        let DecoderOptions { limits, cpu_seconds, isolate, sandbox } = options;
        let pool = |lane| {
            let memory_bytes = limits.max_memory;
            let niceness = niceness(lane);
            Pool::new(DecoderLimits { cpu_seconds, memory_bytes, sandbox, niceness }, slots)
        };
        Self {
            limits,
            pool: isolate
                .then(|| Pools { interactive: pool(Lane::Interactive), bulk: pool(Lane::Bulk) }),
        }
    }

    /// See [`safelight_imaging::inspect`].
    pub async fn inspect(&self, bytes: Bytes, attempt: &Attempt) -> Result<ImageFacts, Failure> {
        let request = Request::Inspect { limits: self.limits };
        match self.answer(request, bytes, attempt).await? {
            Answer::Facts(facts) => Ok(facts),
            Answer::Renditions(_) => Err(mixed_up()),
        }
    }

    /// See [`safelight_imaging::Renderer::render`].
    pub async fn render(
        &self,
        bytes: Bytes,
        presets: Presets,
        attempt: &Attempt,
    ) -> Result<Renditions, Failure> {
        let request = Request::Render { presets, limits: self.limits };
        match self.answer(request, bytes, attempt).await? {
            Answer::Renditions(renditions) => Ok(renditions),
            Answer::Facts(_) => Err(mixed_up()),
        }
    }

    async fn answer(
        &self,
        request: Request,
        bytes: Bytes,
        attempt: &Attempt,
    ) -> Result<Answer, Failure> {
        match &self.pool {
            Some(pools) => match attempt.lane {
                Lane::Interactive => pools.interactive.run(&request, bytes).await,
                Lane::Bulk => pools.bulk.run(&request, bytes).await,
            },
            None => thread::run(request, bytes, attempt).await,
        }
    }
}

/// An answer to another question than was asked: a bug, as a panic is.
fn mixed_up() -> Failure {
    Failure::new(ErrorCode::WorkerPanicked, "the decoder answered another question")
}
