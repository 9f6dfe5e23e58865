//! The API's description: `/openapi.json`, and `/docs`, a page that shows it and loads nothing from elsewhere.

use std::{borrow::Cow, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use moka::sync::Cache;
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::Config;

use crate::http::{asset::Asset, problem::Problem, security_headers::DOCS_POLICY};

/// Where the description is.
const DOCUMENT: &str = "/openapi.json";

/// What a release changes under the same name: clients ask each time whether it is still the same.
const REVALIDATED: HeaderValue = HeaderValue::from_static("public, no-cache");

/// The program of the page, a megabyte: it may be that of the release before for a while.
const KEPT: HeaderValue = HeaderValue::from_static("public, max-age=3600");

/// The page's files, read and compressed once. There are about ten.
#[derive(Clone)]
struct Files {
    config: Arc<Config<'static>>,
    known: Cache<String, Arc<Asset>>,
}

/// The routes for the description.
pub fn routes<S: Clone + Send + Sync + 'static>(document: &OpenApi) -> Router<S> {
    let json = document.to_json().unwrap_or_default();
    let json_type = HeaderValue::from_static("application/json");
    let description = Arc::new(Asset::new(json_type, REVALIDATED, json.into()));
    let show = async move |headers: HeaderMap| description.respond(&headers).await;
    // By default the page asks a validator on the Internet.
    let config = Config::new([DOCUMENT]).validator_url("none");
    let files = Files { config: Arc::new(config), known: Cache::new(32) };
    let page = Router::new()
        .route("/docs", get(|| async { Redirect::to("/docs/") }))
        .route("/docs/", get(index))
        .route("/docs/{*file}", get(file))
        .with_state(files);
    let policy = SetResponseHeaderLayer::overriding(header::CONTENT_SECURITY_POLICY, DOCS_POLICY);
    Router::new().route(DOCUMENT, get(show)).merge(page).layer(policy)
}

async fn index(State(files): State<Files>, headers: HeaderMap) -> Response {
    files.respond("index.html", &headers).await
}

async fn file(
    State(files): State<Files>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    files.respond(&name, &headers).await
}

impl Files {
    async fn respond(&self, name: &str, request: &HeaderMap) -> Response {
        match self.find(name) {
            Ok(Some(file)) => file.respond(request).await,
            Ok(None) => StatusCode::NOT_FOUND.into_response(),
            Err(problem) => problem.into_response(),
        }
    }

    fn find(&self, name: &str) -> Result<Option<Arc<Asset>>, Problem> {
        if let Some(known) = self.known.get(name) {
            return Ok(Some(known));
        }
        let found = utoipa_swagger_ui::serve(name, self.config.clone());
        let Some(file) = found.map_err(|error| Problem::internal(&error))? else {
            return Ok(None);
        };
        let bytes = match file.bytes {
            Cow::Borrowed(bytes) => Bytes::from_static(bytes),
            Cow::Owned(bytes) => bytes.into(),
        };
        let content_type = HeaderValue::try_from(file.content_type)
            .unwrap_or(HeaderValue::from_static("application/octet-stream"));
        let is_named_by_others = matches!(name, "index.html" | "swagger-initializer.js");
        let cache_control = if is_named_by_others { REVALIDATED } else { KEPT };
        let asset = Arc::new(Asset::new(content_type, cache_control, bytes));
        self.known.insert(name.to_owned(), asset.clone());
        Ok(Some(asset))
    }
}
