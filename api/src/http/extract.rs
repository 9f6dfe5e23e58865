//! Paths, queries, headers and bodies as types; a request that does not fit gets a problem document.

use std::{error::Error, fmt::Display, str::FromStr, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{FromRequest, FromRequestParts, Path, Query, Request, rejection::JsonRejection},
    http::{HeaderMap, HeaderName, StatusCode, request::Parts},
};
use http_body_util::Limited;
use safelight_domain::{ImageId, TaskId};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::problem::{Problem, ProblemCode};

/// How long a JSON document may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Bytes of a JSON document at most. The largest that any call needs, a backfill with all its presets, has a few
/// KiB.
pub const MAX_JSON_BYTES: usize = 64 << 10;

/// An id in a path, and the problem if there is nothing of that id.
pub trait PathId: FromStr {
    /// The kind of problem.
    const NOT_FOUND: ProblemCode;

    /// There is nothing of this id.
    fn not_found(id: impl Display) -> Problem {
        Problem::new(Self::NOT_FOUND, format!("There is nothing with the id `{id}`."))
    }
}

impl PathId for TaskId {
    const NOT_FOUND: ProblemCode = ProblemCode::TaskNotFound;
}

impl PathId for ImageId {
    const NOT_FOUND: ProblemCode = ProblemCode::ImageNotFound;
}

/// Reads an id in its canonical spelling only. One object under several paths would be several objects to a
/// cache.
pub fn parse_id<T: PathId>(text: &str) -> Result<T, Problem> {
    const HYPHENATED: usize = 36;
    if text.len() != HYPHENATED || text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(T::not_found(text.escape_debug()));
    }
    text.parse().map_err(|_| T::not_found(text.escape_debug()))
}

/// The id that is a path's only parameter.
pub struct Id<T>(pub T);

impl<T: PathId, S: Send + Sync> FromRequestParts<S> for Id<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| T::not_found("(unreadable)"))?;
        parse_id(&text).map(Self)
    }
}

/// A body that is one JSON document. It must be declared as JSON, which no page of another origin can do
/// without a CORS preflight.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        // As an object first: serde would also accept a list of the fields' values.
        let request = request.map(|body| Body::new(Limited::new(body, MAX_JSON_BYTES)));
        let received = timeout(BODY_TIME, Json::<Map<String, Value>>::from_request(request, state));
        let received = received.await.map_err(|_| {
            Problem::new(ProblemCode::UploadTimeout, "The body was not complete in time.")
        })?;
        match received {
            Ok(Json(fields)) => T::deserialize(Value::Object(fields))
                .map(Self)
                .map_err(|why| Problem::new(ProblemCode::InvalidBody, format!("{why}."))),
            Err(JsonRejection::MissingJsonContentType(_)) => Err(Problem::new(
                ProblemCode::NotJson,
                "The body must be JSON, with the header `Content-Type: application/json`.",
            )),
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                let detail = format!("A JSON document may have {MAX_JSON_BYTES} bytes at most.");
                let problem = Problem::new(ProblemCode::BodyTooLarge, detail);
                Err(problem.with("limit_bytes", MAX_JSON_BYTES))
            }
            Err(rejection) => {
                let why = rejection.source().map_or(rejection.body_text(), ToString::to_string);
                Err(Problem::new(ProblemCode::InvalidBody, format!("{why}.")))
            }
        }
    }
}

/// The query, taken parameter by parameter. A parameter that no handler takes is an error.
#[derive(Default)]
pub struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(pairs) = Query::from_request_parts(parts, state).await.map_err(|_| {
            Problem::new(ProblemCode::InvalidQuery, "The query is not URL-encoded UTF-8.")
        })?;
        Ok(Self(pairs))
    }
}

impl Params {
    /// Every value of a parameter.
    pub fn take_all(&mut self, name: &str) -> Vec<String> {
        self.0.extract_if(.., |(key, _)| key == name).map(|(_, value)| value).collect()
    }

    /// The value of a parameter that may be given once.
    pub fn take(&mut self, name: &str) -> Result<Option<String>, Problem> {
        let mut values = self.take_all(name);
        if values.len() > 1 {
            return Err(invalid_query(name, "may be given only once"));
        }
        Ok(values.pop())
    }

    /// The value of a parameter that may be given once, parsed as `T`.
    pub fn parse<T>(&mut self, name: &str) -> Result<Option<T>, Problem>
    where
        T: FromStr<Err: Display>,
    {
        let value = self.take(name)?;
        value.map(|text| text.parse().map_err(|e: T::Err| invalid_query(name, e))).transpose()
    }

    /// Rejects parameters that are left.
    pub fn finish(self) -> Result<(), Problem> {
        match self.0.first() {
            Some((name, _)) => {
                Err(invalid_query(&name.escape_debug(), "there is no such parameter"))
            }
            None => Ok(()),
        }
    }
}

/// A query parameter is not valid.
pub fn invalid_query(name: &(impl Display + ?Sized), why: impl Display) -> Problem {
    Problem::new(ProblemCode::InvalidQuery, format!("Query parameter `{name}`: {why}."))
}

/// A header that may be given once, as text.
pub fn single_header<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    code: ProblemCode,
) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::new(code, format!("Header `{name}` may be given only once.")));
    }
    let text = value.to_str().map_err(|_| {
        Problem::new(code, format!("Header `{name}` holds other than visible ASCII characters."))
    })?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_ids_are_accepted() {
        let id = TaskId::new();
        assert_eq!(parse_id::<TaskId>(&id.to_string()).expect("canonical"), id);
        let others =
            [id.0.simple().to_string(), id.0.urn().to_string(), id.to_string().to_uppercase()];
        for text in others.iter().map(String::as_str).chain(["", "x", "../etc/passwd"]) {
            let problem = parse_id::<TaskId>(text).expect_err(text);
            assert_eq!(problem.code(), ProblemCode::TaskNotFound);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn endless_json_body_times_out() {
        let never = futures::stream::pending::<Result<axum::body::Bytes, std::io::Error>>();
        let request = Request::post("/")
            .header("content-type", "application/json")
            .body(axum::body::Body::from_stream(never))
            .expect("a request");
        let received = JsonBody::<serde_json::Value>::from_request(request, &()).await;
        assert_eq!(received.err().map(|p| p.code()), Some(ProblemCode::UploadTimeout));
    }

    #[test]
    fn duplicate_and_unknown_parameters_are_rejected() {
        let pairs = |list: &[(&str, &str)]| {
            Params(list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
        };
        assert_eq!(pairs(&[("limit", "5")]).parse::<u32>("limit").expect("number"), Some(5));
        assert!(pairs(&[("limit", "x")]).parse::<u32>("limit").is_err());
        assert!(pairs(&[("limit", "1"), ("limit", "2")]).take("limit").is_err());
        assert!(pairs(&[("other", "1")]).finish().is_err());
    }
}
