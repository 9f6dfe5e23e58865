//! What every role is given: the configuration, the opened parts, and the bell between them.

use std::sync::Arc;

use crate::{blobs::Blobs, broker::DynBroker, config::Config, store::DynStore, wake::Wake};

/// Handles to the parts that the configuration chose. Clones share them.
#[derive(Clone)]
pub struct Services {
    /// The configuration.
    pub config: Arc<Config>,
    /// The truth.
    pub store: DynStore,
    /// The bell between processes.
    pub broker: DynBroker,
    /// The bytes.
    pub blobs: Blobs,
    /// The bell inside this process: rung when jobs were made, heard by the relay.
    pub wake: Wake,
}
