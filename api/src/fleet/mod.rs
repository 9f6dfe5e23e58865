//! What is known of the workers and their queues.

pub mod queue_sampler;
