//! Architecture, contract, end-to-end, fault and snapshot tests. They are one binary, so that they link once
//! and share the engines that they start.

mod architecture;
mod contract;
mod e2e;
mod faults;
mod snapshots;
