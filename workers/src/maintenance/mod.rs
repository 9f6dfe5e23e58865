//! Background services: each recovers from a kind of failure, and any number of each may run concurrently.
//!
//! To add one: a type that implements [`Service`], and a line in `services.rs`.

pub(crate) mod clock_watch;
pub(crate) mod dead_letters;
pub(crate) mod installation_watch;
pub(crate) mod janitor;
pub(crate) mod outbox_relay;
pub(crate) mod pruning;
pub(crate) mod rescuer;
pub(crate) mod service;
pub(crate) mod status;

pub use self::{
    service::{Service, ServiceError, run_service},
    status::ServiceStatuses,
};
