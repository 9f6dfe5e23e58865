//! The API over the real SQLite store, a local blob folder and the in-process queue.

mod access;
mod app;
mod bad_input;
mod control;
mod deletion;
mod delivery;
mod fault_switch;
mod faults;
mod fleet;
mod flood;
mod headers;
mod idempotency;
mod limits;
mod probes;
mod server;
mod tasks;
mod tls;
mod uploads;
