//! HTTP without knowledge of images: problem documents, requests as types, headers, bodies.

pub mod body;
pub mod conditional;
pub mod cors;
pub mod draining;
pub mod extract;
pub mod pagination;
pub mod prefer;
pub mod problem;
mod problem_code;
pub mod request_limits;
pub mod request_log;
pub mod responses;
pub mod security_headers;
