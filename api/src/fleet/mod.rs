//! What the API knows of the workers and their queues.

mod gauges;
mod queue_sampler;
mod workers;

pub use gauges::Gauges;
pub use queue_sampler::{QueueReport, QueueSampler};
pub use workers::list_workers;
