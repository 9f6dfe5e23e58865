//! The API over the real SQLite store, a local blob folder and the in-process queue.

mod access;
mod app;
mod bad_input;
mod caching;
mod control;
mod deletion;
mod delivery;
mod exhaustion;
mod fault_switch;
mod faults;
mod fleet;
mod flood;
mod headers;
mod heads;
mod http2;
mod idempotency;
mod ids;
mod limits;
mod probes;
mod refusals;
mod repair;
mod server;
mod tasks;
mod tls;
mod uploads;
