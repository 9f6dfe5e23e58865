//! The subcommands: each its arguments and its `run`.

pub mod adopt_store;
pub mod api;
pub mod backfill;
pub mod backup;
pub mod config;
pub mod decoder;
pub mod images;
pub mod keys;
pub mod migrate;
pub mod openapi;
pub mod queues;
pub mod restore;
pub mod serve;
mod server_args;
pub mod tasks;
pub mod upload;
pub mod worker;
pub mod workers;
