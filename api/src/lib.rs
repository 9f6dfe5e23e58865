//! HTTP: uploads, tasks, images, delivery, probes, and the document that describes them.
//!
//! A layer imports only from the layers below it:
//!
//! ```text
//! server    connections, TLS, timeouts, drain
//! router    hosts ─ CORS ─ fast path ─ request log ─ problem documents ─ request limits ─ guard; openapi
//! routes    a file or folder per resource, with what each route requires and answers
//! state     the parts together
//! parts     auth ─ limits ─ uploads ─ delivery ─ watch ─ fleet ─ readiness ─ presets
//! http      problem documents, requests as types, headers, bodies
//! ```

mod auth;
mod delivery;
mod fleet;
mod guard;
mod http;
mod limits;
mod openapi;
mod presets;
mod readiness;
mod router;
mod routes;
mod server;
mod state;
mod uploads;
mod watch;

pub use auth::is_own_listener;
pub use openapi::openapi;
pub use router::Api;
pub use server::{Tls, TlsError, serve, while_starting};
pub use state::{ApiOptions, ApiParts, RenderMetrics};
