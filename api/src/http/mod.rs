//! HTTP without knowledge of images: problem documents, requests as types, headers, bodies.

pub mod asset;
pub mod body;
pub mod conditional;
pub mod content_disposition;
pub mod cors;
pub mod digest;
pub mod draining;
mod encoded_words;
pub mod extract;
pub mod head;
pub mod holding;
pub mod pagination;
pub mod pieces;
pub mod prefer;
pub mod problem;
mod problem_code;
pub mod request_limits;
pub mod request_log;
pub mod responses;
pub mod security_headers;
pub mod turns;
