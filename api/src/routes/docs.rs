//! The API's description: `/openapi.json`, and `/docs`, a page that shows it and loads nothing from elsewhere.

use axum::{Router, http::header};
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::SwaggerUi;

use crate::{http::security_headers::DOCS_POLICY, state::ApiState};

/// The routes for the description.
pub fn routes(document: OpenApi) -> Router<ApiState> {
    // By default the page asks a validator on the Internet.
    let config = utoipa_swagger_ui::Config::default().validator_url("none");
    let page = SwaggerUi::new("/docs").url("/openapi.json", document).config(config);
    let page: Router<ApiState> = page.into();
    page.layer(SetResponseHeaderLayer::overriding(header::CONTENT_SECURITY_POLICY, DOCS_POLICY))
}
