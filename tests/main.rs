//! Architecture, contract, end-to-end and fault tests, and snapshots of what must not change: one binary, so that
//! they link once and share the engines that they start.

mod architecture;
mod contract;
mod e2e;
mod faults;
mod snapshots;
