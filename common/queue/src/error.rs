//! What can go wrong with the queue.

use std::{error::Error, sync::Arc};

/// A failed broker call; all of them are worth trying again later.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// No connection now.
    #[error("the broker is not connected")]
    Disconnected,
    /// The broker did not answer in time, or blocks publishers.
    #[error("the broker did not confirm in time")]
    TimedOut,
    /// The broker refused or returned at least one message.
    #[error("the broker did not take every message: {0}")]
    Refused(String),
    /// The in-process queue is full.
    #[error("the in-process queue is full")]
    Full,
    /// The client library failed.
    #[error("the broker failed: {0}")]
    Client(#[source] Arc<dyn Error + Send + Sync>),
}
