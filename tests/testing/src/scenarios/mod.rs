//! Faults that happen to whole deployments, each with an audit at its end. `make chaos` runs all of them and prints
//! their counts; `make test` runs the quick ones.

mod balancer;
mod broker;
mod cache;
mod clock;
mod database;
mod failover;
mod list;
mod outcome;
mod power;
mod removal;
mod site;
mod store;
mod volume;

pub use list::{ALL, Scenario, find};
pub use outcome::{Outcome, Setting};
