//! HTTP: uploads, tasks, images, delivery, probes, and the document that describes them.
//!
//! ```text
//! server ─ connections, TLS, time-outs, drain
//!   front ─ headers of every answer ─ CORS ─ pictures at hand are answered on the spot; for the rest,
//!     the router:
//!   observe ─ request id, span ─ problem::complete ─ RFC 9457 bodies ─ head ─ catch panic
//!   access  ─ who asks, and whether they may; limits ─ how often
//!     uploads   POST /v1/images
//!     tasks     GET, POST  /v1/tasks…   watch: one batched look-up per tick for all who wait
//!     backfills POST /v1/backfills   a task that walks over many images; its report
//!     images    GET  /v1/images…
//!     delivery  GET  /images…
//!     fleet     GET  /v1/workers /v1/queues
//!     probes    GET  /livez /readyz /metrics
//! ```

mod auth;
mod delivery;
mod fleet;
mod http;
mod limits;
mod openapi;
mod routes;
mod server;
mod state;
mod trouble;
mod uploads;
mod watch;

use auth as access;
use delivery::fast_path as front;
use http::{
    conditional, cors, extract, pagination as pages, prefer, problem, request_limits as head,
    request_log as observe, security_headers as headers,
};
use routes::{backfills, images, probes, queues, tasks, workers};
use server::{connection_permits as connections, idle_timeout as pulse, tls};
use uploads::backlog;

pub use front::Api;
pub use openapi::openapi;
pub use server::{serve, while_starting};
pub use state::RenderMetrics;
pub use tls::{Tls, TlsError};

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
