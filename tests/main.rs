//! End-to-end, contract and fault tests over real engines: one binary.

mod e2e;
