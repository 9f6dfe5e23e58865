//! A client of Safelight's HTTP API.
//!
//! Each call of the API is a method of [`Client`]. Documents that callers print are [`serde_json::Value`]s,
//! so that fields of newer servers are kept; documents whose fields callers use have a type. [`Client::get`]
//! and [`Client::request`] are for requests with other headers; they return the response also if it is an
//! error.

mod calls;
mod client;
mod documents;
mod error;
mod lines;
mod retry;
mod upload;

pub use client::{Client, ClientBuilder, install_crypto_provider};
pub use documents::{RetriedTasks, TaskPage};
pub use error::ClientError;
pub use upload::accepted;
