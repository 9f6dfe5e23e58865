//! The environment of tests, benchmarks and `make fleet`: private engines on free ports in temporary
//! folders, which end with the process that started them; servers and clusters; generated pictures; and the
//! audit, which compares the accepted uploads with what is stored.

pub mod audit;
pub mod chaos;
pub mod client;
pub mod concurrent_requests;
pub mod faketime;
pub mod fleet;
pub mod haproxy;
pub mod load;
pub mod metrics;
pub mod nginx;
pub mod open;
pub mod otlp;
pub mod percentiles;
pub mod pgbouncer;
pub mod pictures;
pub mod postgres;
pub mod process;
pub mod rabbitmq;
pub mod reads;
pub mod redis;
pub mod s3;
pub mod s3_faults;
pub mod scenarios;
pub mod server;
pub mod test_cluster;
pub mod test_server;
pub mod varnish;
pub mod volume;
pub mod wait;
