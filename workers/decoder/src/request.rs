//! The requests to a decoder, wherever it runs.

use safelight_domain::{Failure, ImageFacts, Presets};
use safelight_imaging::{Limits, Renderer, Renditions};
use serde::{Deserialize, Serialize};

/// What to do with a picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Request {
    /// Read its facts.
    Inspect { limits: Limits },
    /// Make its renditions.
    Render { presets: Presets, limits: Limits },
}

/// The result of a successful request.
#[derive(Debug)]
pub(super) enum Response {
    Facts(ImageFacts),
    Renditions(Renditions),
}

impl Request {
    /// Runs the request on this thread. `is_stopped` is called between the steps and ends it early.
    pub fn run(
        &self,
        renderer: &mut Renderer,
        bytes: &[u8],
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Response, Failure> {
        match self {
            Self::Inspect { limits } => {
                safelight_imaging::inspect(bytes, *limits).map(Response::Facts)
            }
            Self::Render { presets, limits } => {
                renderer.render(bytes, presets, *limits, is_stopped).map(Response::Renditions)
            }
        }
    }
}
