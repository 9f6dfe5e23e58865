//! Decodes pictures in child processes, so that a picture that crashes its decoder, hangs it or exhausts
//! its memory costs nothing but its own attempt.
//!
//! ```text
//! worker                                            decoder (this program, `safelight decoder`)
//!   takes an idle decoder, or starts one ──────────▶ limits its memory, enters the sandbox
//!   request: header, the picture's bytes ──────────▶ reads them; limits its processor time
//!            ◀───────────────────────────── started  from here on a crash counts as caused by the picture
//!            ◀─ response: facts, renditions, or a failure
//!   returns it to the pool                            waits; exits when the worker does
//! ```
//!
//! The pool replaces a decoder that dies, exceeds its deadline, or works for a cancelled attempt. A decoder that has
//! read a picture is never given one of another owner.

mod attempt;
mod child;
mod idle;
mod limits;
mod plausible;
#[cfg(feature = "fail-points")]
mod poison;
mod pool;
mod process;
mod protocol;
mod request;
#[cfg(target_os = "linux")]
mod sandbox;
mod thread;

use bytes::Bytes;
use safelight_domain::{ErrorCode, Failure, ImageFacts, Lane, Presets};
use safelight_imaging::{Limits, Renditions};

pub use attempt::Attempt;
pub use child::run;
pub use limits::DecoderLimits;

use self::{
    pool::Pool,
    request::{Request, Response},
};

/// The configuration of a [`Decoder`].
#[derive(Debug, Clone, Copy)]
pub struct DecoderOptions {
    /// Limits on each picture.
    pub limits: Limits,
    /// Processor time for each picture, in seconds.
    pub cpu_seconds: u64,
    /// Decode in child processes; otherwise inside this process.
    pub isolate: bool,
    /// Confine these processes to a sandbox.
    pub sandbox: bool,
}

/// Decodes pictures.
pub struct Decoder {
    limits: Limits,
    /// `None` to decode inside this process.
    pools: Option<Pools>,
}

/// Decoders by lane, because a process cannot raise its priority again.
struct Pools {
    interactive: Pool,
    bulk: Pool,
}

impl Decoder {
    /// A decoder for as many concurrent pictures as there are thumbnail slots.
    pub fn new(options: DecoderOptions, slots: usize) -> Self {
        let DecoderOptions { limits, cpu_seconds, isolate, sandbox } = options;
        let pool = |lane| {
            let memory_bytes = limits.max_memory;
            let niceness = limits::niceness(lane);
            Pool::new(DecoderLimits { cpu_seconds, memory_bytes, sandbox, niceness }, slots)
        };
        Self {
            limits,
            pools: isolate
                .then(|| Pools { interactive: pool(Lane::Interactive), bulk: pool(Lane::Bulk) }),
        }
    }

    /// See [`safelight_imaging::inspect`].
    pub async fn inspect(&self, bytes: Bytes, attempt: &Attempt) -> Result<ImageFacts, Failure> {
        let request = Request::Inspect { limits: self.limits };
        match self.send(request, bytes, attempt).await? {
            Response::Facts(facts) => Ok(facts),
            Response::Renditions(_) => Err(unexpected_response()),
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
        match self.send(request, bytes, attempt).await? {
            Response::Renditions(renditions) => Ok(renditions),
            Response::Facts(_) => Err(unexpected_response()),
        }
    }

    async fn send(
        &self,
        request: Request,
        bytes: Bytes,
        attempt: &Attempt,
    ) -> Result<Response, Failure> {
        match &self.pools {
            Some(pools) => match attempt.lane {
                Lane::Interactive => pools.interactive.run(&request, bytes, &attempt.owner).await,
                Lane::Bulk => pools.bulk.run(&request, bytes, &attempt.owner).await,
            },
            None => thread::run(request, bytes, attempt).await,
        }
    }
}

/// A response to another kind of request. It is a bug, and counts like a panic.
fn unexpected_response() -> Failure {
    Failure::new(ErrorCode::WorkerPanicked, "the decoder sent an unexpected response")
}
