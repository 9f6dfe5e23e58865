//! How the API's description names the responses of a call.

use std::collections::BTreeMap;

use utoipa::openapi::{
    ContentBuilder, HeaderBuilder, ObjectBuilder, Ref, RefOr, Response, ResponseBuilder, Responses,
    Type,
    example::{Example, ExampleBuilder},
};

use super::problem::{self, ProblemCode, Retry};

/// The bytes of an image.
#[derive(utoipa::ToSchema)]
#[schema(as = Picture, value_type = String, format = Binary)]
#[allow(dead_code)] // read by the derive alone
pub struct ImageBytes(Vec<u8>);

/// Declares which problems a call can answer with, beside those that every call can.
macro_rules! problem_responses {
    ($( $(#[$meta:meta])* $name:ident: $( $code:ident ),* );+ $(;)?) => {$(
        $(#[$meta])*
        pub struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses() -> std::collections::BTreeMap<
                String,
                utoipa::openapi::RefOr<utoipa::openapi::Response>,
            > {
                use $crate::http::problem::ProblemCode;
                $crate::http::responses::described(
                    &[$( ProblemCode::$code, )* ProblemCode::Internal],
                )
            }
        }
    )+};
}

pub(crate) use problem_responses;

problem_responses! {
    /// Of a list.
    ListProblems: InvalidQuery, DatabaseUnavailable;
}

/// One response per status, with an example per kind of problem.
pub fn described(codes: &[ProblemCode]) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<String, Vec<ProblemCode>> = BTreeMap::new();
    for &code in codes {
        by_status.entry(code.status().as_str().to_owned()).or_default().push(code);
    }
    by_status.into_iter().map(|(status, codes)| (status, RefOr::T(response(&codes)))).collect()
}

/// Adds problems to what an operation already answers with.
pub fn add_problems(responses: &mut Responses, codes: &[ProblemCode]) {
    for &code in codes {
        let status = code.status().as_str().to_owned();
        let known = responses.responses.get_mut(&status);
        let Some(RefOr::T(known)) = known else {
            responses.responses.insert(status, RefOr::T(response(&[code])));
            continue;
        };
        let Some(RefOr::T(content)) = known.content.get_mut(problem::MEDIA_TYPE) else { continue };
        if content.examples.contains_key(code.as_str()) {
            continue;
        }
        known.description = format!("{}\n\n{}", known.description, line(code));
        content.examples.insert(code.as_str().to_owned(), RefOr::T(example(code)));
    }
}

fn line(code: ProblemCode) -> String {
    format!("`{}`: {}.", code.as_str(), code.title())
}

fn response(codes: &[ProblemCode]) -> Response {
    let lines: Vec<_> = codes.iter().map(|&code| line(code)).collect();
    let examples = codes.iter().map(|&code| (code.as_str(), example(code)));
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .examples_from_iter(examples)
        .build();
    let response = ResponseBuilder::new()
        .description(lines.join("\n\n"))
        .content(problem::MEDIA_TYPE, content);
    if codes.iter().all(|code| matches!(code.retry(), Retry::After(_))) {
        let header = HeaderBuilder::new()
            .schema(Some(ObjectBuilder::new().schema_type(Type::Integer)))
            .description(Some("Seconds until the client should try again"));
        return response.header("Retry-After", header.build()).build();
    }
    response.build()
}

fn example(code: ProblemCode) -> Example {
    let document = serde_json::json!({
        "type": format!("urn:safelight:problem:{}", code.as_str()),
        "title": code.title(),
        "status": code.status().as_u16(),
        "detail": "What happened this time.",
        "instance": "/the/path",
        "code": code.as_str(),
        "retryable": code.retry() != Retry::Never,
    });
    ExampleBuilder::new().summary(code.title()).value(Some(document)).build()
}
