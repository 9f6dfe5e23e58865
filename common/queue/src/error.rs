//! Errors of the job queue.

use std::{error::Error, sync::Arc};

/// A failed call of the queue. All of them can be retried later.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// There is no connection now.
    #[error("the broker is not connected")]
    Disconnected,
    /// The broker did not respond in time, or blocks publishers.
    #[error("the broker did not confirm in time")]
    TimedOut,
    /// The broker rejected or returned at least one message.
    #[error("the broker did not accept every message: {0}")]
    Refused(String),
    /// A queue or an exchange exists with other arguments, which only an operator can change.
    #[error("a queue or an exchange exists with other arguments: {0}")]
    OtherArguments(String),
    /// The in-process queue is full.
    #[error("the in-process queue is full")]
    Full,
    /// The client library failed.
    #[error("the broker failed: {0}")]
    Client(#[source] Arc<dyn Error + Send + Sync>),
}
