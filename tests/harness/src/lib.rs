//! What tests, benchmarks and `make fleet` run Safelight against: private engines on free ports in
//! temporary folders, which end with the process that started them, and pictures made on the spot.

pub mod client;
pub mod haproxy;
pub mod pictures;
pub mod process;
pub mod s3;
pub mod server;
