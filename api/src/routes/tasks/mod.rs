//! Tasks: read once, held until final, as events, as lists; cancelled and retried by hand.

mod control;
mod events;
mod filter;
mod list;
mod show;

use safelight_domain::Scope;
use utoipa_axum::routes;

use super::registry::{ApiRoutes, RouteAccess};

/// The routes for tasks.
pub fn routes() -> ApiRoutes {
    let (read, upload) =
        (RouteAccess::scopes(&[Scope::Read]), RouteAccess::scopes(&[Scope::Upload]));
    // Changes tasks and returns their ids.
    let both = RouteAccess::scopes(&[Scope::Upload, Scope::Read]);
    ApiRoutes::new()
        .route(read, routes!(list::list))
        .route(read, routes!(show::show))
        .route(read, routes!(events::events))
        .route(upload, routes!(control::cancel))
        .route(upload, routes!(control::retry))
        .route(both, routes!(control::retry_many))
}
