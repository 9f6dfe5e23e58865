//! Whether the server is draining.

use axum::{Extension, extract::FromRequestParts, http::request::Parts};
use tokio_util::sync::CancellationToken;

/// Cancelled once the server drains, so that delayed responses are sent immediately. The server adds it to
/// every request; without a server it is never cancelled.
#[derive(Clone, Default)]
pub struct Draining(pub CancellationToken);

impl<S: Send + Sync> FromRequestParts<S> for Draining {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let given = Option::<Extension<Self>>::from_request_parts(parts, state).await;
        Ok(given.ok().flatten().map(|Extension(draining)| draining).unwrap_or_default())
    }
}
