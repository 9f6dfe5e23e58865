//! HTTP: uploads, tasks, images, delivery, probes, and the document that describes them.
//!
//! ```text
//! server ─ connections, time-outs, drain
//!   observe ─ request id, span ─ problem::complete ─ RFC 9457 bodies ─ catch panic
//!     uploads   POST /v1/images
//!     tasks     GET, POST  /v1/tasks…   watch: one batched look-up per tick for all who wait
//!     images    GET  /v1/images…
//!     delivery  GET  /images…
//!     probes    GET  /livez /readyz /metrics
//! ```

mod backlog;
mod conditional;
mod delivery;
mod extract;
mod images;
mod observe;
mod openapi;
mod pages;
mod prefer;
mod probes;
mod problem;
mod server;
mod state;
mod tasks;
mod trouble;
mod uploads;
mod watch;

use axum::{Router, middleware};
use safelight_common::services::Services;
use tower_http::catch_panic::CatchPanicLayer;

pub use openapi::openapi;
pub use server::serve;
pub use state::RenderMetrics;

use state::ApiState;

/// Which parts of the API a node serves. Probes and the API's description are served everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiOptions {
    /// Uploads, tasks and the metadata of images.
    pub uploads: bool,
    /// The bytes of images and renditions.
    pub delivery: bool,
}

impl Default for ApiOptions {
    /// Everything.
    fn default() -> Self {
        Self { uploads: true, delivery: true }
    }
}

/// The API over `services`. `metrics` gives the text that `/metrics` serves.
pub fn router(services: Services, metrics: RenderMetrics, options: ApiOptions) -> Router {
    let state = ApiState::new(services, metrics, options);
    let (routes, document) = openapi::routes(options).with_state(state.clone()).split_for_parts();
    routes
        .merge(openapi::description(document))
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_method)
        .with_state(state)
        .layer(CatchPanicLayer::custom(problem::panicked))
        .layer(middleware::from_fn(problem::complete))
        .layer(middleware::from_fn(observe::observe))
}
