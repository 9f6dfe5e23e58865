//! What tests, benchmarks and `make fleet` run Safelight against: private engines on free ports in
//! temporary folders, which end with the process that started them, and pictures made on the spot.

pub mod books;
pub mod chaos;
pub mod client;
pub mod figures;
pub mod fleet;
pub mod haproxy;
pub mod herd;
pub mod load;
pub mod metrics;
pub mod nginx;
pub mod open;
pub mod otlp;
pub mod pictures;
pub mod postgres;
pub mod process;
pub mod rabbitmq;
pub mod reads;
pub mod redis;
pub mod s3;
pub mod server;
pub mod varnish;
