//! Architecture, contract, end-to-end and fault tests: one binary, so that they link once and share the engines
//! that they start.

mod architecture;
mod contract;
mod e2e;
mod faults;
