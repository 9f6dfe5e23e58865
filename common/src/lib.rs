//! What every part of Safelight shares: the domain, the configuration, and the seams to the
//! outside: [`store`] (SQL), [`broker`] (queue) and [`blobs`] (bytes).
//!
//! This crate knows neither HTTP nor the command line. Its one rule: SQL owns the truth, a broker
//! message is only a bell (`docs/adr/0001-sql-owns-the-truth.md`).

pub mod blobs;
pub mod blocking;
pub mod broker;
pub mod config;
pub mod domain;
pub mod fail_point;
pub mod private;
pub mod retry;
pub mod roots;
pub mod secrets;
pub mod services;
pub mod shared_cache;
pub mod store;
pub mod telemetry;
pub mod wake;
