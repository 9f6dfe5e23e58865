//! The two questions that a decoder answers, wherever it runs.

use safelight_domain::{Failure, ImageFacts, Presets};
use safelight_imaging::{Limits, Renderer, Renditions};
use serde::{Deserialize, Serialize};

/// What is wanted of a picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Request {
    /// Its facts.
    Inspect { limits: Limits },
    /// Its renditions.
    Render { presets: Presets, limits: Limits },
}

/// What a picture gave.
#[derive(Debug)]
pub(super) enum Answer {
    Facts(ImageFacts),
    Renditions(Renditions),
}

impl Request {
    /// Does it, here and now. `stopped` is asked between the steps whether to end early.
    pub fn run(
        &self,
        renderer: &mut Renderer,
        bytes: &[u8],
        stopped: &dyn Fn() -> bool,
    ) -> Result<Answer, Failure> {
        match self {
            Self::Inspect { limits } => {
                safelight_imaging::inspect(bytes, *limits).map(Answer::Facts)
            }
            Self::Render { presets, limits } => {
                renderer.render(bytes, presets, *limits, stopped).map(Answer::Renditions)
            }
        }
    }
}
