//! What tests, benchmarks and `make fleet` run Safelight against: private engines on free ports in
//! temporary folders, which end with the process that started them, and pictures made on the spot.

pub mod books;
pub mod chaos;
pub mod client;
pub mod fleet;
pub mod haproxy;
pub mod load;
pub mod pictures;
pub mod postgres;
pub mod process;
pub mod rabbitmq;
pub mod s3;
pub mod server;
