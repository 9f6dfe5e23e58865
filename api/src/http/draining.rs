//! The server wants to end.

use axum::{Extension, extract::FromRequestParts, http::request::Parts};
use tokio_util::sync::CancellationToken;

/// Cancelled once the server wants to end, so that responses which are held back go out at once. The
/// server puts it into every request; without a server it is never cancelled.
#[derive(Clone, Default)]
pub struct Draining(pub CancellationToken);

impl<S: Send + Sync> FromRequestParts<S> for Draining {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let given = Option::<Extension<Self>>::from_request_parts(parts, state).await;
        Ok(given.ok().flatten().map(|Extension(draining)| draining).unwrap_or_default())
    }
}
