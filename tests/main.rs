//! End-to-end, contract and fault tests over real engines: one binary, so that they link once and
//! share what they start.

mod contract;
mod e2e;
mod faults;
mod wait;
