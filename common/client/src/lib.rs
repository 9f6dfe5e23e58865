//! A client of Safelight's HTTP API.
//!
//! Each call of the API is a method of [`Client`]. Documents that callers print as they came are
//! [`serde_json::Value`]s, so that fields of newer servers survive; what callers look into has a type. For
//! requests with headers of their own there are [`Client::get`] and [`Client::request`], which hand out the
//! response whatever its status.

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
